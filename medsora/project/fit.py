"""From what a folder of videos and a machine are like to a config that fits, every choice with its reason.

`fit_project` decides; `render_config` writes the decisions down, a comment on every line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import OmegaConf

from medsora.config.presets import NAMED_PRESETS
from medsora.config.schema import all_keys
from medsora.config.shipped import find_config
from medsora.data.checking.check import CheckReport
from medsora.data.split import HELD_OUT, draw_split
from medsora.errors import BadInput
from medsora.training.dry_run.memory import preset_bytes, vae_bytes
from medsora.vae import PerFrameVAE
from medsora.vae.shapes import FRAMES_PER_CHUNK

PAPER_RATE = 10  # frames of a clip per second: every third of 30
FRAMES, PAPER_FRAMES = (17, 16, 9, 8), 16  # frames per clip: the first that the videos are long enough for
PAPER_SIZE, CPU_SIZE, MIN_SIZE = 128, 64, 32
HOLDOUT, SEED = 0.1, 0
MIN_USABLE_SOURCES = 0.8  # share of the videos that an interval between frames must leave usable

CPU_PRESETS = ("tiny", "endora-tiny")
ENDORA_FRAMES, ENDORA_IMAGES, ENDORA_BATCH = (16, 8), 8, 5  # published values, see docs/endora.md
USABLE = 0.8  # share of a GPU's memory; fragments and the CUDA context take the rest
# On a CPU: a process with its libraries, and a clip of a step at 64x64 (the demo takes 1.8 GiB at batch 8).
CPU_PROCESS_GIB, CPU_CLIP_GIB, CPU_USABLE = 1.2, 0.08, 0.5

VAE_STEPS = (1_000, 20_000)
DIT_STEPS = (20_000, 400_000)
VAE_PASSES, DIT_PASSES = 10, 100
CPU_VAE_STEPS, CPU_DIT_STEPS = (200, 1_000), (1_000, 5_000)

PLAIN = re.compile(r"[A-Za-z_][\w./-]*")  # text that YAML reads without quotes, except for a few words
YAML_WORDS = ("on", "off", "yes", "no", "true", "false", "null")


@dataclass(frozen=True)
class Machine:
    """The training machine: memory of one GPU in GiB (0: no GPU), CPU cores, the machine's own memory."""

    gpu_gib: float
    cores: int
    ram_gib: float = math.inf


