"""`python -m medsora export RUN OUT`: a run's model as a folder that stands alone, with its card.

OUT/model_index.json  denoiser/  vae/  scheduler/   what `MedSoraPipeline.from_pretrained` reads; of EndoGen
                                                    transformer/ and tokenizer/, for `EndoGenPipeline`
OUT/manifest.json                                   sizes and SHA-256 of these
OUT/README.md                                       the model card
OUT/samples.png                                     the run's latest contact sheet
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from medsora.checkout import command_name
from medsora.config.load import load_config
from medsora.config.presets import NAMED_PRESETS
from medsora.config.schema import Config
from medsora.config.shipped import models_folder
from medsora.errors import BadInput
from medsora.runtime.digests import unsealed
from medsora.runtime.files import written_folder
from medsora.sampling.run import pipeline_class
from medsora.saved.card import CARD_NAME, ModelCard, evaluation_lines
from medsora.saved.find import ENDOGEN, MEDSORA, ModelFolder, find_in_run, stage_2_folder
from medsora.saved.hub import upload_model
from medsora.saved.limits import read_json_object
from medsora.training.run.folder import ELAPSED, read_log
from medsora.training.run.report import SHEET, hide_paths

SHEET_NAME = "samples.png"


def run(options: argparse.Namespace, console: Console) -> None:
    """Make the folder, and upload it with --push; raises `BadInput` with one sentence."""
    if options.private and not options.push:
        raise BadInput("--private belongs to --push OWNER/NAME, which is not given; leave it out.")
    names = ("checkpoint", "raw", "dtype", "name", "licence", "evaluation")
    given = {name: getattr(options, name) for name in names}
    data = _description(options.data_description)
    export_run(options.run, options.out, data=data, repo=options.push, **given)
    console.print(f"model folder, with its card: {options.out}", highlight=False, soft_wrap=True)
    if options.push:
        address = upload_model(options.out, options.push, private=options.private)
        console.print(f"uploaded: {address}", highlight=False, soft_wrap=True)


def export_run(
    run: Path,
    out: Path,
    *,
    checkpoint: int | None = None,
    raw: bool = False,
    dtype: str = "fp32",
    name: str | None = None,
    data: str | None = None,
    licence: str | None = None,
    evaluation: Path | None = None,
    repo: str | None = None,
) -> ModelCard:
    """Write the model of a run of stage 2 or of EndoGen to the new folder `out`, whole or not at all.

    Returns its card. Raises `BadInput` if `out` is there already, or the run holds no complete checkpoint.
    """
    if out.exists():
        raise BadInput(f"{out} is there already; take another folder, or remove it.")
    run = stage_2_folder(run)
    trained = find_in_run(run, raw=raw, checkpoint=checkpoint)
    config = load_config(run / "config.yaml", outputs_anywhere=True)
    pipeline = pipeline_class(trained.kind).from_folder(trained, dtype=dtype)
    sheet = run / SHEET
    sheet_name = SHEET_NAME if sheet.is_file() else None
    card = pipeline.card(
        name=name or f"{KINDS[trained.kind].name(config)} {config.run.name}",
        repo=repo or (out.name if out.absolute().parent == models_folder().absolute() else None),
        step=trained.step,
        weights=trained.weights,
        data=data,
        licence=licence,
        training=_training_rows(run, config, trained),
        evaluation=_evaluation(run, evaluation),
        sheet=sheet_name,
    )
    with written_folder(out) as folder:
        pipeline.save_pretrained(folder)
        (folder / CARD_NAME).write_text(card.markdown(), encoding="utf-8")
        if sheet.is_file():
            shutil.copyfile(sheet, folder / SHEET_NAME)
    return card


def _training_rows(run: Path, config: Config, trained: ModelFolder) -> list[tuple[str, str]]:
    """Return a card's rows on the training: its length, its settings and its last metrics."""
    kind, data = KINDS[trained.kind], config.data
    pace = f"one in {data.interval}" if data.rate is None else f"{data.rate:g} per second"
    clips = f"{data.frames} frames, {pace}, {'x'.join(map(str, data.height_width))} pixels"
    rows = [
        ("optimiser steps", f"{trained.step:,}"),
        ("clips", clips),
        *kind.settings(config),
        ("seed", str(config.run.seed)),
    ]
    if (run / "command.txt").is_file():
        rows.append(("command", hide_paths((run / "command.txt").read_text(encoding="utf-8"))))
    latest: dict[str, float] = {}
    beside = run.parent / "vae"
    named = beside if config.vae.path is None and config.vae.kind != "per-frame" else config.vae.path
    own_vae = named is not None and beside.resolve() in (Path(named).resolve(), Path(named).resolve().parent)
    for folder in (beside, run) if own_vae else (run,):
        for line in read_log(folder) if (folder / "log.jsonl").is_file() else []:
            if folder != run or line["step"] <= trained.step:
                latest |= {name: value for name, value in line.items() if name in (*kind.metrics, ELAPSED)}
    if ELAPSED in latest:
        rows.append(("hours of the last stage", f"{latest[ELAPSED] / 3600:.1f}"))
    rows += [(meaning, f"{latest[name]:.4g}") for name, meaning in kind.metrics.items() if name in latest]
    if (run / "versions.json").is_file():
        versions = read_json_object(run / "versions.json")
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows


