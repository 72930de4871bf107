"""Weights of a wider base VAE that does what a narrow one does: `python -m tools.widen_vae NARROW WIDE OUT`.

Every channel of a level that has twice as many becomes two equal ones, and what reads it shares its weights
among them (Net2Net, Chen et al., 2016). One of the two shares is negative: the copies get nearly
opposite gradients; with equal ones, Adam would move both alike for ever. Group norms see the same
statistics because the copies lie side by side, in one group.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from medsora.errors import BadInput, bad_input_from_errors
from medsora.flow_prior.weights import save_weights
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import written_beside
from medsora.vae.base import load_base

SHORTCUT = "conv_shortcut"  # there where a block's width changes
FIRST_SHARE = (1.3, 1.7)  # range; the second copy has the rest to 1


def main() -> None:
    """Read NARROW.json with its weights and WIDE.json, write OUT (fp32)."""
    parser = argparse.ArgumentParser(prog="python -m tools.widen_vae", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("narrow", type=Path, help="a base VAE's JSON config; its weights lie beside it, as .safetensors")
    add("wide", type=Path, help="a JSON config whose levels have as many channels or twice as many")
    add("out", type=Path, help="the file to write")
    add("--seed", type=int, default=0, metavar="N", help="decides how pairs share (default: 0)")
    options = parser.parse_args()
    with bad_input_from_errors():
        weights = options.narrow.with_suffix(".safetensors")
        narrow, wide = load_base(options.narrow, weights), load_base(options.wide)
        state = widened(narrow.state_dict(), wide.state_dict(), options.seed)
    with written_beside(options.out) as beside:
        save_weights(state, beside)
    print(f"{sum(t.numel() for t in state.values()):,} numbers: {options.out}")


def widened(narrow: dict[str, Tensor], wide: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return tensors of `wide`'s shapes with which it computes what `narrow` computes.

    Raises `BadInput` if one is neither as large as its counterpart nor twice as large along its channels.
    """
    generator, result = torch.Generator().manual_seed(seed), {}
    narrow = narrow | {
        name: _identity(wide[name]) for name in wide.keys() - narrow.keys() if SHORTCUT in name
    }
    if other := sorted(narrow.keys() ^ wide.keys()):
        raise BadInput(f"only one of the two VAEs has {other[0]}.")
    for name in sorted(narrow):
        tensor, shape = narrow[name].float(), wide[name].shape
        for axis in range(min(tensor.ndim, 2)):
            if shape[axis] == 2 * tensor.shape[axis]:
                count = tensor.shape[axis]
                tensor = tensor.repeat_interleave(2, dim=axis)
                if axis == 1:
                    first = torch.empty(count).uniform_(*FIRST_SHARE, generator=generator)
                    shares = torch.stack([first, 1 - first], dim=1).flatten()
                    tensor = tensor * shares.view(1, -1, *[1] * (tensor.ndim - 2))
        if tensor.shape != shape:
            raise BadInput(
                f"{name} is {tuple(narrow[name].shape)} in the narrow VAE and {tuple(shape)} in the wide one."
            )
        result[name] = tensor.contiguous()
    return result


def _identity(like: Tensor) -> Tensor:
    """Return what a shortcut that only the wide VAE has does in the narrow one: it hands everything on."""
    count = min(like.shape[:2])
    return torch.eye(count).view(count, count, *like.shape[2:]) if like.ndim > 1 else torch.zeros(count)


if __name__ == "__main__":
    exit_with_status(main)
