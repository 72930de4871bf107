"""Find and verify the model or VAE that a name stands for, before anything is built.

A model is named by a run, one of its checkpoints, a pipeline folder, its name if it comes with MedSora
("phantom"), or a hub name.

A run folder is what stage 2 writes: `vae/`, `pipeline.json` and `checkpoints/step-0000500/{denoiser,ema}/`,
of which the newest complete checkpoint is taken. A pipeline folder is what `MedSoraPipeline.save_pretrained`
writes: `denoiser/`, `vae/`, `scheduler/` and `model_index.json`. Weights are safetensors, never pickles.
"""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX, ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import snapshot_download

from medsora.checkout import command_name
from medsora.config.crop import checked_crop
from medsora.config.schema import Config
from medsora.config.shipped import models_folder, shipped_file, shipped_models
from medsora.errors import BadInput, bad_input_from_errors
from medsora.flow_prior.weights import read_weights
from medsora.runtime.digests import sha256
from medsora.runtime.files import is_file
from medsora.saved.checkpoint import checkpoint_folders, checkpoint_step, newest_complete
from medsora.saved.classes import TOKENIZERS
from medsora.saved.limits import (
    MAX_FPS,
    check_base,
    check_clip,
    check_model,
    check_part,
    check_value,
    read_json_object,
    shapes_in,
    shown,
)
from medsora.saved.manifest import refuse_changed
from medsora.vae import FrequencyCompensatedVAE, PerFrameVAE, VideoVAE, VQTokenizer
from medsora.vae.choices import COMPENSATION_KINDS
from medsora.vae.choices import TOKENIZERS as TOKENIZER_PRESETS
from medsora.vae.published_tokenizer import read_published_tokenizer

log = logging.getLogger(__name__)

GEOMETRY = ("frames", "size", "fps", "image_latents")
DEFAULT_FPS = 8  # frame rate of written videos if that of the training clips is unknown
UNKNOWN_RATE = (
    "%s does not store the frame rate of its training data: videos are written at %g frames per second"
)
CONDITIONS = {"labels": str, "given_frames": int}  # present only if the model was trained with them
TRAINED_ON = ("interval", "rate", "crop")  # how the training clips were read, if known
CONDITION_WORDS = {"labels": "plain names", "given_frames": "whole numbers"}
# A saved pipeline's class and the folders of its two models: the generator and the decoder.
PARTS = {"MedSoraPipeline": ("denoiser", "vae"), "EndoGenPipeline": ("transformer", "tokenizer")}
MEDSORA, ENDOGEN = PARTS
DESCRIBED = ("pipeline.json", "model_index.json")  # files that mark a stage-2 run and a saved pipeline
UNTOUCHED_BASE = "base"  # value of `vae.path`: no stage 1
BASE_FILES = ["config.json", SAFETENSORS_WEIGHTS_NAME]  # files of a repository that contains the VAE alone
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
VAE_OR_BASE = (FrequencyCompensatedVAE.__name__, AutoencoderKLCogVideoX.__name__)
WAYS = "give a run folder (runs/NAME/dit-PRESET), a saved pipeline's folder, or its OWNER/NAME on the hub"


