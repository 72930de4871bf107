"""Dispatch of scans: the fastest backend that supports the given tensors, and why not another."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from medsora.kernels import mamba_ssm_backend, reference
from medsora.kernels.choices import FASTEST_FIRST
from medsora.kernels.fused import backend as triton_backend
from medsora.kernels.fused import plan as fused_plan
from medsora.kernels.matrix import scan as ssd

log = logging.getLogger(__name__)

_SCANS = {
    "triton": triton_backend.scan,
    "mamba_ssm": mamba_ssm_backend.scan,
    "torch": ssd.scan,
    "reference": reference.scan,
}
_reported: set[str] = set()
_permutations = WeakIdKeyDictionary()  # tables that were checked, and the version of their content


def mamba2_scan(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    *,
    orders: Tensor | None = None,
    headdim: int,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """One Mamba-2 layer between its two projections (Eq. 3 with a scalar A per head, gated RMS norm last).

    Args:
        zxbcdt: projected tokens (b, L, 2*d_inner + 2*N + heads): gate z, x, B, C and Δ before its bias,
            laid out as mamba_ssm's Mamba2 does with one group.
        conv_weight: taps of the causal depth-wise convolution over x, B, C: (d_inner + 2*N, width) or
            (d_inner + 2*N, 1, width).
        conv_bias: (d_inner + 2*N,).
        dt_bias, A_log, D: (heads,): Δ = softplus(dt + dt_bias), A = -exp(A_log), and the skip D*x.
        norm_weight: (d_inner,) of the gated norm RMSNorm(y * silu(z)).
        orders: (k, L) integers, each row a permutation. The tokens are scanned in each of the k orders; the
            results, back in token order, are summed. None scans them once as they are.
            Or (axes, k, S, l) with S*l = L: along each axis the tokens fall into S sequences of l, scanned
            apart, in k orders that are summed. So tokens that lie in a grid are scanned along rows, columns
            or frames without being rearranged. int32 tables on the tokens' device are taken as they are.
            A table is checked when it is first seen, which waits for a GPU once: keep it between calls.
        headdim: channels per head; d_inner = heads * headdim.
        eps: ε of the RMS norm.
        backend: "auto" or one of `backends()`.

    Returns:
        (b, L, d_inner), or (axes, b, L, d_inner) for orders of four dimensions, in token order and the
        tokens' dtype, ready for the output projection.

    Raises:
        ValueError: shapes that do not fit together, orders that are no permutations, an unknown backend, or
            one that cannot serve here.
    """
    weights = (conv_weight, conv_bias, dt_bias, A_log, D, norm_weight)
    _check_shapes(zxbcdt, weights, orders, headdim)
    d_state = (conv_bias.numel() - norm_weight.numel()) // 2
    name = _choose(backend, zxbcdt.device.type, zxbcdt.dtype, headdim, d_state)
    if orders is None:
        orders = torch.arange(zxbcdt.shape[1], dtype=torch.int32, device=zxbcdt.device)[None]
    else:
        _check_permutations(orders)
    per_axis = _SCANS[name](
        zxbcdt,
        *weights,
        orders=orders if orders.dim() == 4 else orders[None, :, None],
        headdim=headdim,
        eps=eps,
    )
    return per_axis if orders.dim() == 4 else per_axis[0]


def backends() -> dict[str, str | None]:
    """Each backend's name, with None if it can be used on this machine, else the reason why not."""
    return {name: _unusable(name) for name in FASTEST_FIRST}


def _unusable(name: str) -> str | None:
    if name == "triton":
        return triton_backend.unusable()
    if name == "mamba_ssm":
        return mamba_ssm_backend.unusable()
    return None


def _choose(backend: str, device: str, dtype: torch.dtype, headdim: int, d_state: int) -> str:
    if backend == "auto":
        for name in FASTEST_FIRST:
            reason = _declines(name, device, dtype, headdim, d_state)
            if reason is None:
                return name
            _tell_once(f"scan backend {name!r} declined: {reason}", device)
    if backend not in FASTEST_FIRST:
        raise ValueError(
            f"scan backend {backend!r} is unknown; choose one of auto, {', '.join(FASTEST_FIRST)}."
        )
    if reason := _declines(backend, device, dtype, headdim, d_state):
        raise ValueError(f"scan backend {backend!r} cannot serve here: {reason}; 'auto' takes one that can.")
    return backend


