"""Local attention: equal to the package `local-attention` where that is right, and right where it is not."""

from __future__ import annotations

import local_attention
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from medsora.denoiser.attention import LocalAttention, attend, rotary_tables, window_mask

WIDTH, HEADS, WINDOW = 32, 4, 8


def package_attention(ours: LocalAttention, x: Tensor) -> Tensor:
    """The package's result on our q, k, v; lengths between the multiples of 8 are padded and masked out."""
    package = local_attention.LocalAttention(
        window_size=WINDOW, look_backward=1, look_forward=1, exact_windowsize=True, dim=WIDTH // HEADS
    )
    length = x.shape[2]
    padding = -length % WINDOW
    qkv = torch.nn.functional.pad(ours.qkv(x).flatten(0, 1), (0, 0, 0, padding))
    qkv = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)
    mask = (torch.arange(length + padding) < length).expand(len(qkv[0]), -1)
    y = package(*qkv, mask=mask)[:, :length]
    return y.unflatten(0, (-1, HEADS)).transpose(1, 2).reshape_as(x)


@pytest.mark.parametrize("length", [8, 16, 64, 1, 5, 20, 63, 128, 129, 192, 250])
def test_equals_the_package_with_gradients(length: int) -> None:
    ours = LocalAttention(WIDTH, HEADS, WINDOW, dropout=0.1).eval()
    x = torch.randn(2, 3, length, WIDTH)
    theirs = package_attention(ours, x)
    torch.testing.assert_close(ours(x), theirs, atol=1e-5, rtol=1e-5)

    weight = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((ours(x) * weight).sum(), ours.qkv.weight)
    (expected,) = torch.autograd.grad((theirs * weight).sum(), ours.qkv.weight)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keys", [3, 64, 128, 129])
@pytest.mark.parametrize("masked", [False, True])
def test_short_sequences_attend_as_pytorch_has_it_with_gradients(keys: int, masked: bool) -> None:
    q = torch.randn(2, 4, 16, 8, dtype=torch.float64, requires_grad=True)
    k, v = torch.randn(2, 2, 4, keys, 8, dtype=torch.float64, requires_grad=True).unbind()
    mask = torch.randn(16, keys, dtype=torch.float64).masked_fill(torch.rand(16, keys) < 0.3, -torch.inf)
    mask[:, 0] = 0
    ours = attend(q, k, v, mask if masked else None)
    theirs = scaled_dot_product_attention(q, k, v, attn_mask=mask if masked else None)
    torch.testing.assert_close(ours, theirs)

    weight = torch.randn_like(ours)
    gradients = torch.autograd.grad((ours * weight).sum(), (q, k, v))
    expected = torch.autograd.grad((theirs * weight).sum(), (q, k, v))
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("length", [40, 200])
def test_token_sees_eight_to_either_side_of_its_own_frame_only(length: int) -> None:
    attention = LocalAttention(WIDTH, HEADS, WINDOW, dropout=0.0).eval()
    x = torch.randn(1, 2, length, WIDTH)
    middle = length // 2
    changed = x.clone()
    changed[0, 1, middle] += 1
    moved = (attention(changed) != attention(x)).any(-1)
    assert not moved[0, 0].any()
    assert moved[0, 1].nonzero().flatten().tolist() == list(range(middle - 8, middle + 9))


def test_cost_is_linear_in_the_tokens_of_a_frame() -> None:
    attention = LocalAttention(WIDTH, HEADS, WINDOW, dropout=0.0).eval()
    flops = []
    for length in (256, 4096):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            attention(torch.randn(1, 1, length, WIDTH))
        flops.append(counter.get_total_flops())
    assert flops[1] == 16 * flops[0]


def test_tables_are_built_once_per_length() -> None:
    attention = LocalAttention(WIDTH, HEADS, WINDOW, dropout=0.0).eval()
    x = torch.randn(1, 2, 11, WIDTH)
    attention(x)
    misses = window_mask.cache_info().misses, rotary_tables.cache_info().misses
    attention(x)
    assert (window_mask.cache_info().misses, rotary_tables.cache_info().misses) == misses


def test_dropout_acts_in_training_only() -> None:
    attention = LocalAttention(WIDTH, HEADS, WINDOW, dropout=0.5)
    x = torch.randn(1, 1, 16, WIDTH)
    assert not torch.equal(attention.train()(x), attention(x))
    assert torch.equal(attention.eval()(x), attention(x))


def test_keeps_half_precision() -> None:
    attention = LocalAttention(WIDTH, HEADS, WINDOW, dropout=0.0).eval()
    x = torch.randn(1, 2, 16, WIDTH)
    expected = attention(x)
    half = attention.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)