@dataclass(frozen=True)
class ModelFolder:
    """Paths of the parts of one model.

    `geometry` holds the clip that it was trained on: frames, size [H, W], fps and image_latents; as far as
    they are known, interval, rate and crop (`fps` is `DEFAULT_FPS` where the rate is not known); and, if it
    was trained with them, labels and given_frames. `vae_digest`, of a run's checkpoint, is that of the VAE
    that the denoiser was trained with (`weights_digest`). `kind` is the class of its pipeline, a key of
    `PARTS`; of an `ENDOGEN` one, `denoiser` is the transformer's folder and `vae` the tokenizer's.
    """

    denoiser: Path
    vae: Path
    geometry: dict[str, Any]
    scheduler: Path | None = None
    step: int | None = None
    weights: str = "saved"
    vae_digest: str | None = None
    kind: str = MEDSORA

    @property
    def trained_on(self) -> dict[str, Any]:
        """Interval, rate and crop of the training clips, as far as they are known."""
        return {key: self.geometry[key] for key in TRAINED_ON if key in self.geometry}

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of both weight files: the model's identity, wherever it lies.

        Raises `BadInput`, naming the file, if one is missing or damaged.
        """
        digests = {}
        for name, folder in zip(PARTS[self.kind], (self.denoiser, self.vae), strict=True):
            check_part(folder)
            digests[name] = sha256(folder / SAFETENSORS_WEIGHTS_NAME)
        return digests


def find_model(model: str | Path, *, raw: bool = False) -> ModelFolder:
    """Find what `model` names: a run, one checkpoint in it, a pipeline folder, a shipped model or a hub name.

    `raw` takes a run's raw weights instead of their moving average.
    Raises `BadInput`, in one sentence, if there is nothing complete to load.
    """
    folder = Path(model)
    _refuse_stage_1(folder)
    if (folder / "checkpoints").is_dir() or (folder / "pipeline.json").is_file():
        return find_in_run(folder, raw=raw)
    if folder.parent.name == "checkpoints" and folder.is_dir():
        return find_in_run(folder.parent.parent, raw=raw, checkpoint=folder.name)
    model_folder = find_pipeline(model)
    if raw:
        raise BadInput(f"{model} is a saved pipeline with one set of weights; raw ones exist in runs only.")
    return model_folder


def _refuse_stage_1(folder: Path) -> None:
    """Raise `BadInput` if `folder` is a run folder of stage 1, its final VAE or one of its checkpoints."""
    run = folder.parent if folder.name == "final" else folder
    run = folder.parent.parent if folder.parent.name == "checkpoints" else run
    described = any((place / name).is_file() for place in (folder, run) for name in DESCRIBED)
    if described or not (
        (run / "final" / "config.json").is_file() or any(run.glob("checkpoints/step-*/vae"))
    ):
        return
    trained = sorted(str(path.parent) for path in run.parent.glob("*/pipeline.json"))
    where = " or ".join(trained) or "train that first"
    raise BadInput(f"{folder} is of stage 1, the VAE; sampling takes the folder of stage 2: {where}.")


def find_in_run(run: str | Path, *, raw: bool = False, checkpoint: str | int | None = None) -> ModelFolder:
    """Find the newest complete checkpoint of a run folder, or the one that is named (a step, or its folder).

    Every file is compared with the checkpoint's manifest. A damaged checkpoint is passed over for the one
    before it, with one warning; one that was requested by name is an error. Raises `BadInput`.
    """
    run = Path(run)
    geometry = _read_geometry(run / "pipeline.json")
    refuse_changed(run, "pipeline.json")
    folders = checkpoint_folders(run / "checkpoints")
    if checkpoint is not None:
        name = checkpoint if isinstance(checkpoint, str) else f"step-{checkpoint:07d}"
        folders = [run / "checkpoints" / name]
    damaged: list[str] = []
    newest = newest_complete(folders, lambda folder, problem: damaged.append(f"{folder.name}: {problem}"))
    if newest is None and damaged:
        raise BadInput(f"{run} holds no complete checkpoint ({'; '.join(damaged)}); train it again.")
    if newest is None:
        raise BadInput(f"{run} holds no checkpoint yet; train until its first one is written.")
    if damaged:
        log.warning("%s: taking %s, because of damage in %s", run, newest.name, "; ".join(damaged))
    kind = _pipeline_kind(run / "pipeline.json")
    trained, decoder = PARTS[kind]
    weights = "raw" if raw or kind == ENDOGEN else "ema"  # EndoGen has no average
    return ModelFolder(
        newest / (trained if weights == "raw" else "ema"),
        run / decoder,
        geometry,
        step=checkpoint_step(newest),
        weights=weights,
        vae_digest=read_json_object(newest / "state.json").get(decoder),
        kind=kind,
    )


def trained_labels(run: Path) -> tuple[str, ...]:
    """Return the labels that a run's checkpoints were trained with, in the order of the embedding's rows.

    Empty if there is no checkpoint, or it was trained without labels. Raises `BadInput` if pipeline.json, in
    which they are stored, is damaged.
    """
    described = run / "pipeline.json"
    if not is_file(described) or not checkpoint_folders(run / "checkpoints"):
        return ()
    return tuple(_read_conditions(described, read_json_object(described)).get("labels", ()))


def stage_2_folder(run: Path) -> Path:
    """Return `run` if it is a run folder of stage 2, or the only one in it. Raises `BadInput`."""
    if (run / "pipeline.json").is_file():
        return run
    inside = sorted(path.parent for path in run.glob("*/pipeline.json"))
    if len(inside) != 1:
        which = f"; did you mean {' or '.join(map(str, inside))}?" if inside else ""
        raise BadInput(f"{run} is no run folder of stage 2 (runs/NAME/dit-PRESET){which or '.'}")
    return inside[0]


def find_pipeline(model: str | Path) -> ModelFolder:
    """Find a pipeline folder; a `model` that is no path is one that comes with MedSora, or a hub name.

    Raises `BadInput`.
    """
    if Path(model).exists():
        folder = Path(model)
    elif str(model) in shipped_models():
        folder = models_folder() / model
    else:
        folder = _download(str(model))
    index = folder / "model_index.json"
    if not index.is_file():
        runs = sorted(str(path.parent) for path in folder.glob("*/pipeline.json"))
        hint = f"; did you mean {' or '.join(runs)}?" if runs else f"; {WAYS}."
        raise BadInput(f"{folder} holds neither a run nor a saved pipeline (no model_index.json){hint}")
    kind = _pipeline_kind(index)
    geometry = _read_geometry(index)
    refuse_changed(folder, index.name)
    trained, decoder = (folder / part for part in PARTS[kind])
    scheduler = folder / "scheduler" if kind == MEDSORA else None
    return ModelFolder(trained, decoder, geometry, scheduler, kind=kind)


def _pipeline_kind(path: Path) -> str:
    """Return the class of the pipeline that a JSON file describes; a run of stage 2 does not name it."""
    usual = MEDSORA if path.name == "pipeline.json" else None
    kind = read_json_object(path).get("_class_name", usual)
    if not isinstance(kind, str) or kind not in PARTS:
        raise BadInput(f"{path} describes {shown(kind)}, not a {' or '.join(PARTS)}; {WAYS}.")
    return kind


def _read_geometry(path: Path) -> dict[str, Any]:
    values = read_json_object(path)
    if values.get("_class_name") == ENDOGEN:
        values["image_latents"] = 0
    for key in GEOMETRY:
        if values.get(key) is None:
            raise BadInput(f"{path} has no {key} of the clip; save the model again with this version.")
    check_clip(values, str(path))
    known = checked_trained_on({key: values.get(key) for key in TRAINED_ON}, f"{path} (the training clips)")
    return {key: values[key] for key in GEOMETRY} | known | _read_conditions(path, values)


def checked_trained_on(values: Any, source: str) -> dict[str, Any]:
    """Return interval, rate and crop of the training clips, those that are not None. Raises `BadInput`."""
    if not isinstance(values, dict):
        raise BadInput(f"{source} must hold names and values, not {values!r}.")
    known = {key: values[key] for key in TRAINED_ON if values.get(key) is not None}
    interval, rate = known.get("interval", 1), known.get("rate", 1.0)
    if type(interval) is not int or interval < 1:
        raise BadInput(f"{source}: interval is {shown(interval)} but must be a whole number of at least 1.")
    if type(rate) not in (int, float) or not 0 < rate <= MAX_FPS:
        raise BadInput(
            f"{source}: rate is {shown(rate)} but must be frames per second, above 0 and at most {MAX_FPS}."
        )
    if "crop" in known:
        crop = checked_crop(known["crop"], f"{source}: crop")
        known["crop"] = crop if isinstance(crop, str) else list(crop)
    return known


def _read_conditions(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return the conditions that the model was trained for: labels, first frames."""
    conditions = {}
    for key, kind in CONDITIONS.items():
        entries = values.get(key, [])
        if not isinstance(entries, list) or any(type(entry) is not kind for entry in entries):
            raise BadInput(f"{path}: {key} must be a list of {CONDITION_WORDS[key]}; save the model again.")
        check_value(key, entries, kind, str(path))
        if entries:
            conditions[key] = entries
    return conditions


