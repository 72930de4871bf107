"""Inputs of scans: the same for the same seed, with every gradient; errors are those of the largest value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.support.scan_inputs import (
    WEIGHTS,
    assert_close,
    errors,
    in_float64,
    of_steps,
    output_and_gradients,
    random_inputs,
)


def test_inputs_are_those_of_their_seed() -> None:
    first, again, other = (random_inputs(5, orders=2, seed=seed) for seed in (0, 0, 1))
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, again[name])
            assert not torch.equal(value, other[name])
    assert first["orders"].sort().values.tolist() == [list(range(5))] * 2
    assert random_inputs(5)["orders"] is None
    assert random_inputs(5, dtype=torch.bfloat16)["zxbcdt"].dtype == torch.bfloat16


def test_every_gradient_is_returned() -> None:
    def product(zxbcdt: Tensor, orders: Tensor | None, headdim: int, **weights: Tensor) -> Tensor:
        return zxbcdt.sum() * torch.stack([weight.sum() for weight in weights.values()]).sum()

    inputs = random_inputs(3)
    found = output_and_gradients(product, inputs)
    assert set(found) == {"output", "zxbcdt", *WEIGHTS}
    ratio = found["D"][0] / inputs["zxbcdt"].sum()  # the upstream gradient
    total = sum(inputs[name].sum() for name in WEIGHTS)
    torch.testing.assert_close(found["zxbcdt"], (ratio * total).expand_as(found["zxbcdt"]))


def test_errors_are_measured_against_the_largest_value() -> None:
    expected = {"output": torch.tensor([100.0, 0.0])}
    assert_close({"output": torch.tensor([100.0, 0.9])}, expected, 1e-2)
    with pytest.raises(AssertionError, match=r"output: error 0\.011 exceeds 0\.01"):
        assert_close({"output": torch.tensor([100.0, 1.1])}, expected, 1e-2)


def test_a_gradient_that_is_nan_is_an_infinite_error() -> None:
    right, nan = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    assert errors({"a": nan, "b": right}, {"a": right, "b": right}) == {"a": float("inf"), "b": 0}


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0, None])
def test_steps_are_of_the_size_that_is_named(size: float | None) -> None:
    inputs = in_float64(random_inputs(200, dtype=torch.float32))
    given = of_steps(size, inputs)
    steps = torch.nn.functional.softplus(given["zxbcdt"][..., -2:] + given["dt_bias"])
    if size is None:
        assert steps.min() < 1e-10
        assert 200 < steps.max() < 500
    else:
        assert (steps / size).log().abs().max() < 0.5
    assert torch.equal(given["zxbcdt"][..., :-2], inputs["zxbcdt"][..., :-2])