def _medsora_settings(config: Config) -> list[tuple[str, str]]:
    phases = "; ".join(
        f"{phase.lr:g} with batch {phase.batch}"
        + (f" until epoch {phase.until_epoch}" if phase.until_epoch else "")
        for phase in config.train_dit.phases
    )
    return [
        ("AdamW, learning rate", phases),
        ("EMA decay", f"{config.train_dit.ema_decay:g}"),
        ("joint images", f"{config.images.count}, {config.images.encoding}"),
        _alignment_row(config),
    ]


def _endogen_settings(config: Config) -> list[tuple[str, str]]:
    settings, model = config.train_ar, config.endogen
    groups = ", whole groups" if model.mask_whole_groups else ""
    return [
        (f"{settings.optimizer}, learning rate", f"{settings.lr:g} with batch {settings.batch}"),
        ("weight decay of matrices", f"{settings.weight_decay:g}"),
        ("semantic-aware masking", f"{model.mask:g}{groups}"),
        ("trained without a label", f"{settings.label_dropout:g} of the clips"),
    ]


class Kind(NamedTuple):
    """A card's contents for one kind of model: its name, how it was trained, and which last metrics."""

    name: Callable[[Config], str]
    settings: Callable[[Config], list[tuple[str, str]]]
    metrics: dict[str, str]


KINDS = {
    MEDSORA: Kind(
        lambda config: "-".join(NAMED_PRESETS[config.denoiser.preset]),
        _medsora_settings,
        {
            "loss/mse": "noise error, training",
            "held_out/mse": "noise error, held out",
            "loss/alignment": "alignment loss",
            "held_out/psnr": "PSNR of the VAE, held out (dB)",
            "held_out/ssim": "SSIM of the VAE, held out",
        },
    ),
    ENDOGEN: Kind(
        lambda config: f"EndoGen-{config.endogen.preset}",
        _endogen_settings,
        {
            "loss/total": "cross entropy, training (nats per code)",
            "held_out/loss": "cross entropy, held out (nats per code)",
            "held_out/accuracy": "codes predicted correctly, held out",
            "held_out/psnr": "PSNR of the tokenizer, held out (dB)",
        },
    ),
}


def _alignment_row(config: Config) -> tuple[str, str]:
    untrained = "untrained: the alignment loss carries no signal"
    dino = untrained if config.dino.weights == "random" else "pretrained"
    if config.alignment.kind == "image":
        return "image alignment", f"{config.alignment.image_source} of {config.dino.model} ({dino})"
    return "flow alignment", f"{config.flow.estimator} and {config.dino.model} ({dino})"


def _evaluation(run: Path, given: Path | None) -> list[str]:
    path, evaluate = given or run / "evaluation" / "results.json", command_name("evaluate")
    if not path.is_file():
        if given is not None:
            raise BadInput(f"there is no evaluation {given}; give the results.json that {evaluate} wrote.")
        return []
    try:
        lines = evaluation_lines(unsealed(json.loads(path.read_text(encoding="utf-8"))))
        return [hide_paths(line) for line in lines]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is not what {evaluate} writes; give its results.json.") from error


def _description(text: str | None) -> str | None:
    if text is None or not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{text[1:]} cannot be read as the description of the data ({error}).") from error
