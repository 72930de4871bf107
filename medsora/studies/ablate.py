"""`medsora study ablate`: train a config's variants on the same clips, noise and latents, and compare them.

Every run is a process of `medsora train-vae` or `train-dit` with overrides, so its command can be repeated
by itself, its memory goes with it, and a run that was stopped is resumed. Runs that another process of the
same study holds are left to it.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import torch

from medsora.config.load import load_config
from medsora.config.schema import FIXED, STAGE_1, STAGE_2, Config, all_keys
from medsora.errors import BadInput, Interrupted
from medsora.runtime.digests import sealed
from medsora.runtime.exit import STOP_SIGNALS
from medsora.runtime.files import make_folder, write_json
from medsora.saved.checkpoint import checkpoint_folders, checkpoint_step, newest_complete
from medsora.saved.find import trained_vae
from medsora.saved.limits import read_json_object
from medsora.studies.report import Run, StudyReport
from medsora.studies.scores import Scoring, check_phantom, read_scores
from medsora.studies.variants import COMMANDS, Variant
from medsora.training.dry_run.report import phantom_labels
from medsora.training.open_clips import denoiser_clip_spec, split_clips
from medsora.training.run.folder import (
    ELAPSED,
    hold_folder,
    previous_config,
    read_log,
    with_compensation_kind,
)
from medsora.training.schedule import UNLIMITED_STEPS
from medsora.training.stage1.build import build_loss, build_vae
from medsora.training.stage2.build import add_adapter, build_denoiser, build_prior, token_grid

SETTINGS_NAME = "study.json"
RENAMED = {"judge_clips": "classifier_clips", "judge_epochs": "classifier_epochs"}  # scoring of older studies
FILL_CACHES = "medsora.training.fill_caches"
EVALUATIONS = 4  # per run, evenly spaced over its steps
NEVER = UNLIMITED_STEPS
TOLERANCE = 0.02  # minutes may differ by this share of a segment
FAILED, REFUSED, INTERRUPTED = 1, 2, 75  # exit statuses


@dataclass(frozen=True)
class Study:
    """The variants to compare, and how long each run trains: `steps`, or `minutes`.

    `train_minutes` says what counts as a minute of training.
    """

    config: str
    overrides: tuple[str, ...]
    stage: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    steps: int | None
    minutes: float | None
    clips: int
    folder: Path
    scoring: Scoring | None = None

    def _overrides_of(self, variant: Variant, seed: int) -> list[str]:
        """Return all overrides of one run; those of the study come last."""
        stage, config = self.stage, variant.config
        of_stage = {
            "epochs": "null",
            "max_steps": self.steps or NEVER,
            "eval_clips": self.clips,
            "early_stop": "null",
            "keep": 1,
        }
        # Evaluations and sheets between steps would count as minutes, unless a user asks for them.
        between = [f"{stage}.sample_every={NEVER}"] * (stage == STAGE_2)
        if self.steps:
            of_stage["eval_every"] = max(1, self.steps // EVALUATIONS)
        else:
            between.append(f"{stage}.eval_every={NEVER}")
            of_stage["log_every"] = 1
        overrides = [
            *between,
            *self.overrides,
            *variant.changes,
            f"run.dir={_quoted(self.folder)}",
            f"run.name={variant.run_name(seed)}",
            f"run.seed={seed}",
            "tracking.trackers=[]",
            *(f"{stage}.{name}={value}" for name, value in of_stage.items()),
        ]
        if stage == STAGE_2:
            overrides += ["cache.latents=disk", "train_dit.sample_videos=1", "train_dit.sample_steps=1"]
            if config.vae.path is None and config.vae.kind == "causal":
                overrides.append(f"vae.path={_quoted(config.vae_dir)}")
        return overrides

    def config_of(self, variant: Variant, seed: int) -> Config:
        """Return the config of one run."""
        return load_config(self.config, self._overrides_of(variant, seed))

    def folder_of(self, variant: Variant, seed: int) -> Path:
        """Return the stage's folder of one run."""
        run = replace(variant.config.run, dir=str(self.folder), name=variant.run_name(seed))
        return replace(variant.config, run=run).folder(self.stage)

    def command(self, variant: Variant, seed: int, *more: str) -> list[str]:
        """Return the words of one run's command, after `medsora`."""
        return [COMMANDS[self.stage], "--config", self.config, *self._overrides_of(variant, seed), *more]

    def shown_command(self, variant: Variant) -> str:
        """Return the command of a variant's first run, as it is typed."""
        limit = [] if self.minutes is None else ["--time-limit", f"{self.minutes:g}"]
        return shlex.join(["medsora", *self.command(variant, self.seeds[0], *limit)])

    def settings(self) -> dict[str, Any]:
        """Return what all runs of the folder have in common, by name; variants and seeds may be added."""
        config = load_config(self.config, list(self.overrides))
        names = (name.split(".") for name, key in all_keys().items() if key.resume == FIXED)
        keys = {f"{a}.{b}": getattr(getattr(config, a), b) for a, b in names if a != "run"}
        scoring = asdict(self.scoring) if self.scoring else None
        return {"steps": self.steps, "minutes": self.minutes, "clips": self.clips, "scoring": scoring} | keys

    def run(self, variant: Variant, seed: int) -> Run:
        """Return the state of one run."""
        folder = self.folder_of(variant, seed)
        lines = read_log(folder)
        evaluations = _evaluations(lines)
        config = previous_config(folder)
        end = getattr(config, self.stage).max_steps if config else None
        finished = end in evaluations and self.steps in (None, end)
        of_clips = read_scores(folder.parent)
        return Run(variant.title, seed, end if finished else None, evaluations, _minutes(lines), of_clips)

    def report(self, parameters: dict[str, int], command: str, **more: str) -> StudyReport:
        """Return the tables of the runs so far; `more` are other fields of the report."""
        return StudyReport(
            stage=self.stage,
            budget=f"{self.steps} step{'s' * (self.steps != 1)}" if self.steps else _of_minutes(self.minutes),
            seeds=self.seeds,
            clips=self.clips,
            parameters=parameters,
            runs=[self.run(variant, seed) for variant in self.variants for seed in self.seeds],
            commands={each.title: self.shown_command(each) for each in self.variants},
            command=command,
            against_steps=self.minutes is None,
            **more,
        )


