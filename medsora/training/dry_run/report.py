"""`--dry-run`: everything that a run needs, built, counted and checked, and nothing trained or written.

Ends with "ready", or with the list of what is missing and exit status 2.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
from torch._subclasses.fake_tensor import FakeTensorMode

from medsora.config.schema import STAGE_1, STAGE_2, Config, GeneratorTrainingConfig, TrainingConfig
from medsora.config.shipped import shipped_file
from medsora.data.checking.check import clip_windows
from medsora.data.checking.scan import Scan
from medsora.data.clips import ClipSpec
from medsora.data.labels import NO_LABELS, Labels
from medsora.data.phantom.corpus import FPS, LABELS_NAME
from medsora.data.phantom.render import KINDS
from medsora.data.split import HELD_OUT, split_by_video
from medsora.denoiser.base import Denoiser
from medsora.errors import BadInput
from medsora.flow_prior import FlowPrior
from medsora.runtime.files import nearest_folder
from medsora.saved.checkpoint import checkpoint_folders, checkpoint_step, newest_complete
from medsora.saved.find import trained_vae
from medsora.saved.optimizer import moments
from medsora.training.accelerator import check_compile, check_launcher, check_precision
from medsora.training.cache.latents import latent_cache_bytes
from medsora.training.cache.prior import prior_cache_bytes
from medsora.training.dry_run.memory import (
    MemoryEstimate,
    denoiser_flops,
    estimate_denoiser,
    estimate_vae,
    size_bytes,
    step_bytes,
)
from medsora.training.open_clips import clip_spec, denoiser_clip_spec, folder_changes, split_clips
from medsora.training.run.folder import previous_config, refuse_changes, refuse_lost, with_compensation_kind
from medsora.training.run.trackers import usable_trackers
from medsora.training.schedule import Schedule
from medsora.training.stage1.build import build_loss, build_vae, unused_path_note
from medsora.training.stage1.crops import check_crop
from medsora.training.stage2.build import (
    add_adapter,
    build_denoiser,
    build_prior,
    kept_compensation_note,
    start_from,
    token_grid,
)
from medsora.vae import FrequencyCompensatedVAE, VideoVAE

CUDA_GIB = 0.5
CUDA_ITSELF = f"on a GPU, CUDA itself about {CUDA_GIB} GiB"
USUAL_GPU_GIB, USUAL_SIDES_PX, USUAL_BATCHES = 24, (128, 256), (2, 16)
# Peak TFLOPS of dense float32, TF32 and bf16 (fp16) products, by NVIDIA's data sheets.
GPUS = {"RTX 3090": (35.6, 35.6, 71.0), "H200": (67.0, 494.7, 989.5)}
REACHED = 0.25  # assumed share of the peak FLOP/s


class Findings:
    """Output of a dry run, and the missing requirements."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.steps_done = self.steps_left = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Record an error in a part of the run, and continue with the others."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.missing.append(f"{name}: {error}")

    def line(self, name: str, text: str) -> None:
        """Print one line of the table."""
        print(f"{name:22} {text}")

    def memory(self, estimate: MemoryEstimate, batch: int) -> None:
        """Print an estimate; on a CPU also what the process took before any of it."""
        self.line("memory per process", f"for {batch} clips at once, estimated")
        for name, size in estimate.lines():
            if size:
                self.line(f"  {name}", f"{_readable(size):>10}")
        before = psutil.Process().memory_info().rss
        self.line("  and the libraries", f"{_readable(before):>10} on a CPU; {CUDA_ITSELF}")

    def conclude(self) -> None:
        """Print "ready", that the run is finished, or what is missing; then raise `BadInput`."""
        if not self.missing:
            print("ready" if self.steps_left else "nothing is left to train")
            return
        print("not ready:")
        for sentence in self.missing:
            print(f"  {sentence}")
        raise BadInput(f"{len(self.missing)} of what this run needs is missing or wrong, see the list above.")


