"""Limits of the fused Triton kernels on a device, and how their work is divided among programs."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

import torch

HEADDIMS = (16, 32, 64, 128)
D_STATES = range(16, 257)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_TILE_STEPS = 64  # steps per tile
MAX_CHANNELS = 64  # channels of a head per program; more would spill registers
MAX_KEYS, MAX_KEY_BYTES = 128, 2**14  # keys of local attention per program, and their size
MAX_COLUMNS_BEFORE_HOPPER, MAX_NUMBERS_BEFORE_HOPPER = 128, 9216  # features; elements of queries and keys
MIN_QUERIES = 16  # rows of a matrix instruction
MIN_CAPABILITY = (8, 0)  # first with bf16 products
HOPPER = (9, 0)


class Gpu(NamedTuple):
    """Properties of a GPU by which work is cut into programs."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int  # the limit for one program


INTERPRETER = Gpu(HOPPER, 1, 227 * 1024)


def gpu(device: torch.device) -> Gpu:
    """Properties of a device; of a CPU those that the interpreter assumes."""
    if device.type != "cuda":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    return Gpu(
        (properties.major, properties.minor),
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,
    )


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on CPU tensors, slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def declines(device: str, dtype: torch.dtype, headdim: int, d_state: int) -> str | None:
    """Return the reason why the scan's kernels do not support such tensors, or None."""
    if reason := declines_tensors(device, dtype):
        return reason
    if headdim not in HEADDIMS:
        return f"its kernels are made for a headdim of {HEADDIMS}, not {headdim}"
    if d_state not in D_STATES:
        return f"its kernels are made for states of {D_STATES.start} to {D_STATES.stop - 1}, not {d_state}"
    return None


def declines_tensors(device: str, dtype: torch.dtype) -> str | None:
    """Return the reason why no kernel takes tensors of that device, or None."""
    if device != "cuda" and not interpreted():
        return f"its kernels need a GPU and the tokens are on {device}"
    if dtype not in DTYPES:
        return f"its kernels do not compute in {dtype}"
    return None


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches go to this device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def split_of_a_head(headdim: int, d_state: int, steps: int, memory: int) -> int:
    """Parts in which a head's channels are computed, so that `memory` bytes of shared memory suffice.

    The channels of a head do not meet inside the scan: a part is a head of its own with the same Δ, A and D.
    """
    for channels in reversed(HEADDIMS):
        if channels <= min(headdim, MAX_CHANNELS) and shared_bytes(channels, d_state, steps) <= memory:
            return headdim // channels
    return headdim // min(HEADDIMS)


def shared_bytes(channels: int, d_state: int, steps: int) -> int:
    """Shared memory of a program of so many channels of a head, in sequences of so many steps, at most.

    A bound on what the compiler allocates, forward and backward, in every dtype, beside which
    tests/support/triton/compile_triton.py prints it. States of 256 in 16 channels take 96 KiB, which every
    GPU has that the kernels run on.
    """
    if steps <= MAX_TILE_STEPS:
        return 2**16
    return max(2**16, _power_of_two(max(d_state, 16)) * (256 + 8 * channels))


def before_hopper(device: torch.device) -> bool:
    """Whether a GPU takes the operands of its products from registers alone, which hold less of them."""
    return gpu(device).capability < HOPPER


def attention_tile(length: int, window: int, *, small: bool = False) -> tuple[int, int]:
    """Queries of a frame of so many tokens that a program attends for, and the keys that it holds."""
    if length <= (MIN_QUERIES if small else MAX_TILE_STEPS):
        whole = max(MIN_QUERIES, _power_of_two(length))
        return whole, whole
    queries = MIN_QUERIES if small else MAX_TILE_STEPS // 2
    return queries, _power_of_two(queries + 2 * window)


def fitting_attention_tile(maps: int, length: int, window: int, device: torch.device) -> tuple[int, int]:
    """`attention_tile` for so many frames times heads: small before Hopper or where a GPU would idle."""
    large, small = (attention_tile(length, window, small=small) for small in (False, True))
    idles = maps * -(-length // large[0]) < gpu(device).multiprocessors
    return small if before_hopper(device) or (idles and small[1] <= large[1]) else large


def attention_warps(dtype: torch.dtype, *, before_hopper: bool = False) -> int:
    """Warps of a program of attention, among which its registers are divided."""
    return 8 if dtype == torch.float32 or before_hopper else 4


def attends(length: int, window: int, features: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether most of a program's scores and keys stay in registers, by what the compiler spills.

    In float32 they do on Hopper and newer alone.
    """
    old = before_hopper(device)
    queries, keys = attention_tile(length, window, small=old)
    columns = max(16, _power_of_two(features))
    if keys > MAX_KEYS or keys * columns * dtype.itemsize > MAX_KEY_BYTES:
        return False
    return not old or (
        dtype != torch.float32
        and columns <= MAX_COLUMNS_BEFORE_HOPPER
        and (queries + keys) * columns <= MAX_NUMBERS_BEFORE_HOPPER
    )


class GatesTile(NamedTuple):
    """Tile of a program of the gates, the terms of a sum that it holds at once, and its warps."""

    rows: int
    columns: int
    terms: int
    warps: int


def gates_tile(rows: int, width: int, device: torch.device) -> GatesTile:
    """Tiles of a size that reuses what it reads, if they are enough for a GPU; else small ones."""
    large, small = GatesTile(64, 128, 64, 8), GatesTile(32, 32, 64, 8)
    programs = -(-rows // large.rows) * -(-width // large.columns)
    return large if programs >= gpu(device).multiprocessors else small


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def chunked_tile(dtype: torch.dtype, *, backward: bool) -> int:
    """Steps of a chunk, so few that most of what a program holds of them stays in registers.

    float32 takes twice the registers, and its products of three TF32 each twice again.
    """
    if dtype == torch.float32:
        return 16
    return MAX_TILE_STEPS // 2 if backward else MAX_TILE_STEPS
