"""The scan by the package `mamba-ssm`, whose Triton kernels need a GPU. Imported late: the package is heavy.

Two of its functions can serve: `mamba_split_conv1d_scan_combined` where the compiled `causal_conv1d_cuda` is
present, else `mamba_chunk_scan_combined` after a plain convolution. `function_in_use()` returns which.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from medsora.kernels.matrix.orders import gather_in_order, invert_orders, scatter_to_tokens

CHUNK = 256  # tokens; the package's default


@functools.cache
def unusable() -> str | None:
    """Return the reason why the package cannot be used here, or None."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return "mamba-ssm is not installed"
    if not torch.cuda.is_available():
        return "mamba-ssm's kernels need a GPU and none is visible"
    try:
        importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    except ImportError as error:
        return f"mamba-ssm cannot be imported: {error}"
    return None


def function_in_use() -> str:
    """Name of the package's function that `scan` calls in this environment."""
    compiled = importlib.util.find_spec("causal_conv1d_cuda") is not None
    return "mamba_split_conv1d_scan_combined" if compiled else "mamba_chunk_scan_combined"


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
    """As `kernels.mamba2_scan` describes, with orders (axes, k, S, l); tokens are gathered, then put back.

    The package's products multiply what a step must not see by 0, which NaN survives: tokens that are not
    finite are zeros in them, and all later ones are NaN.
    """
    weights = (conv_weight, conv_bias, dt_bias, A_log, D, norm_weight)
    flat_orders = orders.flatten(0, 1)
    inverse_orders = invert_orders(flat_orders)
    ordered = gather_in_order(zxbcdt, flat_orders, inverse_orders)
    usable = ordered.detach().isfinite().all(-1, keepdim=True)  # (b, w, S, l, 1)
    broken = torch.zeros_like(ordered[..., :1]).masked_fill(~usable, torch.nan)
    finite = ordered.masked_fill(~usable, 0).flatten(0, 2)
    steps = scan_sequences(finite, *weights, headdim, eps).unflatten(0, ordered.shape[:3]) + broken.cumsum(3)
    by_order = scatter_to_tokens(steps.unsqueeze(3), flat_orders, inverse_orders)
    return by_order.unflatten(1, orders.shape[:2]).sum(2).transpose(0, 1)


def scan_sequences(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    headdim: int,
    eps: float,
) -> Tensor:
    """Scan projected sequences (S, l, P) as they lie: (S, l, d_inner)."""
    package = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    run = _split_conv if function_in_use() == "mamba_split_conv1d_scan_combined" else _plain_conv
    taps = conv_weight.reshape(conv_bias.numel(), -1)
    weights = (taps, conv_bias, dt_bias, -torch.exp(A_log.float()), D, norm_weight)
    return run(package, zxbcdt, *weights, headdim, eps)


def _split_conv(package, zxbcdt, taps, conv_bias, dt_bias, A, D, norm_weight, headdim, eps) -> Tensor:
    return package.mamba_split_conv1d_scan_combined(
        zxbcdt,
        taps,
        conv_bias,
        dt_bias,
        A,
        D,
        CHUNK,
        rmsnorm_weight=norm_weight,
        rmsnorm_eps=eps,
        headdim=headdim,
        norm_before_gate=False,
    )


def _plain_conv(package, zxbcdt, taps, conv_bias, dt_bias, A, D, norm_weight, headdim, eps) -> Tensor:
    batch, length, _ = zxbcdt.shape
    heads, d_inner, channels = D.numel(), norm_weight.numel(), conv_bias.numel()
    d_state = (channels - d_inner) // 2
    z, xBC, dt = zxbcdt.split([d_inner, channels, heads], dim=-1)
    padded = F.pad(xBC.transpose(1, 2), (taps.shape[1] - 1, 0))
    xBC = F.silu(
        F.conv1d(padded, taps.to(xBC.dtype)[:, None], conv_bias.to(xBC.dtype), groups=channels)
    ).transpose(1, 2)
    x, B, C = xBC.split([d_inner, d_state, d_state], dim=-1)
    y = package.mamba_chunk_scan_combined(
        x.reshape(batch, length, heads, headdim),
        dt.contiguous(),
        A,
        B.reshape(batch, length, 1, d_state),
        C.reshape(batch, length, 1, d_state),
        CHUNK,
        D=D,
        dt_bias=dt_bias,
        dt_softplus=True,
    )
    gated = y.reshape(batch, length, d_inner).float() * F.silu(z.float())
    normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
    return (normed * norm_weight.float()).to(zxbcdt.dtype)
