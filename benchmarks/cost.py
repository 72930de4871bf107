"""What a preset costs (Fig. 6): `python -m benchmarks.cost --preset S B L --frames 16 32 64`.

FLOPs are those of one forward at batch 1, counted by PyTorch's FlopCounterMode on shapes alone (2 per
multiply-add; products, convolutions and attention; elementwise work is not counted). Sampling sees the clip's
latents only, training also those of the joint images. Memory is of one training step at batch 1 in float32
without gradient checkpointing, AdamW and EMA included. It is always estimated by this count:

    activations   every tensor that autograd keeps for the backward pass, once, parameters left out
    peak          activations + 20 bytes per parameter (weight, gradient, two moments, EMA, 4 bytes each)

The estimate leaves out what a kernel or an allocator takes in passing. On a GPU, or with --measure, each
point also runs in a process of its own: the peak of a whole training step beyond an idle process, and the
seconds of a training and of a denoising step (medians, float32, without VAE, flow and DINO).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.kernels import kept_bytes
from benchmarks.page import PAGE
from benchmarks.support.measure import device_name, take_turns
from medsora.config.schema import Config, DenoiserConfig
from medsora.errors import BadInput, bad_input_from_errors, check_limits
from medsora.html_report import save_figure
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import write_between_marks
from medsora.runtime.markdown import markdown_table
from medsora.sampling.prepared import PreparedDenoiser
from medsora.training.stage2.build import build_denoiser
from medsora.vae import check_video_shape, frames_to_latents
from medsora.vae.shapes import PIXELS_PER_LATENT

PRESETS = DenoiserConfig.__dataclass_fields__["preset"].metadata["key"].choices
CAUSAL_CHANNELS, PER_FRAME_CHANNELS = 16, 4
BYTES_PER_PARAMETER = 20
TIMESTEP = 500
GIB, GIGA, MEGA = 2**30, 1e9, 1e6
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # in PyTorch's messages
BEGIN = "<!-- python -m benchmarks.cost -->"
PICTURE = PAGE.parent / "images" / "cost.svg"
HEAD = (
    "preset",
    "parameters, M",
    "frames",
    "latents",
    "GFLOPs, sampling",
    "GFLOPs, training forward",
    "activations, GiB",
    "peak of training, GiB",
    "measured peak, GiB",
    "training step, s",
    "denoising step, s",
)


class Case(NamedTuple):
    """A point to count or measure: a preset, with `overrides` as in the config, and a clip at batch 1."""

    preset: str
    frames: int
    size: int  # pixels of a frame's side
    image_latents: int
    per_frame: bool = False  # one latent for every frame
    overrides: Mapping[str, Any] = {}

    @property
    def latents(self) -> int:
        """Those of the clip, which sampling sees."""
        return self.frames if self.per_frame else frames_to_latents(self.frames)

    @property
    def all_latents(self) -> int:
        """Those of the clip and of its joint images, which training sees."""
        return self.latents + self.image_latents


@dataclass(frozen=True)
class Measured:
    """One point as it ran: bytes of a training step's peak, seconds of a training and of a denoising step."""

    peak_bytes: int
    training_s: float
    sampling_s: float


@dataclass(frozen=True)
class Cost:
    """One preset at one clip length: FLOPs of a forward, bytes of a training step."""

    preset: str
    frames: int
    latents: int
    parameters: int
    sampling_flops: int
    training_flops: int
    activation_bytes: int
    measured: Measured | None = None

    @property
    def peak_bytes(self) -> int:
        """The estimate of a training step's peak."""
        return self.activation_bytes + BYTES_PER_PARAMETER * self.parameters

    def row(self) -> list[str]:
        """Return the table's cells."""
        cells = [self.preset, f"{self.parameters / MEGA:.2f}", f"{self.frames}", f"{self.latents}"]
        cells += [f"{self.sampling_flops / GIGA:.1f}", f"{self.training_flops / GIGA:.1f}"]
        cells += [f"{self.activation_bytes / GIB:.2f}", f"{self.peak_bytes / GIB:.2f}"]
        if self.measured is None:
            return [*cells, "–", "–", "–"]
        times = (f"{self.measured.training_s:.4g}", f"{self.measured.sampling_s:.4g}")
        return [*cells, f"{self.measured.peak_bytes / GIB:.2f}", *times]


