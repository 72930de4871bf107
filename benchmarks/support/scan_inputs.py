"""Random inputs of a scan, and outputs with every gradient, for comparing backends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WEIGHTS = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")


def random_inputs(
    length: int,
    *,
    batch: int = 2,
    heads: int = 2,
    headdim: int = 8,
    d_state: int = 6,
    orders: int = 0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor | None]:
    """Tokens and weights in the range that a trained layer has; `orders` random permutations, or none."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    d_inner = heads * headdim
    channels = d_inner + 2 * d_state
    inputs = {
        "zxbcdt": normal(batch, length, d_inner + channels + heads),
        "conv_weight": normal(channels, 4) / 2,
        "conv_bias": normal(channels) / 4,
        "dt_bias": normal(heads) - 3,
        "A_log": torch.log(1 + 15 * torch.rand(heads, generator=generator, dtype=torch.float64)),
        "D": normal(heads),
        "norm_weight": 1 + normal(d_inner) / 4,
    }
    inputs = {name: value.to(dtype) for name, value in inputs.items()}
    shuffled = [torch.randperm(length, generator=generator) for _ in range(orders)]
    return inputs | {"orders": torch.stack(shuffled) if shuffled else None, "headdim": headdim}


def output_and_gradients(
    scan: Callable[..., Tensor], inputs: dict[str, Tensor | None], **options: object
) -> dict[str, Tensor]:
    """The scan's output and its gradients by tokens and weights, for one fixed random upstream gradient."""
    differentiable = ("zxbcdt", *WEIGHTS)
    leaves = {name: inputs[name].detach().requires_grad_() for name in differentiable}
    out = scan(**(inputs | leaves), **options)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    gradients = torch.autograd.grad(out, list(leaves.values()), upstream)
    return {"output": out.detach()} | dict(zip(differentiable, gradients, strict=True))


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every entry's largest error is within `tolerance` of the expected entry's largest value."""
    for name, value in expected.items():
        error = (actual[name].double() - value.double()).abs().max()
        bound = tolerance * max(float(value.abs().max()), 1e-3)
        assert error <= bound, f"{name}: error {float(error):.3g} exceeds {bound:.3g}"
