"""The fused Triton kernels as a backend: whether this machine runs them, and the scan's call.

The kernels themselves are imported late.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util

import torch
from torch import Tensor

from medsora.kernels.fused.plan import MIN_CAPABILITY, interpreted


@functools.cache
def unusable() -> str | None:
    """Return the reason why the kernels cannot run on this machine, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not interpreted():
        if not torch.cuda.is_available():
            return "its kernels need a GPU and none is visible"
        if torch.cuda.get_device_capability() < MIN_CAPABILITY:
            return "its kernels need a GPU of compute capability 8.0 or newer"
        if reason := _no_launcher():
            return reason
    return None


def register() -> None:
    """Make the kernels known as `torch.ops.medsora`; needs a machine where they are not `unusable`."""
    importlib.import_module("medsora.kernels.fused.scan")
    importlib.import_module("medsora.kernels.fused.block")
    importlib.import_module("medsora.kernels.fused.gates")


# What torch.compiler.assume_constant_result sets: torch.compile registers them too, while it traces.
register._dynamo_marked_constant = True


def _no_launcher() -> str | None:
    """Return why Triton cannot launch here, or None: its launcher needs a C compiler at first use."""
    try:
        _ = importlib.import_module("triton.runtime").driver.active.utils
    except Exception as error:  # any failure of a compiler, a header or a driver
        first = (str(error) or type(error).__name__).splitlines()[0]
        return f"Triton cannot build its launcher here ({first}); it needs a C compiler and Python's headers"
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
    gated: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `kernels.mamba2_scan` describes, with orders (axes, k, S, l). Sums are kept in float32.

    If `gated`, along one order, the norm has not divided yet: (b, L, d_inner), and what sums up to the square
    of its divisor (parts, b, L).
    """
    register()
    scanned = torch.ops.medsora.gated_scan if gated else torch.ops.medsora.scan
    return scanned(
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