def main() -> None:
    """Print the table by the command line's options; draw it, and write it into the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", nargs="+", default=["S", "B", "L"], choices=PRESETS, help="(default: S B L)")
    add("--frames", nargs="+", type=int, default=[16, 32, 64], metavar="F", help="(default: 16 32 64)")
    add("--size", type=int, default=128, metavar="PX", help="side of a frame (default: %(default)s)")
    add("--image-latents", type=int, default=2, metavar="N", help="latents of joint images (default: 2)")
    add(
        "--per-frame",
        action="store_true",
        help=f"one latent of {PER_FRAME_CHANNELS} channels for every frame, as of a per-frame VAE, instead "
        f"of one of {CAUSAL_CHANNELS} for four frames",
    )
    add("--measure", action="store_true", help="run every point without a GPU as well (minutes)")
    add("--rounds", type=int, default=5, metavar="N", help="timed steps of each kind (default: %(default)s)")
    add("--plot", type=Path, metavar="FILE", help="draw the table: .svg or .png")
    add("--page", action="store_true", help=f"write table and plot into docs/{PAGE.name}")
    add("--dry-run", action="store_true", help="print which points would be counted and measured")
    options = parser.parse_args()
    points = [(preset, frames) for preset in options.preset for frames in options.frames]
    check_limits(options, {"image_latents": (0, math.inf), "rounds": (1, math.inf), "size": (16, math.inf)})
    check_points(options.frames, [options.size], options.plot)
    on_gpu = torch.cuda.is_available()
    runs = on_gpu or options.measure
    device = torch.device("cuda" if on_gpu else "cpu")
    basis = f"measured on {device_name(device)}" if runs else "nothing measured (no GPU, no --measure)"
    title = f"Batch 1, {options.size}x{options.size} pixels, {options.image_latents} latents of joint images"
    title += f", {'per-frame' if options.per_frame else 'causal'} VAE, torch {torch.__version__}; {basis}."
    if options.dry_run:
        print(title, *(f"{preset} at {frames} frames" for preset, frames in points), sep="\n")
        return
    costs = []
    for preset, frames in points:
        case = Case(preset, frames, options.size, options.image_latents, options.per_frame)
        cost = counted(case)
        if runs:
            cost = replace(cost, measured=in_a_fresh_process(measure, case, options.rounds))
        costs.append(cost)
        print(f"| {' | '.join(cost.row())} |", flush=True)
    if runs and not all(cost.measured for cost in costs):
        title += " –: killed, or out of memory."
    lines = [title, "", *markdown_table(HEAD, [cost.row() for cost in costs])]
    print("", *lines, sep="\n")
    if options.plot:
        draw(options.plot, costs)
    if options.page:
        draw(PICTURE, costs)
        write_between_marks(PAGE, BEGIN, ["", *lines, ""])


def check_points(lengths: Sequence[int], sizes: Sequence[int], plot: Path | None) -> None:
    """Raise `BadInput` for clips that the VAE cannot return and a plot that is neither SVG nor PNG."""
    if plot and plot.suffix not in (".svg", ".png"):
        raise BadInput(f"--plot {plot} must end in .svg or .png.")
    with bad_input_from_errors():
        for frames, size in product(lengths, sizes):
            check_video_shape(frames, size, size)


def counted(case: Case) -> Cost:
    """Return the cost of `case` by counting alone: within seconds, in almost no memory, nothing computed."""
    images = case.image_latents
    with FakeTensorMode(allow_non_fake_inputs=True):  # the model's tables have content
        model = _denoiser(case)
        sampling, training = (_inputs(model, case, latents) for latents in (case.latents, case.all_latents))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        sampling_flops = count_flops(model.eval(), sampling, 0)
        training_flops = count_flops(model, training, images)
        activations = saved_bytes(model.train(), training, images)
    return Cost(
        case.preset, case.frames, case.latents, parameters, sampling_flops, training_flops, activations
    )


def count_flops(model: torch.nn.Module, inputs: Sequence[Tensor], num_images: int) -> int:
    """Return the FLOPs of one forward, 2 per multiply-add."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(*inputs, num_images=num_images)
    return counter.get_total_flops()


