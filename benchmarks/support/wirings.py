"""Both wirings at one set of weights, and what the benchmarks of sampling and training run of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.support.measure import RESULTS, positive
from benchmarks.support.reference_wiring import ReferenceWiring, Scan, matrix_scan, package_scan, torch_scan
from medsora import PRESETS, MedSora
from medsora.denoiser import linear
from medsora.denoiser.mamba import Mamba2
from medsora.kernels import backends, mamba_ssm_backend
from medsora.sampling.compiled import compile_blocks
from medsora.sampling.prepared import PreparedDenoiser

CLIP, IMAGES, CHANNELS, SIDE = 4, 2, 16, 16  # latents of a clip and of its joint images, 128 x 128 pixels
H200_FLOOR_S = {1: 187e-6, 32: 4.9e-3}  # a step of B in bf16: products at 790 TFLOP/s, bytes at 4.8 TB/s


@dataclass(frozen=True)
class Wirings:
    """The reference, ours under the same conditions (`mixed`, six latents), and ours as it samples."""

    reference: ReferenceWiring
    same: MedSora
    isolated: MedSora
    scan: str  # how the reference scans

    @property
    def plain(self) -> ReferenceWiring:
        """The reference with a scan of library parts: our own keeps less for its gradients than those do."""
        return ReferenceWiring(self.same, matrix_scan)

    def compile(self) -> None:
        """Compile the blocks of both sides alike."""
        torch._dynamo.config.recompile_limit = (
            64  # the reference holds its spirals as constants: one per block
        )
        self.reference.compile_blocks()
        for model in (self.same, self.isolated):
            compile_blocks(model)


def build(preset: str, device: torch.device, dtype: torch.dtype) -> Wirings:
    """Both wirings with the same drawn weights, in evaluation mode, without dropout."""
    torch.manual_seed(0)
    scan, scan_name = _reference_scan(device)
    same = MedSora.from_preset(preset, mixing="mixed", dropout=0.0)
    isolated = MedSora.from_preset(preset, mixing="isolated", dropout=0.0)
    with torch.no_grad():
        for parameter in same.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    isolated.load_state_dict(same.state_dict())
    for model in (same, isolated):
        cast(model, dtype).to(device).eval()
    return Wirings(ReferenceWiring(same, scan), same, isolated, scan_name)


def cast(model: MedSora, dtype: torch.dtype) -> MedSora:
    """Return `model` with its weights in `dtype`, but for A, Δ's bias and D, as sampling loads it."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] not in MedSora._keep_in_fp32_modules:
            parameter.data = parameter.data.to(dtype)
    return model


def _reference_scan(device: torch.device) -> tuple[Scan, str]:
    """The package's kernels where they run, as the public wiring takes them; else our own scan in PyTorch."""
    if device.type == "cuda" and backends()["mamba_ssm"] is None:
        return package_scan, f"mamba_ssm's {mamba_ssm_backend.function_in_use()}"
    return torch_scan, "the torch backend"


def latents(batch: int, count: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Noise of `count` latents and a timestep per sample."""
    z = torch.randn(batch, count, CHANNELS, SIDE, SIDE).to(device, dtype)
    return z, torch.full((batch,), 500, device=device)


def check_same_numbers(wirings: Wirings, device: torch.device, dtype: torch.dtype) -> float:
    """Largest difference of ε between the wirings, relative to its largest value; raises if they differ."""
    z, t = latents(1, CLIP + IMAGES, device, dtype)
    with torch.no_grad():
        expected, actual = (
            model(z, t).eps.float() for model in (wirings.reference, lambda *x: wirings.same(*x, IMAGES))
        )
    if actual.shape != expected.shape:
        raise RuntimeError("the two wirings give different shapes")
    error = float((actual - expected).abs().max() / expected.abs().max())
    # Other people's kernels on a GPU multiply float32 in TF32, whose products have ten bits.
    most = 0.1 if dtype != torch.float32 else 1e-3 if device.type == "cpu" else 2e-2
    if not error < most:
        raise RuntimeError(f"the two wirings differ by {error:.1e}: their times do not compare")
    return error


@torch.no_grad()
def counted_gflop(wirings: Wirings, batch: int) -> dict[str, float]:
    """GFLOP of a denoising step of both sides; both scan in PyTorch here, since kernels cannot be counted."""
    device, dtype = wirings.same.device, wirings.same.dtype
    six = latents(batch, CLIP + IMAGES, device, dtype)
    layers = [module for module in wirings.same.modules() if isinstance(module, Mamba2)]
    backends = [layer.backend for layer in layers]
    for layer in layers:
        layer.backend = "torch"
    try:
        ours = PreparedDenoiser(wirings.same, (int(six[1][0]),), num_images=IMAGES, record=False)
        works = {"reference": partial(ReferenceWiring(wirings.same), *six), "ours": partial(ours, *six)}
        return {name: gflop(work) for name, work in works.items()}
    finally:
        for layer, backend in zip(layers, backends, strict=True):
            layer.backend = backend


def gflop(work: Callable[[], object]) -> float:
    """Products, convolutions and attention of a call, counted by PyTorch, 2 per multiply-add."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        work()
    return counter.get_total_flops() / 1e9


def wiring_parser(name: str, doc: str, batches: tuple[int, ...], rounds: int) -> argparse.ArgumentParser:
    """Return the command line of `benchmarks.NAME`; `batches` and `rounds` are defaults."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc.splitlines()[0])
    add = parser.add_argument
    add("--preset", default="B", choices=tuple(PRESETS))
    add("--batches", type=positive, nargs="+", default=batches)
    add("--rounds", type=positive, default=rounds, help="A B A B ... (default: %(default)s)")
    add("--compile", action="store_true", help="compile the blocks of both sides")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="where to append")
    add("--dry", action="store_true", help="print, but keep nothing")
    return parser


@contextmanager
def products_by(onednn: bool) -> Iterator[None]:
    """Our model with its products on a CPU by oneDNN or as PyTorch has them, whatever it would choose."""
    before, linear.onednn_is_faster = linear.onednn_is_faster, lambda: onednn and linear.AVAILABLE
    try:
        yield
    finally:
        linear.onednn_is_faster = before
