"""Fine-tune the shipped model on clips of another look, within minutes, and report the change."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsora.config.load import load_config
from medsora.config.schema import STAGE_1, STAGE_2, Config
from medsora.demo.outcome import AFTER, BEFORE, score_fine_tuning
from medsora.demo.pace import shortened
from medsora.demo.report import write_demo_report
from medsora.errors import Interrupted
from medsora.evaluation.sanity.baselines import Outcome
from medsora.runtime.interruption import TIME_LIMIT_REACHED
from medsora.sampling.run import SamplingSettings, sample_videos
from medsora.saved.checkpoint import checkpoint_folders, checkpoint_step
from medsora.saved.find import find_model
from medsora.training.fill_caches import fill_caches
from medsora.training.open_clips import clip_folder
from medsora.training.stage1.loop import train_vae
from medsora.training.stage2.loop import train_dit

SAMPLER, STEPS = "dpmpp", 20
STAGE_1_SHARE = 0.35  # stage 1 takes this share of the time left after the first sampling
COMPARISON_S = 20  # reserved for comparing clips and writing the report
MIN_TRAINING_S = 20  # each stage trains this long, however slow the machine is


def adapt(config: Config, videos: int, minutes: float, part: Callable[[str], None]) -> tuple[Path, Outcome]:
    """Fine-tune both stages of `config`, whose `denoiser.weights` names the trained model, in `minutes`.

    Each stage ends when its time is over; on a slow machine the demo takes longer by what cannot be left out.
    Returns the report's path and the outcome.
    """
    ends = time.monotonic() + 60 * minutes
    find_model(str(config.denoiser.weights))  # before minutes of rendering
    part("render phantom clips of another look")
    clip_folder(config, show=True)
    before, after = config.run_dir / "before", config.run_dir / "after"

    part(f"sample {videos} videos of the model that ships")
    began = time.monotonic()
    _sample(config, str(config.denoiser.weights), before, videos)
    reserved_s = COMPARISON_S + 1.2 * (time.monotonic() - began)

    part("stage 1: fine-tune the VAE")
    _train(train_vae, config, STAGE_1, STAGE_1_SHARE * (ends - reserved_s - time.monotonic()))
    part("stage 2: fine-tune the denoiser")
    fill_caches(config)
    left_s = max(ends - reserved_s - time.monotonic(), MIN_TRAINING_S)
    run = _train(train_dit, shortened(config, left_s), STAGE_2, left_s)

    part(f"sample {videos} videos of the fine-tuned model")
    _sample(config, str(run), after, videos)
    part("compare and write the report")
    outcome = score_fine_tuning(config, before, after)
    report = write_demo_report(
        config,
        {AFTER: after, BEFORE: before},
        f"Sampled with {STEPS} steps of DPM-Solver++ from the same seeds.",
        outcome,
        "MedSora, fine-tuned for another clinic's endoscope",
    )
    return report, outcome


def _sample(config: Config, model: str, out: Path, videos: int) -> None:
    options = {"num_videos": videos, "steps": STEPS, "sampler": SAMPLER, "seed": config.run.seed}
    sample_videos(SamplingSettings(model=model, out=out, **options))


def _train(train: Callable[..., Path], config: Config, stage: str, seconds: float) -> Path:
    """Train until the time limit or the config's steps; the state then is the run's result.

    A run that ended so keeps its number of steps.
    """
    folder = config.folder(stage)
    if (folder / "config.yaml").is_file():
        begun = load_config(folder / "config.yaml", outputs_anywhere=True)
        config = _with_steps(config, stage, getattr(begun, stage).max_steps)
    try:
        return train(config, time_limit_minutes=max(seconds, MIN_TRAINING_S) / 60)
    except (Interrupted, KeyboardInterrupt) as stopped:  # the latter before the first step
        if not str(stopped).startswith(TIME_LIMIT_REACHED):
            raise
    reached = max(map(checkpoint_step, checkpoint_folders(folder / "checkpoints")), default=0)
    return train(_with_steps(config, stage, max(reached, 1)))


def _with_steps(config: Config, stage: str, steps: int) -> Config:
    settings: Any = replace(getattr(config, stage), max_steps=steps)
    return replace(config, **{stage: settings})
