"""The fused Triton scan as a backend: what it can serve, and its call. Its kernels are imported late."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os

import torch
from torch import Tensor

HEADDIMS = (16, 32, 64, 128)
D_STATES = range(16, 257)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)  # bf16 products


@functools.cache
def unusable() -> str | None:
    """Why the kernels cannot run on this machine, or None. Registers the operators where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not interpreted():
        if not torch.cuda.is_available():
            return "its kernels need a GPU and none is visible"
        if torch.cuda.get_device_capability() < OLDEST_CAPABILITY:
            return "its kernels need a GPU of compute capability 8.0 or newer"
    importlib.import_module("kernels.triton_ssd")
    return None


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on CPU tensors, slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def declines(device: str, dtype: torch.dtype, headdim: int, d_state: int) -> str | None:
    """Why the kernels cannot serve such tensors, or None."""
    if device != "cuda" and not interpreted():
        return f"its kernels need a GPU and the tokens are on {device}"
    if dtype not in DTYPES:
        return f"its kernels do not compute in {dtype}"
    if headdim not in HEADDIMS:
        return f"its kernels are made for a headdim of {HEADDIMS}, not {headdim}"
    if d_state not in D_STATES:
        return f"its kernels are made for states of {D_STATES.start} to {D_STATES.stop - 1}, not {d_state}"
    return None


def scan(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    *,
    orders: Tensor,
    headdim: int,
    eps: float,
) -> Tensor:
    """As `kernels.mamba2_scan` describes, with orders (axes, k, S, l). Sums are kept in float32."""
    return torch.ops.medsora.scan(
        zxbcdt if zxbcdt.stride(-1) == 1 else zxbcdt.contiguous(),
        conv_weight.reshape(conv_bias.shape[0], -1).contiguous(),
        conv_bias.contiguous(),
        dt_bias.contiguous(),
        A_log.contiguous(),
        D.contiguous(),
        norm_weight.contiguous(),
        orders.to(torch.int32).contiguous(),
        eps,
    )