def _download(name: str) -> Path:
    # The first part of a mistyped path is mostly a folder that exists: then it is no name of the hub.
    if not HUB_NAME.fullmatch(name) or Path(name).parent.exists():
        shipped = ", ".join(shipped_models()) or "none"
        raise BadInput(f"there is no folder {name}; {WAYS}. Models that come with MedSora: {shipped}.")
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(
            f"{name} is no folder here and could not be downloaded from the Hugging Face Hub ({reason}); "
            f"{WAYS}."
        ) from error


def find_vae(
    named: str | Path,
    hint: str | None = None,
    kinds: tuple[str, ...] = (FrequencyCompensatedVAE.__name__,),
) -> Path:
    """Return the folder of the saved VAE that `named` means: it itself, a stage 1 run, or a whole run.

    Raises `BadInput`, ending in `hint`, where there is none of a class in `kinds`.
    """
    hint = hint or f"give a run of {command_name('train-vae')} or a saved VAE's folder"
    named = Path(named)
    for folder in (named / "final", named, named / "vae" / "final", named / "vae"):
        if is_file(folder / "config.json"):
            kind = read_json_object(folder / "config.json").get("_class_name")
            if kind not in kinds:
                raise BadInput(
                    f"{folder} holds {shown(kind)}, not a {' or '.join(kinds)}; give a VAE's folder."
                )
            return folder
    if set(kinds) <= TOKENIZERS.keys():
        raise BadInput(f"there is no trained tokenizer in {named}; {hint}.")
    raise BadInput(f"there is no trained VAE in {named}; {hint}.")