def dry_run_denoiser(config: Config, processes: int = 1) -> None:
    """Check stage 2, for `processes` processes; raises `BadInput` if anything is missing."""
    findings, settings = Findings(), config.train_dit
    vae = model = prior = None
    with findings.part("stage 1's VAE"):
        vae = trained_vae(config)
    lacks_vae = vae is None
    if lacks_vae and (vae := _vae_to_train(config)):
        findings.line("note", "without stage 1's VAE, the estimates count one of its architecture")
    if vae and (note := kept_compensation_note(config, vae)):
        findings.line("note", note)
    with findings.part("the clip's size"):
        kind = type(vae) if vae else FrequencyCompensatedVAE
        kind.check_video_shape(config.data.frames, *config.data.height_width)
    clips, labels = count_clips(findings, config, denoiser_clip_spec(config), config.dit_dir)
    with findings.part("the denoiser"):
        model = build_denoiser(config, vae.latent_channels if vae else 16, len(labels))
        findings.line("denoiser", f"{config.denoiser.preset}, {model.num_parameters():,} trained parameters")
        token_grid(config, vae or FrequencyCompensatedVAE, model.config.patch)
    if config.alignment.weight > 0 and model is not None:
        with findings.part(f"the {config.alignment.kind} prior"):
            prior = build_prior(config, model.num_features)
            add_adapter(model, prior)
    if model is not None and not checkpoint_folders(config.dit_dir / "checkpoints"):
        with findings.part("the denoiser"):
            start_from(model, config.denoiser.weights, labels)
    schedule = inspect_run(findings, config, STAGE_2, clips, processes)
    if vae is None or len(findings.missing) > lacks_vae:
        return findings.conclude()
    batch = max(phase.batch for phase in settings.phases) // (processes * settings.accumulation)
    findings.memory(estimate_denoiser(config, model, vae, prior, batch), batch)
    _usual_gpu(findings, config, model, vae, prior)
    flops = samples_left(findings, schedule) * denoiser_flops(config, model, vae, prior)
    report_hours(findings, settings, flops / processes)
    with findings.part("the disk"):
        caches = _cache_bytes(config, model, vae, prior, clips)
        checkpoint = (2 + moments(settings.optimizer)) * size_bytes(model)
        check_disk(findings, config.dit_dir, settings, checkpoint, caches)
    findings.conclude()


def dry_run_vae(config: Config, processes: int = 1) -> None:
    """Check stage 1, for `processes` processes; raises `BadInput` if anything is missing."""
    config = with_compensation_kind(config)
    findings, settings = Findings(), config.train_vae
    vae = loss = None
    with findings.part("the base"):
        vae = build_vae(config)
        trained = sum(parameter.numel() for parameter in vae.trainable_parameters(settings.train))
        every = sum(parameter.numel() for parameter in vae.parameters())
        findings.line("VAE", f"{every:,} parameters, of which {trained:,} are trained")
    if note := unused_path_note(config):
        findings.line("note", note)
    with findings.part("the clip's size"):
        sized = vae or FrequencyCompensatedVAE
        sized.check_video_shape(config.data.frames, *config.data.height_width)
        check_crop(config, sized)
    with findings.part("the loss"):
        loss = build_loss(config)
    clips, _ = count_clips(findings, config, clip_spec(config), config.vae_dir)
    inspect_run(findings, config, STAGE_1, clips, processes)
    if findings.missing:
        return findings.conclude()
    batch = settings.batch // (processes * settings.accumulation)
    estimate = estimate_vae(config, vae, loss, batch)
    findings.memory(estimate, batch)
    with findings.part("the disk"):
        checkpoint = size_bytes(vae) + estimate.optimiser
        check_disk(findings, config.vae_dir, settings, checkpoint, {})
    findings.conclude()


def _vae_to_train(config: Config) -> FrequencyCompensatedVAE | None:
    """Return stage 1's VAE before training, for estimates; None without a stage 1, or if its base is bad.

    Where the base is a hub's, it has CogVideoX's architecture and no content.
    """
    if config.vae.kind != "causal" or config.vae.path is not None:
        return None
    config = with_compensation_kind(config)
    if Path(shipped_file(config.vae.base)).exists():
        with suppress(ValueError, OSError):  # the dry run of stage 1 names the fault
            return build_vae(config)
        return None
    with FakeTensorMode(allow_non_fake_inputs=True):
        return FrequencyCompensatedVAE(
            {}, config.vae.compensation, compensation_kind=config.vae.compensation_kind
        )


# Data and schedule


