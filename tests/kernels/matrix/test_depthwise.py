"""The causal depth-wise convolution and its gradients: PyTorch's own conv1d's, by either path."""

import pytest
import torch
import torch.nn.functional as F

from medsora.kernels.matrix import depthwise
from medsora.kernels.matrix.depthwise import causal_conv, grad_of_steps, grad_of_taps

WIDTH = 4


def by_conv1d(steps, weight, bias):
    rows = steps.flatten(0, -3).mT
    out = F.conv1d(F.pad(rows, (WIDTH - 1, 0)), weight[:, None], bias, groups=len(weight))
    return out.mT.reshape(steps.shape)


@pytest.fixture
def calls(monkeypatch):
    """The calls of oneDNN's convolution."""
    taken = []
    onednn = depthwise._onednn

    def noted(*arguments, **named):
        taken.append("oneDNN")
        return onednn(*arguments, **named)

    monkeypatch.setattr(depthwise, "_onednn", noted)
    return taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 20, 64])
@pytest.mark.parametrize("channels", [16, 64, 20])
@pytest.mark.parametrize("sequences", [(3,), (2, 3, 5), (512,)])
def test_equals_conv1d_with_its_gradients(calls, dtype, length, channels, sequences):
    torch.manual_seed(length)
    wide = torch.randn(*sequences, length, channels + 3, dtype=dtype)
    steps = wide[..., :channels].detach().requires_grad_()  # a part of something wider, as after a projection
    weight = torch.randn(channels, WIDTH, dtype=dtype, requires_grad=True)
    bias = torch.randn(channels, dtype=dtype, requires_grad=True)
    expected = by_conv1d(steps, weight, bias)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, (steps, weight), grad)

    with torch.no_grad():
        out = causal_conv(steps, weight, bias)
        grads = grad_of_steps(grad, weight), grad_of_taps(grad, steps, WIDTH)
    close = {torch.float32: dict(rtol=1e-4, atol=1e-3), torch.float64: {}}[dtype]
    torch.testing.assert_close(out, expected, **close)
    torch.testing.assert_close(grads, expected_grads, **close)
    served = dtype == torch.float32 and channels % 16 == 0 and torch.backends.mkldnn.is_available()
    assert bool(calls) == served


def test_products_stay_float32s_where_matrix_products_may_be_less():
    torch.manual_seed(0)
    steps, weight, bias = torch.randn(6, 20, 32), torch.randn(32, WIDTH), torch.randn(32)
    expected = causal_conv(steps, weight, bias)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        out = causal_conv(steps, weight, bias)
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = causal_conv(steps, weight, bias)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(under_autocast, expected, rtol=1e-6, atol=1e-6)
