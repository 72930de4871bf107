"""The scan alone at length 48 against mamba-ssm's own PyTorch reference: `python -m benchmarks.scan`.

The spatial scans of a block of B: eight rows and eight columns of 48 tokens per clip, two directions each.
The package's reference gets its sequences ready in scan order, one chunk each; ours fetches and puts back
its own. `benchmarks.kernels` times the kernels beside each other; this one comparison needs no GPU.

Memory is allocated as PyTorch does by default. With `--keep-freed` it is as in our programs:
the package's reference, which needs more of it, gains more by that.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels import D_INNER, HEADDIM, block_scans
from benchmarks.support.bare_machine import make_do
from benchmarks.support.measure import RESULTS, device_name, keep, median_ms, positive, ratio, take_turns
from medsora.kernels import mamba2_scan
from medsora.runtime.malloc import keep_freed_memory

LENGTH = 48


def main() -> None:
    """Check that both give the same numbers, measure, print and keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scan", description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=positive, nargs="+", default=(1, 2))
    parser.add_argument("--rounds", type=positive, default=15, help="A B A B ... (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where to append")
    parser.add_argument(
        "--keep-freed", action="store_true", help="let glibc keep freed memory; implies --dry"
    )
    parser.add_argument("--dry", action="store_true", help="print, but keep nothing")
    options = parser.parse_args()
    make_do()  # the package's Python files, without its compiled parts
    if options.keep_freed:
        keep_freed_memory()
    device = torch.device("cpu")
    for batch in options.batches:
        values = measure(batch, options.rounds)
        print(f"{device_name(device)}, batch {batch}: {values['scan']} {values['ms']}")
        if not options.dry and not options.keep_freed:
            keep("scan", device, values, options.results)


@torch.no_grad()
def measure(batch: int, rounds: int) -> dict[str, object]:
    """Times of a block's spatial scans both ways. Raises `RuntimeError` if the numbers differ."""
    inputs, orders = block_scans(batch, LENGTH // 8, torch.device("cpu"), torch.float32)[0]
    sequences = inputs["zxbcdt"][:, orders.long().flatten(0, 1)].flatten(0, 2).contiguous()
    weights = {name: value for name, value in inputs.items() if name != "zxbcdt"}
    theirs = partial(_package_reference, sequences, **weights)
    ours = partial(mamba2_scan, **inputs, orders=orders, headdim=HEADDIM, backend="torch")
    expected = put_back_and_sum(theirs(), orders, batch, inputs["zxbcdt"].shape[1])
    error = float((ours() - expected).abs().max() / expected.abs().max())
    if not error < 1e-4:
        raise RuntimeError(f"the two scans differ by {error:.1e}: their times do not compare")
    times = take_turns({"package's reference": theirs, "ours": ours}, rounds, torch.device("cpu"))
    return {
        "batch": batch,
        "length": LENGTH,
        "rounds": rounds,
        "ms": {name: round(median_ms(seconds), 2) for name, seconds in times.items()},
        "scan": ratio(times["package's reference"], times["ours"]),
    }


def _package_reference(
    zxbcdt: Tensor,
    *,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
) -> Tensor:
    """Sequences (b, L, features) through mamba-ssm's reference of the scan and of the gated norm."""
    try:
        from mamba_ssm.ops.triton.layernorm_gated import rms_norm_ref
        from mamba_ssm.ops.triton.ssd_combined import ssd_chunk_scan_combined_ref
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"error: {error.name} is not installed, which this compares with; 'make .venv/.parity' installs "
            "mamba-ssm as pure Python, without nvcc."
        ) from error

    length, heads = zxbcdt.shape[1], dt_bias.shape[0]
    d_state = (conv_weight.shape[0] - D_INNER) // 2
    z, xbc, dt = zxbcdt.split([D_INNER, conv_weight.shape[0], heads], dim=-1)
    padding, groups = conv_weight.shape[1] - 1, conv_weight.shape[0]
    xbc = F.conv1d(xbc.mT, conv_weight[:, None], conv_bias, padding=padding, groups=groups)[..., :length]
    x, b, c = F.silu(xbc.mT).split([D_INNER, d_state, d_state], dim=-1)
    y = ssd_chunk_scan_combined_ref(
        x.unflatten(-1, (heads, HEADDIM)),
        F.softplus(dt + dt_bias),
        -A_log.exp(),
        b[:, :, None],
        c[:, :, None],
        length,
        D=D,
    )
    return rms_norm_ref(y.flatten(2), norm_weight, None, z=z, eps=1e-5, norm_before_gate=False)


def put_back_and_sum(y: Tensor, orders: Tensor, batch: int, tokens: int) -> Tensor:
    """Outputs in scan order (b·a·k·S, l, c) -> summed over directions: (a, b, T, c)."""
    scanned = y.unflatten(0, (batch, *orders.shape[:3]))
    placed = y.new_zeros(*orders.shape[:2], batch, tokens, y.shape[-1])
    for axis, of_axis in enumerate(orders.long()):
        for direction, order in enumerate(of_axis):
            placed[axis, direction, :, order.flatten()] = scanned[:, axis, direction].flatten(1, 2)
    return placed.sum(1)


if __name__ == "__main__":
    main()