def find_base(
    config: Config, kind: type[ModelMixin] = AutoencoderKLCogVideoX
) -> tuple[str | Path, str | None]:
    """Return `vae.base`, `checked_base` as one of `kind`, and `vae.weights`."""
    weights = shipped_file(config.vae.weights)
    return checked_base(shipped_file(config.vae.base), weights, kind), weights


def checked_base(base: str, weights: str | None, kind: type[ModelMixin]) -> str | Path:
    """Return the argument of `vae.base.load_base` for `base`; a hub name becomes its downloaded folder.

    Raises `BadInput` where a model of `kind` is beyond the limits of `medsora.saved.limits`. What is missing,
    of another class or a tokenizer's preset is left to `load_base` and its sentences.
    """
    if HUB_NAME.fullmatch(base) and not base.endswith(".json") and not Path(base).exists():
        files = [*BASE_FILES, *(f"vae/{name}" for name in BASE_FILES)]
        with suppress(OSError, ValueError):
            base = snapshot_download(base, allow_patterns=files)
    given = Path(weights) if weights and os.path.lexists(weights) else None
    if base.endswith(".json") and os.path.lexists(base):
        check_base(Path(base), given, kind)
    elif given is not None:
        shapes_in(given)
    if given is not None:
        with bad_input_from_errors():
            read_weights(given)  # compares their digest
    if base in TOKENIZER_PRESETS:
        return base
    for config in (Path(base, "config.json"), Path(base, "vae", "config.json")):
        named = read_json_object(config).get("_class_name") if is_file(config) else None
        for known in (kind, FrequencyCompensatedVAE):  # without compensation, the latter is a base, too
            if named == known.__name__:
                check_model(config.parent, known)
                return base
    return base


def load_vae(folder: Path) -> FrequencyCompensatedVAE | VQTokenizer:
    """Load the VAE, tokenizer or plain base of a folder that `find_vae` gave; `BadInput` if incomplete."""
    if read_json_object(folder / "config.json")["_class_name"] == VQTokenizer.__name__:
        check_model(folder, VQTokenizer)
        return VQTokenizer.from_pretrained(folder)
    if _is_base(folder):
        check_model(folder, AutoencoderKLCogVideoX)
        return FrequencyCompensatedVAE.from_base(folder, compensation=False)
    check_model(folder, FrequencyCompensatedVAE)
    return FrequencyCompensatedVAE.from_pretrained(folder)


