"""What a preset costs (Fig. 6): `python -m benchmarks.cost --preset S B L --frames 16 32 64`.

FLOPs are those of one forward at batch 1, counted by PyTorch's FlopCounterMode on shapes alone (2 per
multiply-add; products, convolutions and attention; elementwise work is not counted). Sampling sees the clip's
latents only, training also those of the joint images. Memory is of one training step at batch 1 in float32
without gradient checkpointing, AdamW and EMA included: measured on a GPU, elsewhere estimated by this count:

    activations   every tensor that autograd keeps for the backward pass, once, parameters left out
    peak          activations + 20 bytes per parameter (weight, gradient, two moments, EMA, 4 bytes each)

The estimate leaves out what a kernel or an allocator takes in passing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.kernels import kept_bytes
from medsora import PRESETS, MedSora
from medsora.errors import BadInput
from medsora.runtime.exit import exit_with_status
from medsora.vae import check_video_shape, frames_to_latents

BYTES_PER_PARAMETER = 20
SPATIAL_RATIO = 8
GIB, GIGA = 2**30, 1e9


@dataclass(frozen=True)
class Cost:
    """Of one preset at one clip length: FLOPs of a forward, bytes of a training step."""

    parameters: int
    sampling_flops: int
    training_flops: int
    activation_bytes: int
    peak_bytes: int


def main() -> None:
    """Print the table that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset", nargs="+", default=["S", "B", "L"], choices=list(PRESETS), help="(default: S B L)"
    )
    parser.add_argument(
        "--frames", nargs="+", type=int, default=[16, 32, 64], metavar="F", help="(default: 16 32 64)"
    )
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="side of a frame (default: 128)")
    parser.add_argument(
        "--image-latents", type=int, default=2, metavar="N", help="latents of joint images (default: 2)"
    )
    options = parser.parse_args()
    for frames in options.frames:
        try:
            check_video_shape(frames, options.size, options.size)
        except ValueError as error:
            raise BadInput(str(error)) from error
    gpu = torch.cuda.is_available()
    how = f"measured on {torch.cuda.get_device_name()}" if gpu else "estimated (see this file's first lines)"
    print(f"batch 1, {options.size}x{options.size} pixels, torch {torch.__version__}, memory {how}\n")
    print("| preset | parameters (M) | frames | GFLOPs, sampling | GFLOPs, training forward |", end="")
    print(" activations (GiB) | peak of training (GiB) |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    points = [(preset, frames) for preset in options.preset for frames in options.frames]
    shape = (options.size, options.image_latents)
    for preset, frames in points:
        cost = counted(preset, frames, *shape)
        activations, peak = cost.activation_bytes, cost.peak_bytes
        if gpu:
            activations, peak = measured_memory(preset, frames, *shape)
        print(
            f"| {preset} | {cost.parameters / 1e6:.2f} | {frames} | {cost.sampling_flops / GIGA:.1f} | "
            f"{cost.training_flops / GIGA:.1f} | {activations / GIB:.2f} | {peak / GIB:.2f} |"
        )


def counted(preset: str, frames: int, size: int, image_latents: int, **overrides: object) -> Cost:
    """Return the cost of `preset` on clips of `frames` frames of `size` x `size` pixels, by counting alone.

    `overrides` are the denoiser's settings, as in `MedSora.from_preset`. Numbers are never computed: it takes
    seconds and next to no memory.
    """
    latents, side = frames_to_latents(frames), size // SPATIAL_RATIO
    with FakeTensorMode(allow_non_fake_inputs=True):  # the model's tables have content
        model = MedSora.from_preset(preset, backend="torch", **overrides)
        sampling, training = (_inputs(model, n, side, "cpu") for n in (latents, latents + image_latents))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        sampling_flops = count_flops(model.eval(), sampling, 0)
        training_flops = count_flops(model, training, image_latents)
        activations = saved_bytes(model.train(), training, image_latents)
    peak = activations + BYTES_PER_PARAMETER * parameters
    return Cost(parameters, sampling_flops, training_flops, activations, peak)


def count_flops(model: MedSora, inputs: Sequence[Tensor], num_images: int) -> int:
    """Return the FLOPs of one forward, 2 per multiply-add."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(*inputs, num_images=num_images)
    return counter.get_total_flops()


def saved_bytes(model: MedSora, inputs: Sequence[Tensor], num_images: int) -> int:
    """Return the bytes of all that autograd keeps of one forward."""
    return kept_bytes(model.parameters(), lambda: _loss(model(*inputs, num_images=num_images)))


def measured_memory(preset: str, frames: int, size: int, image_latents: int) -> tuple[int, int]:
    """Return (bytes kept after the forward, peak bytes of a whole second step) of float32 on the GPU."""
    model = MedSora.from_preset(preset).cuda().train()
    inputs = _inputs(model, frames_to_latents(frames) + image_latents, size // SPATIAL_RATIO, "cuda")
    optimiser = torch.optim.AdamW(model.parameters())
    averaged = [parameter.detach().clone() for parameter in model.parameters()]
    activations = 0
    for _ in range(2):  # the first step makes the optimiser's state
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = _loss(model(*inputs, num_images=image_latents))
        activations = torch.cuda.memory_allocated() - before
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, list(model.parameters()), 0.01)
        optimiser.zero_grad()
    return activations, torch.cuda.max_memory_allocated()


def _inputs(model: MedSora, latents: int, side: int, device: str) -> tuple[Tensor, Tensor]:
    z = torch.zeros(1, latents, model.config.in_channels, side, side, device=device)
    return z, torch.zeros(1, dtype=torch.long, device=device)


def _loss(out: object) -> Tensor:
    return out.eps.square().mean() + out.variance.square().mean()


if __name__ == "__main__":
    exit_with_status(main)