def count_clips(findings: Findings, config: Config, spec: ClipSpec, run: Path) -> tuple[int, tuple[str, ...]]:
    """Report how many clips are trained on and held out; return the first number, and the labels."""
    data, counts, labels = config.data, (0, 0), Labels()
    with findings.part("the clips"):
        if data.root is None:
            counts, where = (_phantom_clips(config, spec), "of the phantom, rendered when training starts")
            labels = phantom_labels(data.labels)
        else:
            report = spec.check(data.root)
            for note in report.complaints():
                findings.line("note", note)
            clips, held_out = split_clips(config, report, spec, run)
            for note in [*clips.notes(), *filter(None, [folder_changes(run, clips)])]:
                findings.line("note", note)
            counts = len(clips), len(held_out)
            labels = clips.labels
            where = f"in {data.root}, {len(report.bad)} of {len(report.reports)} sources left out"
        findings.line("clips", f"{counts[0]:,} to train on, {counts[1]:,} held out, {where}")
        if labels.names:
            findings.line("labels", labels.counts())
    return counts[0], labels.names


def phantom_labels(source: str) -> Labels:
    """Return the labels of a phantom that is not rendered yet; raises `BadInput` for another `source`."""
    if source in (NO_LABELS, LABELS_NAME):
        return Labels(tuple(sorted(KINDS)) if source == LABELS_NAME else ())
    raise BadInput(f"data.labels is {source}, but the phantom's labels lie in {LABELS_NAME}: set that.")


def _phantom_clips(config: Config, spec: ClipSpec) -> tuple[int, int]:
    data, phantom = config.data, config.phantom
    names = [f"phantom-{number:05d}.mkv" for number in range(phantom.videos)]
    held_out = list(split_by_video(names, data.holdout, config.run.seed).values()).count(HELD_OUT)
    scan = Scan(frames=phantom.frames, fps=FPS)
    windows = len(clip_windows(scan, spec.clip_frames, spec.interval, spec.rate, spec.stride))
    if not windows:
        raise BadInput(f"phantom.frames is {phantom.frames}, which is too short for a clip.")
    return windows * (phantom.videos - held_out), windows * held_out


def inspect_run(
    findings: Findings, config: Config, stage: str, clips: int, processes: int
) -> Schedule | None:
    """Report the schedule, which is returned, and the run's folder."""
    settings, schedule = getattr(config, stage), None
    with findings.part("the schedule"):
        schedule = Schedule.of(settings, max(clips, 1))
        schedule.check_processes(processes, settings.accumulation)
        per_epoch = " then ".join(f"{-(-clips // phase.batch):,}" for phase in schedule.phases)
        whole = f"{schedule.total_steps:,} in all, on {processes} process{'es' * (processes != 1)}"
        cut = settings.max_steps is not None and schedule.total_steps < settings.max_steps
        first = f"; {stage}.epochs ends it before max_steps" if cut else ""
        findings.line("steps", f"{per_epoch} per epoch, {whole}{first}")
    with findings.part("the run"):
        check_launcher(settings.precision)
        check_precision(settings.precision)
        if stage == STAGE_2 and settings.compile:
            check_compile()
        usable_trackers(config.tracking.trackers)
        previous = _inspect_folder(findings, config, stage)
        if previous is not None and schedule is not None:
            before = Schedule.of(getattr(previous, stage), max(clips, 1))
            if note := schedule.moved_decay(before, findings.steps_done):
                findings.line("note", note)
    if schedule is not None:
        findings.steps_left = max(schedule.total_steps - findings.steps_done, 0)
    return schedule


def samples_left(findings: Findings, schedule: Schedule) -> int:
    """Return how many clips the steps that are left train on, repeated ones included."""
    if not findings.steps_left:
        return 0
    last = schedule.step(schedule.total_steps - 1)
    return last.first_sample + last.batch - schedule.step(findings.steps_done).first_sample


# Other sizes, and time


