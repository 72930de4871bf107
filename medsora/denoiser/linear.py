"""Linear layers whose float32 products on a CPU are computed by oneDNN, where that is faster; where bf16 is.

PyTorch hands float32 products on x86 to MKL, which takes its AVX2 code on processors of other makers than its
own; oneDNN's code is chosen by what the processor can do. On Intel's own MKL is a little faster, and products
stay with it. Both compute and add in float32.
"""

from __future__ import annotations

import functools
import math
import platform
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

MIN_ROWS = 32  # below, a product reads the weights once and no code is faster than another
AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def is_intel_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor is Intel's: Linux shows that in a file, Windows in its name."""
    with suppress(OSError):
        return "GenuineIntel" in cpuinfo.read_text()
    return "GenuineIntel" in platform.processor()


def bf16_problem(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return why bf16 products are not faster than float32's on `device`; None where they are."""
    if device.type == "cuda":
        return None if torch.cuda.is_bf16_supported() else "this GPU has no bf16 products"
    if device.type != "cpu":
        return f"bf16 was not measured on {device.type}"
    flags: list[str] = []
    with suppress(OSError):
        flags = cpuinfo.read_text().split()
    if AVAILABLE and "amx_bf16" in flags:
        return None
    if not AVAILABLE or "avx512_bf16" not in flags:
        return "this processor lists no bf16 products (amx_bf16, avx512_bf16)"
    return "Intel's processors multiply bf16 no faster without AMX" if is_intel_cpu(cpuinfo) else None


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN's float32 products are faster than PyTorch's own on this processor, found out once."""
    return AVAILABLE and not (torch.backends.mkl.is_available() and is_intel_cpu())


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters and the same results to float32's accuracy."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if served_by_onednn(x, self.weight):
            return _OneDnnLinear.apply(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


def served_by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether it is a float32 product of many rows on a CPU, with no other matmul precision set."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= MIN_ROWS * weight.shape[1]
        and not torch.is_autocast_enabled("cpu")
        and _chosen()
    )


def _chosen() -> bool:
    return torch.get_float32_matmul_precision() == "highest" and onednn_is_faster()


# What torch.compiler.assume_constant_result sets, without the seconds that importing torch._dynamo takes.
_chosen._dynamo_marked_constant = True


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x = _product(grad, weight.mT, None) if ctx.needs_input_grad[0] else None
        grad_weight = _product(grad_rows.mT, rows.mT, None) if ctx.needs_input_grad[1] else None
        grad_bias = grad_rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


# An operator of our own around oneDNN's, which torch.compile supports in packed form only.
_library = torch.library.Library("medsora_denoiser", "DEF")
_library.define("product(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


@torch.library.impl(_library, "product", "CPU")
def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.register_fake("medsora_denoiser::product", lib=_library)
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@register_flop_formula(torch.ops.medsora_denoiser.product)
def _flops(x_shape: torch.Size, weight_shape: torch.Size, *_, out_shape=None, **__) -> int:
    """Count these products for PyTorch's FlopCounterMode, as it counts its own."""
    return 2 * math.prod(x_shape) * weight_shape[0]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·weightᵀ + bias."""
    return torch.ops.medsora_denoiser.product(x, weight, bias)
