"""Inputs of scans: the same for the same seed, with every gradient; errors are those of the largest value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.support.scan_inputs import WEIGHTS, assert_close, output_and_gradients, random_inputs


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
    with pytest.raises(AssertionError, match=r"output: error 1\.1 exceeds 1"):
        assert_close({"output": torch.tensor([100.0, 1.1])}, expected, 1e-2)
