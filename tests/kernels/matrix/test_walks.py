"""Tokens along their walks and back: permutations, sums over walks, the convolution, and every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medsora.kernels.matrix.walks import places_of, put_back, walk, walk_conv_silu

WAYS, LINES, LENGTH, BATCH = 3, 2, 5, 2
TOKENS = LINES * LENGTH


@pytest.fixture
def walks() -> Tensor:
    orders = [torch.randperm(TOKENS).view(LINES, LENGTH) for _ in range(WAYS)]
    return torch.stack(orders)


def test_places_are_where_each_token_stands(walks: Tensor) -> None:
    places = places_of(walks)
    assert places.shape == (WAYS, TOKENS)
    assert torch.equal(walks.flatten()[places], torch.arange(TOKENS).expand(WAYS, TOKENS))


def test_tokens_are_fetched_in_walking_order(walks: Tensor) -> None:
    tokens = torch.randn(BATCH, TOKENS, 4, dtype=torch.float64, requires_grad=True)
    places = places_of(walks)
    assert torch.equal(walk(tokens, walks, places), tokens[:, walks])
    assert torch.autograd.gradcheck(lambda x: walk(x, walks, places), tokens)


def test_steps_of_every_head_are_put_back_in_place(walks: Tensor) -> None:
    heads, headdim = 2, 3
    tokens = torch.randn(BATCH, TOKENS, heads * headdim, dtype=torch.float64)
    places = places_of(walks)
    by_head = walk(tokens, walks, places).unflatten(-1, (heads, headdim)).transpose(-2, -3).contiguous()
    assert torch.equal(put_back(by_head, walks, places), tokens[:, None].expand(-1, WAYS, -1, -1))
    by_head.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: put_back(x, walks, places), by_head)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_convolution_runs_along_each_walk(walks: Tensor, dtype: torch.dtype) -> None:
    heads, headdim, d_state, width = 2, 3, 2, 4
    channels = heads * headdim + 2 * d_state
    tokens = torch.randn(BATCH, TOKENS, channels, dtype=dtype)
    weight, bias = torch.randn(channels, width, dtype=dtype), torch.randn(channels, dtype=dtype)
    x, BC = walk_conv_silu(tokens, weight, bias, walks, places_of(walks), heads, headdim)
    exact = torch.promote_types(dtype, torch.float32)
    lines = tokens.to(exact)[:, walks].flatten(0, 2).mT
    padded = F.pad(lines, (width - 1, 0))
    expected = F.silu(F.conv1d(padded, weight.to(exact)[:, None], bias.to(exact), groups=channels)).mT
    expected = expected.unflatten(0, (BATCH, WAYS, LINES))
    head_part, others = expected.split([heads * headdim, 2 * d_state], dim=-1)
    assert x.dtype == BC.dtype == dtype
    tolerance = {"rtol": 2**-7, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(x.to(exact).transpose(-2, -3).flatten(-2), head_part, **tolerance)
    torch.testing.assert_close(BC.to(exact), others, **tolerance)


def test_the_convolutions_gradients(walks: Tensor) -> None:
    places = places_of(walks)
    shapes = ((BATCH, TOKENS, 10), (10, 4), (10,))
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(
        lambda *given: walk_conv_silu(*given, walks, places, 2, 3), leaves, fast_mode=True
    )