def check(study: Study) -> dict[str, int]:
    """Return every variant's parameters that are trained, by title.

    Raises `BadInput`, naming the variant, for one that cannot be built.
    """
    parameters = {}
    if study.scoring is not None and study.stage == STAGE_2:
        check_phantom(study.variants[0].config)
    for variant in study.variants:
        config = study.config_of(variant, study.seeds[0])
        try:
            parameters[variant.title] = _trained_parameters(config, study.stage)
        except (ValueError, OSError) as error:
            raise BadInput(f"{variant.title}: {error}") from error
        settings = getattr(config, study.stage)
        if study.minutes and settings.lr_decay != "none":
            raise BadInput(
                f"{study.stage}.lr_decay is {settings.lr_decay}, which depends on the number of steps, and "
                f"--minutes leaves it open; add {study.stage}.lr_decay=none, or take --steps."
            )
    return parameters


def exit_if_failed(failed: Sequence[str]) -> None:
    """Name the runs that failed and leave with status 1; nothing without them."""
    if failed:
        print(f"error: {len(failed)} of the runs failed (see above): {'; '.join(failed)}", file=sys.stderr)
        sys.exit(FAILED)


def run_all(study: Study, parameters: dict[str, int], command: str) -> list[str]:
    """Train the unfinished runs, all variants of a seed before the next; write the tables after each.

    The study's folder holds its settings (`keep_settings`). Returns those that failed: a loss or sampled
    clips that are not finite, for instance. Raises `BadInput` for a run that is refused, `Interrupted` after
    a run that was stopped and saved.
    """
    failed = []
    for seed in study.seeds:
        for variant in study.variants:
            if not _train_and_score(study, variant, seed):
                failed.append(f"{variant.title}, seed {seed}")
            study.report(parameters, command).write(study.folder)
    return failed


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write a study's settings into its folder.

    Raises `BadInput` if its runs had others: they would be compared with new ones, or taken for them.
    """
    path, settings = folder / SETTINGS_NAME, json.loads(json.dumps(settings, default=asdict))
    before = read_json_object(path) if path.is_file() else settings
    if scoring := before.get("scoring"):
        before["scoring"] = {RENAMED.get(name, name): value for name, value in scoring.items()}
    for name, value in settings.items():
        if before.get(name, value) != value:
            raise BadInput(
                f"{folder} holds a study with {name} {json.dumps(before[name])}, not {json.dumps(value)}; "
                "take another --out, or the same settings."
            )
    make_folder(folder)
    write_json(path, sealed(before | settings))


def _train_and_score(study: Study, variant: Variant, seed: int) -> bool:
    """Train and score one run as far as that is not done; return whether nothing failed.

    A run that another process holds is left to it.
    """
    folder = study.folder_of(variant, seed)
    make_folder(folder.parent)
    try:
        lock = hold_folder(folder.parent, patience_s=0.0)
    except BadInput:
        print(f"{folder.parent} is left to the process that works on it.", file=sys.stderr)
        return True
    with lock:
        if study.run(variant, seed).steps is None and not _train(study, variant, seed):
            return False
        if study.scoring is None or study.run(variant, seed).steps is None:
            return True
        return study.scoring.score(folder, study.config_of(variant, seed), study.stage, launch)


def _train(study: Study, variant: Variant, seed: int) -> bool:
    """Train and evaluate one run to its end; return whether it did not fail."""
    if study.minutes is None:
        return launch(study.command(variant, seed)) != FAILED
    if study.stage == STAGE_2:  # not in the time of the run that comes first
        launch(study.command(variant, seed)[1:], module=FILL_CACHES)
    failed = train_minutes(study, [variant], seed, study.minutes)
    return failed is None and end_run(study, variant, seed)


def train_minutes(
    study: Study, variants: Sequence[Variant], seed: int, segment: float, start: float = 0.0
) -> Variant | None:
    """Train variants in turns of `segment` minutes until each has had the study's; return one that failed.

    Only the time from a process's first step to its last counts: a process gets more time for its start,
    assumed to take as long as the one before, first `start` minutes. Raises `BadInput` if two
    segments in a row reach no step, and as `launch` does. The last, shorter turn is left out, with a
    message, once several processes reached no step in it.
    """
    segment = min(segment, study.minutes)
    start_minutes = dict.fromkeys((variant.title for variant in variants), start)
    idle, measured = dict.fromkeys(start_minutes, 0), set()  # measured: variants whose start is known
    over = set()  # variants for which too little time is left for a step
    waiting = variants
    while waiting := [
        variant
        for variant in waiting
        if variant.title not in over
        and study.minutes - study.run(variant, seed).minutes > TOLERANCE * segment
    ]:
        for variant in waiting:
            before = study.run(variant, seed).minutes
            turn = min(segment, study.minutes - before)
            limit = turn + start_minutes[variant.title]
            began = monotonic()
            words = study.command(variant, seed, "--time-limit", f"{limit:.3f}")
            if launch(words, timed=True) == FAILED:
                return variant
            gained = study.run(variant, seed).minutes - before
            start_minutes[variant.title] = max(0.0, (monotonic() - began) / 60 - gained)
            if gained > 0:
                measured.add(variant.title)
                idle[variant.title] = 0
                continue
            idle[variant.title] += 1
            covered = variant.title in measured or idle[variant.title] * turn > segment
            if idle[variant.title] < 2 or not covered:
                continue
            if turn == segment:
                option = "--segment" if segment < study.minutes else "--minutes"
                raise BadInput(
                    f"no step of {variant.title} fits into {_of_minutes(segment)}; give more by {option}."
                )
            over.add(variant.title)
            print(
                f"{variant.title}, seed {seed} ends after {before:.2f} of {_of_minutes(study.minutes)}: no "
                "step fits into the rest.",
                file=sys.stderr,
            )
    return None


def end_run(study: Study, variant: Variant, seed: int) -> bool:
    """Evaluate a run of `minutes` where its time is over; return whether it did not fail."""
    folder = study.folder_of(variant, seed)
    newest = newest_complete(checkpoint_folders(folder / "checkpoints"), lambda *_: None)
    if newest is None:
        raise BadInput(
            f"no step of {variant.title} fits into {_of_minutes(study.minutes)}; give more by --minutes."
        )
    end = f"{study.stage}.max_steps={checkpoint_step(newest)}"
    return launch([*study.command(variant, seed), end]) != FAILED


def launch(words: Sequence[str], *, timed: bool = False, module: str = "medsora") -> int:
    """Run a `module`'s command in a process of its own, passing on stop signals; return its status.

    A `timed` one may end by its time limit. Raises `BadInput` and `Interrupted` where the command did.
    """
    interrupted = []
    process = subprocess.Popen([sys.executable, "-m", module, *words])

    def pass_on(number: int, frame: FrameType | None) -> None:
        interrupted.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted or (status == INTERRUPTED and not timed):
        raise Interrupted("saved; run the same command to resume.")
    if status == REFUSED:
        raise BadInput(f"this run was refused (see above): {shlex.join([module, *words])}")
    return FAILED if status not in (0, INTERRUPTED) else status


def _evaluations(lines: Sequence[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Return the held-out metrics of a log by step."""
    by_step: dict[int, dict[str, float]] = {}
    for line in lines:
        metrics = {name: value for name, value in line.items() if name.startswith("held_out/")}
        if metrics:
            by_step.setdefault(line["step"], {}).update(metrics)
    return by_step


