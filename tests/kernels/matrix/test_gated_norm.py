"""Gate, RMS norm and the sum over an axis's orders: the formula written out, with and without gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medsora.kernels.matrix.gated_norm import gated_norm_sum

AXES, WALKS, EPS = 2, 3, 1e-5


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((2, AXES * WALKS, 5, 8), (2, 5, 8), (8,))
    return tuple(torch.randn(*shape, dtype=dtype) for shape in shapes)


def written_out(y: Tensor, z: Tensor, weight: Tensor) -> Tensor:
    gated = y * F.silu(z)[:, None]
    normed = gated / (gated.square().mean(-1, keepdim=True) + EPS).sqrt() * weight
    return normed.unflatten(1, (AXES, WALKS)).sum(2)


def test_it_is_the_formula_and_keeps_its_inputs_where_gradients_may_follow() -> None:
    y, z, weight = inputs(torch.float64)
    expected, before = written_out(y, z, weight), y.clone()
    torch.testing.assert_close(gated_norm_sum(y, z, weight, AXES, EPS), expected)
    assert torch.equal(y, before)
    with torch.no_grad():
        torch.testing.assert_close(gated_norm_sum(y, z, weight, AXES, EPS), expected)


def test_half_precision_is_summed_in_float32() -> None:
    y, z, weight = inputs(torch.bfloat16)
    expected = written_out(y.float(), z.float(), weight.float())
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = gated_norm_sum(y, z, weight, AXES, EPS)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_every_gradient(scale: float) -> None:
    leaves = [(scale * value).requires_grad_() for value in inputs(torch.float64)]
    assert torch.autograd.gradcheck(lambda *given: gated_norm_sum(*given, AXES, EPS), leaves, fast_mode=True)
