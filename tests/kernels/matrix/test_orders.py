"""Tokens in scan order and back: permutations, sums over orders, the convolution, and every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medsora.kernels.matrix.orders import (
    conv_silu_in_order,
    gather_in_order,
    invert_orders,
    scatter_to_tokens,
)

ORDERS, LINES, LENGTH, BATCH = 3, 2, 5, 2
TOKENS = LINES * LENGTH


@pytest.fixture
def orders() -> Tensor:
    orders = [torch.randperm(TOKENS).view(LINES, LENGTH) for _ in range(ORDERS)]
    return torch.stack(orders)


def test_inverse_orders_are_where_each_token_stands(orders: Tensor) -> None:
    inverse = invert_orders(orders)
    assert inverse.shape == (ORDERS, TOKENS)
    assert torch.equal(orders.flatten()[inverse], torch.arange(TOKENS).expand(ORDERS, TOKENS))


def test_tokens_are_gathered_in_order(orders: Tensor) -> None:
    tokens = torch.randn(BATCH, TOKENS, 4, dtype=torch.float64, requires_grad=True)
    inverse = invert_orders(orders)
    assert torch.equal(gather_in_order(tokens, orders, inverse), tokens[:, orders])
    assert torch.autograd.gradcheck(lambda x: gather_in_order(x, orders, inverse), tokens)


def test_steps_of_every_head_return_to_token_order(orders: Tensor) -> None:
    heads, headdim = 2, 3
    tokens = torch.randn(BATCH, TOKENS, heads * headdim, dtype=torch.float64)
    inverse = invert_orders(orders)
    by_head = (
        gather_in_order(tokens, orders, inverse)
        .unflatten(-1, (heads, headdim))
        .transpose(-2, -3)
        .contiguous()
    )
    assert torch.equal(
        scatter_to_tokens(by_head, orders, inverse), tokens[:, None].expand(-1, ORDERS, -1, -1)
    )
    by_head.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: scatter_to_tokens(x, orders, inverse), by_head)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_convolution_runs_along_each_order(orders: Tensor, dtype: torch.dtype) -> None:
    heads, headdim, d_state, width = 2, 3, 2, 4
    channels = heads * headdim + 2 * d_state
    tokens = torch.randn(BATCH, TOKENS, channels, dtype=dtype)
    weight, bias = torch.randn(channels, width, dtype=dtype), torch.randn(channels, dtype=dtype)
    x, BC = conv_silu_in_order(tokens, weight, bias, orders, invert_orders(orders), heads, headdim)
    exact = torch.promote_types(dtype, torch.float32)
    lines = tokens.to(exact)[:, orders].flatten(0, 2).mT
    padded = F.pad(lines, (width - 1, 0))
    expected = F.silu(F.conv1d(padded, weight.to(exact)[:, None], bias.to(exact), groups=channels)).mT
    expected = expected.unflatten(0, (BATCH, ORDERS, LINES))
    head_part, others = expected.split([heads * headdim, 2 * d_state], dim=-1)
    assert x.dtype == BC.dtype == dtype
    tolerance = {"rtol": 2**-7, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(x.to(exact).transpose(-2, -3).flatten(-2), head_part, **tolerance)
    torch.testing.assert_close(BC.to(exact), others, **tolerance)


def test_the_convolutions_gradients(orders: Tensor) -> None:
    inverse = invert_orders(orders)
    shapes = ((BATCH, TOKENS, 10), (10, 4), (10,))
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(
        lambda *given: conv_silu_in_order(*given, orders, inverse, 2, 3), leaves, fast_mode=True
    )
