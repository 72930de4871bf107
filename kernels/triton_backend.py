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
LONGEST_TILE = 64  # steps that a program computes at once
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
        if reason := _no_launcher():
            return reason
    importlib.import_module("kernels.triton_ssd")
    return None


def _no_launcher() -> str | None:
    """Why Triton can launch nothing here, or None: it builds its launcher with a C compiler at first use."""
    try:
        _ = importlib.import_module("triton.runtime").driver.active.utils
    except Exception as error:  # whatever a compiler, a header or a driver may say
        first = (str(error) or type(error).__name__).splitlines()[0]
        return f"Triton cannot build its launcher here ({first}); it needs a C compiler and Python's headers"
    return None


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on CPU tensors, slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def declines(device: str, dtype: torch.dtype, headdim: int, d_state: int, steps: int) -> str | None:
    """Why the kernels cannot serve such tensors in sequences of so many steps, or None."""
    if device != "cuda" and not interpreted():
        return f"its kernels need a GPU and the tokens are on {device}"
    if dtype not in DTYPES:
        return f"its kernels do not compute in {dtype}"
    if headdim not in HEADDIMS:
        return f"its kernels are made for a headdim of {HEADDIMS}, not {headdim}"
    if d_state not in D_STATES:
        return f"its kernels are made for states of {D_STATES.start} to {D_STATES.stop - 1}, not {d_state}"
    if not interpreted():
        gpu = torch.cuda.get_device_properties()
        needed, there = (
            shared_bytes(dtype, headdim, d_state, steps, gpu.major),
            gpu.shared_memory_per_block_optin,
        )
        if needed > there:
            return (
                f"sequences of {steps} steps in {dtype} with a headdim of {headdim} and states of {d_state} "
                f"need {needed:,} bytes of shared memory, and this GPU has {there:,}"
            )
    return None


def shared_bytes(dtype: torch.dtype, headdim: int, d_state: int, steps: int, capability: int) -> int:
    """Shared memory that the kernels take at most for sequences of so many steps, forward or backward.

    A bound on what the compiler asks for, which tests/kernels/compile_triton.py prints. `capability` is the
    major one: on Hopper, 9, products of half precision leave more in registers.
    """
    channels = max(headdim, 64)
    least = 1024 * channels
    if steps <= LONGEST_TILE:
        return least
    states = 1 << (max(d_state, 16) - 1).bit_length()
    if dtype == torch.float32:
        return max(least, states * (256 + 8 * channels) + 2 * channels**2)
    return max(least, states * (768 if capability == 9 else 256 + 8 * channels))


def chunked_tile(dtype: torch.dtype) -> int:
    """Steps of a chunk: float32 takes twice the memory, and its products of three TF32 each twice again."""
    return LONGEST_TILE // 2 if dtype == torch.float32 else LONGEST_TILE


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
