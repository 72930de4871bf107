"""The fused Triton kernels as a backend: what they can serve, how they are cut, the scan's call.

The kernels themselves are imported late.
"""

from __future__ import annotations

import contextlib
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
MOST_CHANNELS = 64  # of a head that a program computes at once: with more its registers spill
HOPPER_MEMORY = 227 * 1024  # shared, of a block: what the interpreter goes by
MOST_KEYS, KEY_BYTES = 128, 2**14  # of local attention that a program holds
OLDEST_CAPABILITY = (8, 0)  # bf16 products
HOPPER = (9, 0)


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
    importlib.import_module("kernels.triton_block")
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


def declines(device: str, dtype: torch.dtype, headdim: int, d_state: int) -> str | None:
    """Why the scan's kernels cannot serve such tensors, or None."""
    if reason := declines_tensors(device, dtype):
        return reason
    if headdim not in HEADDIMS:
        return f"its kernels are made for a headdim of {HEADDIMS}, not {headdim}"
    if d_state not in D_STATES:
        return f"its kernels are made for states of {D_STATES.start} to {D_STATES.stop - 1}, not {d_state}"
    return None


def declines_tensors(device: str, dtype: torch.dtype) -> str | None:
    """Why no kernel takes tensors from there, or None."""
    if device != "cuda" and not interpreted():
        return f"its kernels need a GPU and the tokens are on {device}"
    if dtype not in DTYPES:
        return f"its kernels do not compute in {dtype}"
    return None


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches go to this device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def split_of_a_head(headdim: int, d_state: int, steps: int) -> int:
    """Parts in which a head's channels are computed, so that a program's shared memory suffices.

    The channels of a head do not meet inside the scan: a part is a head of its own with the same Δ, A and D.
    """
    for channels in reversed(HEADDIMS):
        if channels <= min(headdim, MOST_CHANNELS) and shared_bytes(channels, d_state, steps) <= _memory():
            return headdim // channels
    return headdim // min(HEADDIMS)


def shared_bytes(channels: int, d_state: int, steps: int) -> int:
    """Shared memory of a program of so many channels of a head, in sequences of so many steps, at most.

    A bound on what the compiler asks for, forward and backward, in every dtype, beside which
    tests/kernels/compile_triton.py prints it. States of 256 in 16 channels take 96 KiB, which every GPU has
    that the kernels run on.
    """
    if steps <= LONGEST_TILE:
        return 2**16
    return max(2**16, _power_of_two(max(d_state, 16)) * (256 + 8 * channels))


def attention_tile(length: int, window: int) -> tuple[int, int]:
    """Queries of a frame of so many tokens that a program attends for, and the keys that it holds."""
    if length <= LONGEST_TILE:
        whole = max(16, _power_of_two(length))
        return whole, whole
    return LONGEST_TILE // 2, _power_of_two(LONGEST_TILE // 2 + 2 * window)


def attends(length: int, window: int, features: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether most of a program's scores and keys stay in registers, by what the compiler spills.

    In float32 they do on Hopper and newer alone.
    """
    _, keys = attention_tile(length, window)
    before_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) < HOPPER
    return (
        keys <= MOST_KEYS
        and keys * max(16, _power_of_two(features)) * dtype.itemsize <= KEY_BYTES
        and not (dtype == torch.float32 and before_hopper)
    )


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def chunked_tile(dtype: torch.dtype, *, backward: bool) -> int:
    """Steps of a chunk, so few that most of what a program holds of them stays in registers.

    float32 takes twice the registers, and its products of three TF32 each twice again.
    """
    if dtype == torch.float32:
        return 16
    return LONGEST_TILE // 2 if backward else LONGEST_TILE


def _memory() -> int:
    if interpreted():
        return HOPPER_MEMORY
    return torch.cuda.get_device_properties().shared_memory_per_block_optin


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