def _usual_gpu(
    findings: Findings, config: Config, model: Denoiser, vae: VideoVAE, prior: FlowPrior | None
) -> None:
    """Report whether a step fits a usual GPU, at usual sizes and batches."""
    beside = "the VAE" if prior is None else f"the VAE, {config.flow.estimator} and {config.dino.model}"
    findings.line(f"fits {USUAL_GPU_GIB} GiB", f"a step of {config.denoiser.preset} with {beside}, estimated")
    for side in USUAL_SIDES_PX:
        of_size = replace(config, data=replace(config.data, size=side))
        for batch, size in step_bytes(of_size, model, vae, prior, USUAL_BATCHES).items():
            needed = size + int(CUDA_GIB * 2**30)
            fits = "yes" if needed <= USUAL_GPU_GIB * 2**30 else "no"
            findings.line(f"  {side} px, batch {batch}", f"{_readable(needed):>10}  {fits}")


def report_hours(findings: Findings, settings: GeneratorTrainingConfig, flops: float) -> None:
    """Report how long GPUs take for so many FLOPs."""
    number = 2 if settings.precision != "no" else int(settings.matmul_precision != "highest")
    hours = [
        f"{flops / (peaks[number] * 1e12 * REACHED) / 3600:.3g} h on an {gpu}" for gpu, peaks in GPUS.items()
    ]
    findings.line(
        "time",
        f"about {' or '.join(hours)}, assuming {REACHED:.0%} of the peak of "
        f"{('float32', 'TF32', 'bf16')[number]} products; {flops:.3g} FLOPs, without evaluations and samples",
    )


# The run's folder and the disk


def _inspect_folder(findings: Findings, config: Config, stage: str) -> Config | None:
    """Report whether the run is new; return the config of one that is resumed."""
    path = config.folder(stage)
    there = nearest_folder(path)
    if not os.access(there, os.W_OK) or not there.is_dir():
        raise BadInput(f"{path} cannot be written: {there} is no folder that may be written to.")
    refuse_lost(path)
    if (previous := previous_config(path)) is not None:
        refuse_changes(previous, config, stage, path)
        folders = checkpoint_folders(path / "checkpoints")
        newest = newest_complete(
            folders, lambda folder, problem: findings.line("damaged checkpoint", f"{folder} ({problem})")
        )
        if newest is not None:
            findings.steps_done = checkpoint_step(newest)
            findings.line("run folder", f"{path}, resumed after {newest.name}")
            return previous
        if folders:
            raise BadInput(f"{path} holds no complete checkpoint: put one back or take another run.name.")
    findings.line("run folder", f"{path}, new")
    return None


def _cache_bytes(
    config: Config, model: Denoiser, vae: VideoVAE, prior: FlowPrior | None, clips: int
) -> dict[str, int]:
    """Return the bytes that the caches grow to at most, by the folder that they lie in."""
    if config.cache.latents != "disk":
        return {}
    size_bytes = latent_cache_bytes(config, clips, vae)
    if prior is not None and config.cache.prior == "disk":
        grid = token_grid(config, vae, model.config.patch)
        size_bytes += prior_cache_bytes(config, clips, prior, grid, model.config.width, vae)
    return {config.cache.dir: size_bytes}


def check_disk(
    findings: Findings, run: Path, settings: TrainingConfig, checkpoint: int, caches: dict[str, int]
) -> None:
    """Report what checkpoints and caches take, in bytes; raises `BadInput` if there is no room."""
    kept = settings.keep + (settings.early_stop is not None)  # the best one, too
    missing = max(kept + 1 - len(checkpoint_folders(run / "checkpoints")), 1)
    every = f", and one for every {settings.keep_every} steps" if settings.keep_every else ""
    findings.line(
        "disk: checkpoints",
        f"{_readable(checkpoint * (kept + 1))} for {kept} and one being written{every}",
    )
    wanted = {run: checkpoint * missing} | {Path(folder): size for folder, size in caches.items()}
    for folder, size in caches.items():
        findings.line("disk: caches", f"{_readable(size)} at most in {folder}")
    by_device: dict[int, list[Path]] = {}
    for folder in wanted:
        by_device.setdefault(nearest_folder(folder).stat().st_dev, []).append(folder)
    for folders in by_device.values():
        free = shutil.disk_usage(nearest_folder(folders[0])).free
        size = sum(wanted[folder] for folder in folders)
        findings.line("disk: free", f"{_readable(free)} for {' and '.join(map(str, folders))}")
        if free < size:
            raise BadInput(f"{folders[0]} needs {_readable(size)} but {_readable(free)} are free.")


def _readable(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