@dataclass
class Fit:
    """The config as nested values, the reason for each, and notes on the videos."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def set(self, section: str, reason: str, **values: Any) -> None:
        """Decide keys of `section`, all for the same `reason`."""
        self.values.setdefault(section, {}).update(values)
        self.reasons |= {f"{section}.{name}": reason for name in values}


def fit_project(
    name: str,
    data: str,
    check: Callable[[int, int], CheckReport],
    machine: Machine,
    *,
    size: int | None = None,
    preset: str | None = None,
) -> Fit:
    """Return the config for the videos in `data`.

    `check(frames, interval)` checks the folder for clips of so many frames. `size` and `preset` overrule.
    Raises `BadInput` with one sentence if there is not a single clip.
    """
    fit = Fit()
    fit.set("run", "results go to runs/NAME", name=name)
    fit.set("run", "decides the split, the order and all noise; the same seed gives the same run", seed=SEED)
    per_frame = preset is not None and preset.startswith("endora-") and preset not in CPU_PRESETS
    report = _fit_clips(fit, data, check, ENDORA_FRAMES if per_frame else FRAMES)
    if machine.gpu_gib > 0:
        if preset in CPU_PRESETS:
            larger = ", ".join(name for name in NAMED_PRESETS if name not in CPU_PRESETS)
            raise BadInput(
                f"the preset {preset} is for CPUs; choose one of {larger}, or --memory 0 for a CPU's config."
            )
        side = _fit_size(fit, report, size or PAPER_SIZE, requested=size is not None)
        fit.set("data", "processes that decode videos", workers=max(1, min(8, machine.cores - 1)))
        (_fit_endora if per_frame else _fit_gpu)(fit, machine, report.clips, side, preset)
    else:
        side = _fit_size(fit, report, size or CPU_SIZE, requested=size is not None)
        _fit_cpu(fit, machine, report.clips, side, preset)
    return fit


def _fit_clips(
    fit: Fit, data: str, check: Callable[[int, int], CheckReport], lengths: tuple[int, ...]
) -> CheckReport:
    frames = next((frames for frames in lengths if check(frames + 1, 1).clips), lengths[0])
    report = check(frames + 1, 1)
    report.require_clips()
    rates = [source.scan.fps for source in report.usable if source.scan.fps]
    wanted = max(1, round(median(rates) / PAPER_RATE)) if rates else 1
    interval = wanted
    while interval > 1 and len(check(frames + 1, interval).usable) < MIN_USABLE_SOURCES * len(report.usable):
        interval -= 1
    report = check(frames + 1, interval)
    fit.set("data", f"{len(report.usable)} usable of {len(report.reports)} videos", root=data)
    why = "the first has a latent of its own (docs/fidelity.md); the paper's: 16"
    why = "the paper's" if frames == PAPER_FRAMES else why
    why = why if frames == lengths[0] else f"no video is long enough for {lengths[0]}"
    fit.set("data", why, frames=frames)
    if not rates:
        why = "image folders store no frame rate; 3 if these are 30 per second, as in the paper"
    elif interval < wanted:
        why = f"{median(rates):.4g} frames per second would need {wanted}, but most videos are too short"
    else:
        per_second = f"{median(rates):.4g} frames per second in the videos"
        why = f"{per_second}, {median(rates) / interval:.3g} in a clip; paper: 10"
    fit.set("data", why, interval=interval)
    cropped = sum(source.crop_words is not None for source in report.usable)
    fit.set("data", f"black borders, found in {cropped} videos; none: whole frames", crop="auto")
    names = [source.source.name for source in report.usable]
    split = draw_split(names, HOLDOUT, SEED, copies=report.copies)
    held_out = list(split.sides.values()).count(HELD_OUT)
    drawn = "by folders named train, val or test" if report.split_note else "drawn by seed"
    why = f"{held_out} of {len(names)} videos never trained on, {drawn}; data.group: by patient"
    fit.notes += split.notes
    if len(names) == 1:
        why = "there is only one video: nothing can be held out, so validation uses training clips"
    fit.set("data", why, holdout=HOLDOUT)
    return report


def _fit_size(fit: Fit, report: CheckReport, wanted: int, *, requested: bool) -> int:
    sides = [
        min(scan.height * (1 - top - bottom), scan.width * (1 - left - right))
        for source in report.usable
        for scan, (top, bottom, left, right) in [(source.scan, source.margins)]
    ]
    smallest = round(min(sides))
    side = wanted if requested else max(MIN_SIZE, min(wanted, 16 * int(median(sides) / 16)))
    why = f"pixels, square; the smallest video has {smallest}"
    fit.set("data", why if side <= smallest else f"{why} and is enlarged", size=side)
    return side


def _fit_gpu(fit: Fit, machine: Machine, clips: int, side: int, preset: str | None) -> None:
    preset = preset or ("B" if machine.gpu_gib >= 10 else "S")
    memory = f"{machine.gpu_gib:.0f} GiB"
    clip_gib, fitting = _fitting(fit, machine, side, preset_bytes(preset, fit.values["data"]["frames"], side))
    first = min(16, 2 ** int(math.log2(fitting)))
    fit.set("vae", "stage 1 starts from it; downloaded once, or a local folder", base="THUDM/CogVideoX-2b")
    fit.set("images", "joint images per clip, as in the paper", count=8)
    fit.set("images", "the 8 go through the VAE together, as in the paper", encoding="packed")
    fit.set("denoiser", f"S 44, B 86, L 172, XL 343 million parameters; for {memory}", preset=preset)
    _fit_checkpointing(fit, machine, clip_gib, fitting)
    fit.set("flow", "the paper's; dis needs no weights and is weaker", estimator="raft_large")
    fit.set("dino", "the paper's; reads the optical flow as pictures", model="vit_base_patch8_224.dino")
    fit.set("dino", "downloaded once; or a local file", weights="hub")
    steps = _steps(VAE_PASSES * clips, VAE_STEPS)
    fit.set("train_vae", "the paper's 2e-7 barely changes a zero-initialised output layer", lr=1e-4)
    fit.set("train_vae", "down to zero at the last step", lr_decay="cosine")
    fit.set("train_vae", f"{VAE_PASSES} passes over {clips} clips, {_within(VAE_STEPS)}", max_steps=steps)
    stage_1_gib, _ = _vae_gib(fit, side)
    why = f"{memory}; one clip takes about {stage_1_gib:.0f} GiB without"
    fit.set("train_vae", why, gradient_checkpointing=USABLE * machine.gpu_gib < stage_1_gib)
    steps = _steps(DIT_PASSES * clips // 2, DIT_STEPS)
    phases = [
        {"lr": 1e-3, "batch": first, "until_epoch": 2},
        {"lr": 1e-4, "batch": min(2, first), "until_epoch": None},
    ]
    why = "the paper's" if first == 16 else f"the paper's first batch is 16; {first} fits into {memory}"
    fit.set("train_dit", why, phases=phases)
    _fit_dit_steps(fit, clips, steps)


def _vae_gib(fit: Fit, side: int) -> tuple[float, float]:
    """Return the GiB that CogVideoX's VAE takes in stage 1 on one clip, and in stage 2, frozen, at most.

    RAFT and DINO run after its encoding and take less; so does a 2-D VAE.
    """
    weights, training, encoding = (size / 2**30 for size in vae_bytes(PAPER_SIZE))
    pixels, chunks = (side / PAPER_SIZE) ** 2, fit.values["data"]["frames"] / FRAMES_PER_CHUNK
    return weights + pixels * chunks * training, weights + pixels * encoding


def _fitting(fit: Fit, machine: Machine, side: int, of_preset: tuple[int, int]) -> tuple[float, float]:
    """Return what a clip of a step takes, in GiB, and how many fit: at least one."""
    state_gib, clip_gib = (size / 2**30 for size in of_preset)
    free = USABLE * machine.gpu_gib - _vae_gib(fit, side)[1] - state_gib
    return clip_gib, max(free / clip_gib, 1)


def _fit_checkpointing(fit: Fit, machine: Machine, clip_gib: float, fitting: float) -> None:
    why = f"{machine.gpu_gib:.0f} GiB: activations of one clip take about {clip_gib:.2g} GiB without"
    fit.set("denoiser", why, gradient_checkpointing=fitting < 1.5)


def _fit_endora(fit: Fit, machine: Machine, clips: int, side: int, preset: str) -> None:
    """Endora as published (docs/endora.md): per-frame latents and the image prior; there is no stage 1."""
    of_preset = preset_bytes(preset, fit.values["data"]["frames"], side, ENDORA_IMAGES, PerFrameVAE)
    clip_gib, fitting = _fitting(fit, machine, side, of_preset)
    batch, memory = min(ENDORA_BATCH, int(fitting)), f"{machine.gpu_gib:.0f} GiB"
    fit.set("vae", "one latent per frame, used as it is: there is no stage 1", kind="per-frame")
    fit.set("vae", "downloaded once, or a local folder", base="stabilityai/sd-vae-ft-mse")
    fit.set("images", "joint images per clip, as in Endora's code", count=ENDORA_IMAGES)
    fit.set("images", "each has a latent of its own", encoding="single")
    why = f"endora-S 32, -B 130, -L 457, -XL 674 million parameters; for {memory}"
    fit.set("denoiser", why, preset=preset)
    _fit_checkpointing(fit, machine, clip_gib, fitting)
    fit.set("alignment", "DINO on the frames, as in Endora's code; flow: on the optical flow", kind="image")
    fit.set("alignment", "Endora's", weight=0.5)
    fit.set("dino", "Endora's", model="vit_small_patch8_224.dino")
    fit.set("dino", "downloaded once; or a local file", weights="hub")
    why = "Endora's"
    if batch < ENDORA_BATCH:
        why = f"Endora's batch is {ENDORA_BATCH}; {batch} fits into {memory}"
    fit.set("train_dit", why, phases=[{"lr": 1e-4, "batch": batch, "until_epoch": None}])
    fit.set("train_dit", "Endora's", weight_decay=0)
    _fit_dit_steps(fit, clips, _steps(DIT_PASSES * clips // batch, DIT_STEPS))


def _fit_dit_steps(fit: Fit, clips: int, steps: int) -> None:
    fit.set("train_dit", f"{DIT_PASSES} passes over {clips} clips, {_within(DIT_STEPS)}", max_steps=steps)
    fit.set("train_dit", "the paper's; samples come from this moving average", ema_decay=0.9999)
    fit.set("train_dit", "20 contact sheets over the run", sample_every=max(steps // 20, 500))
    fit.set("train_dit", "40 points of the held-out curve", eval_every=max(steps // 40, 250))
    fit.set("train_dit", "what an interruption without warning can cost", save_every=1000)
    fit.set("cache", "disk: encode every clip once; then a clip starts at fixed frames", latents="off")


def _fit_cpu(fit: Fit, machine: Machine, clips: int, side: int, preset: str | None) -> None:
    """The demo's settings: minutes instead of days, and nothing to download."""
    if preset not in (None, *CPU_PRESETS):
        raise BadInput(
            f"the preset {preset} needs a GPU; leave --preset out, or give its memory by --memory."
        )
    path = find_config("phantom")
    shipped, comments = OmegaConf.to_container(OmegaConf.load(path)), _comments_in(path)
    fit.set("data", "steps read only the caches", workers=0)
    for section in ("vae", "images", "denoiser", "flow", "dino", "train_vae", "train_dit", "cache"):
        for name, value in shipped[section].items():
            reason = comments.get(f"{section}.{name}") or all_keys()[f"{section}.{name}"].meaning.rstrip(".")
            fit.set(section, reason, **{name: value})
    phase = shipped["train_dit"]["phases"][0]
    if preset == "endora-tiny":
        fit.set("denoiser", "4 million parameters, for 64x64 and below; tiny: MedSora's", preset=preset)
        phase["lr"] = 1e-3
        fit.set("train_dit", "one, for short runs; MedSora's: 4.0e-3, Endora's: 1.0e-4", phases=[phase])
    clip_gib = CPU_CLIP_GIB * (side / CPU_SIZE) ** 2
    fitting = max((CPU_USABLE * machine.ram_gib - CPU_PROCESS_GIB) / clip_gib, 1)
    if fitting < phase["batch"]:
        phase["batch"] = 2 ** int(math.log2(fitting))
        why = f"{machine.ram_gib:.1f} GiB of memory: a clip of a step takes about {clip_gib:.2g} GiB"
        fit.set("train_dit", why, phases=[phase])
    fit.set("train_vae", "this base was trained on phantoms only, so all of it is fine-tuned", train="all")
    for stage, passes, within, batch in (
        ("train_vae", VAE_PASSES, CPU_VAE_STEPS, shipped["train_vae"]["batch"]),
        ("train_dit", DIT_PASSES, CPU_DIT_STEPS, phase["batch"]),
    ):
        steps = _steps(passes * clips // batch, within)
        why = f"{passes} passes over {clips} clips, {_within(within)}"
        fit.set(stage, why, max_steps=steps)
    fit.set("train_vae", "8x8 latents drown in noise sooner than 16x16 ones", latent_std=2.0)


def _comments_in(path: Path) -> dict[str, str]:
    """Return the comment behind each key of a shipped config."""
    section, comments = "", {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"(\w+):", line):
            section = heading[1]
        elif commented := re.fullmatch(r"  (\w+):.* # (.+)", line):
            comments[f"{section}.{commented[1]}"] = commented[2]
    return comments


def _steps(wanted: int, within: tuple[int, int]) -> int:
    return min(max(wanted, within[0]), within[1])


def _within(steps: tuple[int, int]) -> str:
    return f"but at least {steps[0]:,} and at most {steps[1]:,} steps"


def render_config(fit: Fit, heading: str) -> str:
    """Return the config as YAML: `heading` first, then every value with its reason behind it."""
    lines = [f"# {line}" for line in heading.splitlines()]
    for section, values in fit.values.items():
        lines.append(f"{section}:")
        for name, value in values.items():
            reason = fit.reasons[f"{section}.{name}"]
            if isinstance(value, list) and value and isinstance(value[0], dict):
                lines.append(f"  {name}: # {reason}")
                lines += [f"    - {_inline(entry)}" for entry in value]
            else:
                lines.append(f"  {name}: {_inline(value)} # {reason}")
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key}: {_inline(item)}" for key, item in value.items()) + " }"
    if isinstance(value, float):
        text = f"{value:.6g}"
        mantissa, e, exponent = text.partition("e")
        return text if not e or "." in mantissa else f"{mantissa}.0e{exponent}"  # YAML 1.1 reads 1e-4 as text
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in YAML_WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