def saved_bytes(model: torch.nn.Module, inputs: Sequence[Tensor], num_images: int) -> int:
    """Return the bytes of all that autograd keeps of one forward."""
    return kept_bytes(model.parameters(), lambda: _loss(model(*inputs, num_images=num_images)))


def in_a_fresh_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `work` returns in a process of its own, with a peak of its own; None if memory ran out."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            return fresh.submit(work, *arguments).result()
    except (BrokenProcessPool, MemoryError):  # Linux kills a process that takes too much
        return None
    except RuntimeError as error:  # PyTorch's own type exists on GPUs only
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        return None


def measure(case: Case, rounds: int) -> Measured:
    """Run float32 training and denoising steps on the GPU, or without one on the CPU; see the module."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = 0 if device.type == "cuda" else _resident_bytes("VmRSS")
    train, sample = both_steps(case)
    training = take_turns({"train": train}, rounds, device)["train"]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident_bytes("VmHWM") - before
    sampling = take_turns({"sample": sample}, rounds, device)["sample"]
    return Measured(peak, statistics.median(training), statistics.median(sampling))


def both_steps(case: Case) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a training step, optimizer and EMA included, and a denoising step of one model at batch 1."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _denoiser(case).to(device).train()
    inputs = _inputs(model, case, case.all_latents, device)
    optimizer = torch.optim.AdamW(model.parameters())
    averaged = [parameter.detach().clone() for parameter in model.parameters()]

    def train() -> None:
        model.train()
        _loss(model(*inputs, num_images=case.image_latents)).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, list(model.parameters()), 0.01)
        optimizer.zero_grad()

    clip = _inputs(model, case, case.latents, device)[0], torch.tensor([TIMESTEP], device=device)

    prepared: list[PreparedDenoiser] = []  # made by the first call, so that training's peak is its own

    @torch.no_grad()
    def sample() -> None:
        model.eval()
        if not prepared:
            prepared.append(PreparedDenoiser(model, [TIMESTEP]))
        prepared[0](*clip)

    return train, sample


def draw(path: Path, costs: Sequence[Cost]) -> None:
    """Draw FLOPs, memory and, where they were measured, times over the frames, a line per preset."""
    panels = {
        "GFLOPs of a denoising step": lambda cost: cost.sampling_flops / GIGA,
        "activations of a training step, GiB": lambda cost: cost.activation_bytes / GIB,
        "peak of a training step, estimated, GiB": lambda cost: cost.peak_bytes / GIB,
    }
    measured = [cost for cost in costs if cost.measured]
    if measured:
        panels["peak of a training step, measured, GiB"] = lambda cost: cost.measured.peak_bytes / GIB
        panels["training step, measured, s"] = lambda cost: cost.measured.training_s
        panels["denoising step, measured, s"] = lambda cost: cost.measured.sampling_s
    figure = Figure(figsize=(10, 3.4 * (len(panels) // 3)), layout="constrained")
    for number, (title, value_of) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels) // 3, 3, number)
        shown = measured if "measured" in title else costs
        for preset in dict.fromkeys(cost.preset for cost in costs):  # absent ones keep their colour
            points = sorted((cost.frames, value_of(cost)) for cost in shown if cost.preset == preset)
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=preset)
        frames = sorted({cost.frames for cost in costs})
        axes.set(title=title, xlabel="frames", xscale="log", yscale="log")
        axes.title.set_fontsize(9)
        axes.set_xticks(frames, map(str, frames))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=8)
    save_figure(path, figure)


def _denoiser(case: Case) -> torch.nn.Module:
    config = Config(denoiser=DenoiserConfig(preset=case.preset, overrides=dict(case.overrides)))
    usual = PER_FRAME_CHANNELS if case.per_frame else CAUSAL_CHANNELS
    return build_denoiser(config, case.overrides.get("in_channels", usual))


def _inputs(
    model: torch.nn.Module, case: Case, latents: int, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    side = case.size // PIXELS_PER_LATENT
    z = torch.zeros(1, latents, model.config.in_channels, side, side, device=device)
    return z, torch.zeros(1, dtype=torch.long, device=device)


def _resident_bytes(name: str) -> int:
    """Return VmRSS (now) or VmHWM (largest so far) of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


def _loss(out: object) -> Tensor:
    return out.eps.square().mean() + out.variance.square().mean()


if __name__ == "__main__":
    exit_with_status(main)