def _minutes(lines: Sequence[dict[str, Any]]) -> float:
    """The time until the last step, without that of an evaluation after it or before the first step."""
    steps = (line for line in lines if not any(name.startswith("held_out/") for name in line))
    first = max((line.get(ELAPSED, 0.0) for line in lines if line["step"] == 0), default=0.0)
    return max((line.get(ELAPSED, 0.0) - first for line in steps), default=0.0) / 60


def _of_minutes(minutes: float) -> str:
    return f"{minutes:g} minute{'s' * (minutes != 1)}"


def _quoted(path: Path) -> str:
    """A path as an override's value: in quotation marks where YAML would read it otherwise."""
    return str(path) if re.fullmatch(r"[\w./-]+", str(path)) else json.dumps(str(path))


def _trained_parameters(config: Config, stage: str) -> int:
    if stage == STAGE_1:
        config = with_compensation_kind(config)
        build_loss(config)
        return sum(
            parameter.numel() for parameter in build_vae(config).trainable_parameters(config.train_vae.train)
        )
    vae = trained_vae(config)
    vae.check_video_shape(config.data.frames, *config.data.height_width)
    with torch.device("meta"):
        model = build_denoiser(config, vae.latent_channels, len(_labels(config)))
    token_grid(config, vae, model.config.patch)
    if config.alignment.weight > 0:
        add_adapter(model, build_prior(config, model.num_features))
    return sum(parameter.numel() for parameter in model.parameters())


def _labels(config: Config) -> tuple[str, ...]:
    if config.data.root is None:
        return phantom_labels(config.data.labels).names
    spec = denoiser_clip_spec(config)
    return split_clips(config, spec.check(config.data.root), spec, config.dit_dir)[0].labels.names
