"""Random inputs of a scan, and outputs with every gradient, for comparing backends."""

from __future__ import annotations

import math
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


def of_steps(size: float | None, inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The inputs with Δ of about `size` everywhere; for None of every size up to a few 100, in turn."""
    heads = inputs["D"].numel()
    tokens, bias = inputs["zxbcdt"].clone(), torch.zeros_like(inputs["dt_bias"])
    tokens[..., -heads:] *= 100.0 if size is None else 0.1
    if size is not None:
        bias += size if size > 30 else math.log(math.expm1(size))  # softplus of it is `size`
    return inputs | {"zxbcdt": tokens, "dt_bias": bias}


def in_float64(inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The same numbers in float64; orders and sizes as they are."""
    return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}


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


def errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Each entry's largest difference relative to the expected entry's largest value; infinite for NaN."""
    largest = {}
    for name, value in expected.items():
        difference = (actual[name].to(value.device).double() - value.double()).abs().max()
        error = float(difference / value.double().abs().max().clamp(min=1e-3))
        largest[name] = math.inf if math.isnan(error) else error
    return largest


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every entry's error, as `errors` counts it, is within `tolerance`."""
    for name, error in errors(actual, expected).items():
        assert error <= tolerance, f"{name}: error {error:.3g} exceeds {tolerance:.3g}"