def trained_vae(config: Config) -> VideoVAE:
    """Return the frozen VAE of stage 2, in evaluation mode: that of `vae.path`, or what stage 1 trained.

    A per-frame VAE (`vae.kind`) has no stage 1: without a `vae.path` it is the base itself.

    `UNTOUCHED_BASE` is `vae.base`. That, and a plain base of diffusers in `vae.path`, get the compensation
    that the config names: untrained, it changes nothing. Raises `BadInput` where there is no VAE.
    """
    if config.vae.kind == "vq":
        raise BadInput("vae.kind is vq, a tokenizer, whose codes stage 2 cannot diffuse; choose another.")
    if config.vae.kind == "per-frame":
        vae = _per_frame_vae(config)
    elif _takes_base(config):
        with bad_input_from_errors():
            vae = _with_untrained_compensation(*find_base(config), config)
    elif config.vae.path is None:
        trained = f"run {command_name('train-vae')} with the same config first"
        vae = load_vae(find_vae(config.vae_dir, f"{trained}, or set vae.path"))
    else:
        folder = find_vae(config.vae.path, kinds=VAE_OR_BASE)
        if _is_base(folder):
            check_model(folder, AutoencoderKLCogVideoX)
            vae = _with_untrained_compensation(folder, None, config)
        else:
            vae = load_vae(folder)
    return vae.eval().requires_grad_(False)


def trained_tokenizer(config: Config) -> ModelMixin:
    """Return the frozen tokenizer (`vae.kind: vq`) of `vae.path`, or the one that stage 1 trained.

    `UNTOUCHED_BASE` is `vae.base` with `vae.weights`. Raises `BadInput` where there is none.
    """
    if config.vae.kind != "vq":
        raise BadInput(f"vae.kind is {config.vae.kind}, but EndoGen writes a tokenizer's codes: set vq.")
    if _takes_base(config):
        if config.vae.weights is None:
            raise BadInput("vae.path is base, a tokenizer without training: name its vae.weights.")
        with bad_input_from_errors():
            tokenizer = VQTokenizer.from_base(*find_base(config, VQTokenizer.base_class))
        return tokenizer.requires_grad_(False)
    hint = f"set vae.path, or run {command_name('train-vae')} with the same config first"
    return load_tokenizer(config.vae.path or config.vae_dir, hint)


def load_tokenizer(named: str | Path, hint: str) -> ModelMixin:
    """Load the frozen tokenizer that `named` means to `find_vae`, or LlamaGen's published file.

    Raises `BadInput`; where there is none, it ends in `hint`.
    """
    if is_file(Path(named)):
        with bad_input_from_errors():
            return read_published_tokenizer(named).requires_grad_(False)
    return load_vae(find_vae(named, hint, kinds=tuple(TOKENIZERS))).eval().requires_grad_(False)


def _per_frame_vae(config: Config) -> PerFrameVAE:
    named, weights = config.vae.path, None
    if named is None or _takes_base(config):
        named, weights = find_base(config, AutoencoderKL)
    else:
        named = checked_base(named, None, AutoencoderKL)
    if Path(named).is_dir():
        named = find_vae(named, kinds=(PerFrameVAE.__name__, AutoencoderKL.__name__))
        if read_json_object(named / "config.json")["_class_name"] == PerFrameVAE.__name__:
            check_model(named, PerFrameVAE)
            return PerFrameVAE.from_pretrained(named)
        check_model(named, AutoencoderKL)
    with torch.random.fork_rng(devices=[]):  # a run recognises its VAE by its weights, random ones too
        torch.manual_seed(0)
        return PerFrameVAE.from_base(named, weights)


def _takes_base(config: Config) -> bool:
    """Return whether `vae.path` is the word `UNTOUCHED_BASE`, unless a folder has that name."""
    return config.vae.path == UNTOUCHED_BASE and not Path(UNTOUCHED_BASE).exists()


def _is_base(folder: Path) -> bool:
    return read_json_object(folder / "config.json")["_class_name"] == AutoencoderKLCogVideoX.__name__


def _with_untrained_compensation(
    base: str | Path, weights: str | None, config: Config
) -> FrequencyCompensatedVAE:
    kind = config.vae.compensation_kind
    # A run recognises its VAE by all its weights: they depend neither on a seed nor on a default.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FrequencyCompensatedVAE.from_base(
            base,
            compensation=config.vae.compensation,
            compensation_kind=COMPENSATION_KINDS[0] if kind == "auto" else kind,
            weights=weights,
        )
