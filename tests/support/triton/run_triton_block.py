"""Runs a block's fused kernels against PyTorch's operators: on a GPU where there is one, else interpreted.

A program of its own, for TRITON_INTERPRET must be set before triton is imported. All memory that the kernels
should write is filled with NaN beforehand. Prints a line of JSON per case: its name, its largest error over
the largest value, what is tolerated; at last the kernels of a denoising step.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medsora.kernels import block_steps
from medsora.kernels.fused import plan as fused_plan
from tests.support.triton.interpreter import interpret_on_cpu

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
LAUNCHES = {"medsora::scan": 3, "medsora::gated_scan": 2}  # convolution; scan; norm and sum
NO_LAUNCH = ("empty", "detach", "_unsafe_view", "promote")


def random(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that every dtype holds exactly."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().double()


def norms(dtype: torch.dtype, device: str, width: int, *, framewise: bool, affine: bool) -> dict[str, Tensor]:
    """Both norms of 2 samples of 3 frames, modulated as `Block` cuts its modulations.

    Or per frame, and shifted and scaled as the last layer cuts its own.
    """
    layer = nn.LayerNorm(width, elementwise_affine=affine)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = random(width, seed=seed)
    modulation = random(2, 3 if framewise else 1, 3 * width).to(device, dtype)
    gate, shift, scale = modulation.unflatten(-1, (3, 1, -1)).permute(2, 0, 1, 3, 4)
    if framewise:
        shift, scale = random(2, 3, 2 * width, seed=3).to(device, dtype).unsqueeze(2).chunk(2, dim=-1)
    x, branch = (random(2, 3, 5, width, seed=seed).to(device, dtype) for seed in (1, 2))
    layer = layer.to(device, dtype)
    _, alone = block_steps.add_norm(x, shift, scale, layer, "auto")
    total, normed = block_steps.add_norm(block_steps.Residual(x, branch, gate), shift, scale, layer, "auto")
    shares = random(4, 2, 15, seed=5).to(device, torch.promote_types(dtype, torch.float32)).square()
    divided, _ = block_steps.add_norm(
        block_steps.Residual(x, branch, gate, shares), shift, scale, layer, "auto"
    )
    return {"norm": alone, "sum": total, "norm of the sum": normed, "divided": divided}


def temporal(dtype: torch.dtype, device: str, frames: int, headdim: int) -> dict[str, Tensor]:
    """A temporal branch that leaves its norm to the sum, in one tile or in chunks."""
    from medsora.denoiser.mamba import TemporalMamba, frame_scans

    torch.manual_seed(0)
    branch = TemporalMamba(32, d_state=16, headdim=headdim, expand=4, d_conv=4, backend="auto").to(dtype)
    for seed, (name, parameter) in enumerate(branch.named_parameters()):
        drawn = random(*parameter.shape, seed=seed) / 4
        parameter.data = (drawn if "weight" in name else parameter.bfloat16()).to(dtype)
    x = random(2, frames, 4, 32, seed=9).to(device, dtype)
    scans = frame_scans(frames, frames, (2, 2), 0, x.device)
    return {"temporal branch": branch.to(device)(x, scans)}


def gpu_of(multiprocessors: int) -> AbstractContextManager:
    """Cut work into programs as for a GPU of so many multiprocessors."""
    gpu = fused_plan.INTERPRETER._replace(multiprocessors=multiprocessors)
    return mock.patch.object(fused_plan, "gpu", return_value=gpu)


def gates(dtype: torch.dtype, device: str, width: int, tokens: int, *, large: bool) -> dict[str, Tensor]:
    """Both gates, in the tiles of a small batch or of a large one."""
    layers = nn.Linear(width, width), nn.Linear(width, width)
    for seed, parameter in enumerate(parameter for layer in layers for parameter in layer.parameters()):
        parameter.data = random(*parameter.shape, seed=seed) * 2.0 ** -round(math.log2(width) / 2)
    y = random(2, 3, tokens, width, seed=4).to(device, dtype)
    layers = (layer.to(device, dtype) for layer in layers)
    with gpu_of(1 if large else 10**6):
        return {"gates": block_steps.gates(y, *layers, "auto")}


def attention(
    dtype: torch.dtype, device: str, length: int, window: int, features: int, *, few: bool
) -> dict[str, Tensor]:
    """Local attention, in the tiles of a small batch or of a large one."""
    from medsora.denoiser.attention import LocalAttention  # not before the interpreter is on

    part = LocalAttention(2 * features, 2, window, dropout=0.1).eval()
    scale = 2.0 ** -round(math.log2(2 * features) / 2)  # q and k of about 1
    part.qkv.weight.data = random(6 * features, 2 * features) * scale
    x = random(2, 2, length, 2 * features, seed=1).to(device, dtype)
    with gpu_of(10**6 if few else 1):
        return {"attention": part.to(device, dtype)(x)}


def cases() -> Iterator[tuple[str, torch.dtype, object]]:
    """Name, dtype and what computes the case's tensors in a dtype on a device."""
    for dtype in TOLERANCE:
        for width, tokens in ((72, 5), (200, 50)):
            for large in (False, True):
                options = {"width": width, "tokens": tokens, "large": large}
                yield f"gates {options} in {dtype}", dtype, lambda *to, o=options: gates(*to, **o)
        for width, framewise, affine in ((64, False, True), (72, True, False), (1100, True, True)):
            options = {"width": width, "framewise": framewise, "affine": affine}
            yield f"norms {options} in {dtype}", dtype, lambda *to, o=options: norms(*to, **o)
        for frames, headdim in ((1, 32), (6, 16), (70, 32), (20, 128)):
            options = {"frames": frames, "headdim": headdim}
            yield f"temporal {options} in {dtype}", dtype, lambda *to, o=options: temporal(*to, **o)
        sizes = [
            (1, 8, 16),
            (5, 8, 24),
            (64, 8, 64),
            (65, 8, 16),
            (200, 3, 32),
            (130, 40, 16),
            (20, 64, 16),
            (70, 60, 200),
        ]
        for length, window, features in sizes if dtype != torch.float16 else sizes[:3]:
            for few in (False, True) if 16 < length <= 65 else (False,):
                options = {"length": length, "window": window, "features": features, "few": few}
                yield f"attention {options} in {dtype}", dtype, lambda *to, o=options: attention(*to, **o)