# What torch.compiler.assume_constant_result sets, without the seconds that importing torch._dynamo takes.
_choose._dynamo_marked_constant = True


def _declines(name: str, device: str, dtype: torch.dtype, headdim: int, d_state: int) -> str | None:
    if reason := _unusable(name):
        return reason
    if name == "triton":
        return fused_plan.declines(device, dtype, headdim, d_state)
    if name == "mamba_ssm" and device != "cuda":
        return f"its kernels need a GPU and the tokens are on {device}"
    if name == "mamba_ssm" and dtype == torch.float64:
        return "its kernels do not compute in float64"
    return None


def _tell_once(sentence: str, device: str) -> None:
    """Log `sentence` once: as a warning on a GPU, else as information, since a CPU runs no GPU kernels."""
    if sentence not in _reported:
        _reported.add(sentence)
        log.log(logging.WARNING if device == "cuda" else logging.INFO, sentence)


def _check_shapes(zxbcdt: Tensor, weights: tuple[Tensor, ...], orders: Tensor | None, headdim: int) -> None:
    conv_weight, conv_bias, dt_bias, A_log, D, norm_weight = weights
    if zxbcdt.dim() != 3 or zxbcdt.shape[1] == 0:
        raise ValueError(f"zxbcdt must be (sequences, tokens >= 1, features), got {tuple(zxbcdt.shape)}.")
    heads, d_inner, channels = D.numel(), norm_weight.numel(), conv_bias.numel()
    if headdim < 1 or d_inner != heads * headdim:
        needed = heads * headdim
        raise ValueError(
            f"norm_weight has {d_inner} channels, {heads} heads of headdim {headdim} need {needed}."
        )
    d_state, odd = (channels - d_inner) // 2, (channels - d_inner) % 2  # torch.compile has no divmod
    if d_state < 1 or odd:
        raise ValueError(
            f"conv_bias has {channels} channels where d_inner + 2*N with d_inner = {d_inner} is needed."
        )
    expected = {
        "zxbcdt": (zxbcdt, (*zxbcdt.shape[:2], d_inner + channels + heads)),
        "dt_bias": (dt_bias, (heads,)),
        "A_log": (A_log, (heads,)),
        "D": (D, (heads,)),
        "norm_weight": (norm_weight, (d_inner,)),
        "conv_bias": (conv_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}.")
    if conv_weight.shape[0] != channels or conv_weight.numel() != channels * conv_weight.shape[-1]:
        shape = tuple(conv_weight.shape)
        raise ValueError(f"conv_weight must be ({channels}, width) or ({channels}, 1, width), got {shape}.")
    if orders is not None:
        length = zxbcdt.shape[1]
        fits = orders.dim() in (2, 4) and length == orders.shape[-1] * (
            orders.shape[2] if orders.dim() == 4 else 1
        )
        if not fits or orders.is_floating_point():
            raise ValueError(
                f"orders must be integers (k, {length}) or (axes, k, S, l) with S*l = {length}, "
                f"got {orders.dtype} {tuple(orders.shape)}."
            )
        if orders.device != zxbcdt.device:
            raise ValueError(f"orders are on {orders.device} while the tokens are on {zxbcdt.device}.")


def _check_permutations(orders: Tensor) -> None:
    """Refuse orders that do not visit each token once; content that cannot be read now is not checked."""
    if torch.compiler.is_compiling() or type(orders) is not Tensor or orders.is_meta:
        return
    version = None if orders.is_inference() else orders._version
    if orders in _permutations and _permutations[orders] == version:
        return
    if orders.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    with _disable_current_modes():
        rows = orders.flatten(2) if orders.dim() == 4 else orders
        each_once = rows.sort(-1).values == torch.arange(rows.shape[-1], device=rows.device)
        if not each_once.all():
            raise ValueError(f"orders must visit each of the {rows.shape[-1]} tokens once, in every row.")
    _permutations[orders] = version