def error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any entry, over its largest value."""
    errors = [(actual[k].cpu().double() - v).abs().max() / v.abs().max() for k, v in expected.items()]
    return float(torch.stack(errors).max())


class Launches(TorchDispatchMode):
    """Counts the operators that run a kernel on a GPU, and our own by the kernels that each runs."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator._schema.name
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in operator._schema.returns)
        if not views and not any(word in name for word in NO_LAUNCH):
            self.count += LAUNCHES.get(name, 1)
        return operator(*args, **(kwargs or {}))


@torch.no_grad()
def whole_model(device: str, dtype: torch.dtype) -> dict[str, float]:
    """A small denoiser by fused kernels against operators; the fused kernels of a block and of the rest."""
    from medsora import MedSora  # not before the interpreter is on
    from medsora.sampling.prepared import PreparedDenoiser

    torch.manual_seed(0)
    sizes = {"width": 64, "heads": 2, "d_state": 16, "headdim": 32, "dropout": 0.0}
    models = {
        (backend, depth): MedSora(**sizes, depth=depth, backend=backend).eval().to(device, dtype)
        for backend in ("auto", "torch")
        for depth in (1, 2)
    }
    weights = {
        name: random(*value.shape).float() / 8 for name, value in models["auto", 2].state_dict().items()
    }
    z, t = random(1, 3, 16, 8, 8).to(device, dtype), torch.tensor([7], device=device)
    answers, launches = {}, {}
    for (backend, depth), model in models.items():
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
        step = PreparedDenoiser(model, (7,), record=False)
        step(z, t)  # tables that are kept are built in the first call
        with Launches() as launched:
            answers[backend] = step(z, t)
        launches[backend, depth] = launched.count
    per_block = {name: launches[name, 2] - launches[name, 1] for name in answers}
    return {
        "error": float((answers["auto"] - answers["torch"]).abs().max() / answers["torch"].abs().max()),
        "launches of a block": per_block["auto"],
        "launches of the rest": launches["auto", 1] - per_block["auto"],
    }


@torch.no_grad()
def check_registration(device: str) -> None:
    """The operators keep torch.library's promises."""
    x, branch = (random(2, 3, 5, 64, seed=seed).float().to(device) for seed in (0, 1))
    gate, shift, scale = (random(2, 1, 1, 64, seed=seed).float().to(device) for seed in (2, 3, 4))
    table = random(2, 5, 16).float().to(device)
    qkv = random(6, 5, 3, 2, 16).float().to(device)
    ours = torch.ops.medsora
    torch.library.opcheck(ours.norm, (x, shift, scale, gate.flatten(1)[0], gate.flatten(1)[0], 1e-5))
    torch.library.opcheck(
        ours.add_norm,
        (x, branch, gate, random(4, 2, 15).square().float().to(device), shift, scale, None, None, 1e-5),
    )
    torch.library.opcheck(ours.gated_sum, (x, branch, branch, x))
    y, weight = random(2, 5, 32).bfloat16().to(device), random(32, 32).bfloat16().to(device)
    torch.library.opcheck(ours.gates, (y, weight, weight[0], weight, weight[1].clone()))
    torch.library.opcheck(ours.local_attention, (qkv, table, table, 3))


def check_many_elements(device: str) -> None:
    """The first program of a sum writes its elements also where there are 2^31 in all."""
    from medsora.kernels.fused import block

    parts = [random(block.ELEMENTS, seed=seed).float().to(device) for seed in range(4)]
    out = torch.full_like(parts[0], math.nan)
    block.gated_sum_kernel[(1,)](*parts, out, 2**31 // block.UNIT, BLOCK=block.ELEMENTS, UNIT=block.UNIT)
    assert out.isfinite().all()


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        interpret_on_cpu()
    for name, dtype, compute in cases():
        expected = compute(torch.float64, "cpu")  # by the operators
        with torch.no_grad():
            torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
            actual = compute(dtype, device)
            torch.use_deterministic_algorithms(False)
        worst = error(actual, {key: value.detach() for key, value in expected.items()})
        print(json.dumps({"case": name, "worst": worst, "tolerance": TOLERANCE[dtype]}), flush=True)
    check_registration(device)
    check_many_elements(device)
    whole = {str(dtype): whole_model(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    print(json.dumps({"whole": whole}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
