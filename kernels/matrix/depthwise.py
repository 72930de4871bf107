"""The causal depth-wise convolution along sequences, and its gradients, by the fastest operator per device.

On a CPU the products with the taps are oneDNN's, which reads steps (..., l, c) as they lie; PyTorch's own
path to it rearranges them. Its gradient of the taps is slow on short sequences, so that is a sum over steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN_CHANNELS = 16  # oneDNN is slow for channel counts that are no multiple of this
SUMMED_AT_ONCE = 2**14  # minimum elements of one step of all sequences for which a separate sum pays


def causal_conv(steps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depth-wise convolution of steps (..., l, c) with taps (c, width), oldest first."""
    weight, bias = weight.to(steps.dtype), bias.to(steps.dtype)
    if _served_by_onednn(steps):
        return _onednn(steps, weight, bias, first=0)
    taps = weight.unbind(1)
    out = torch.addcmul(bias, steps, taps[-1])
    for lag in range(1, min(len(taps), steps.shape[-2])):
        out[..., lag:, :].addcmul_(steps[..., :-lag, :], taps[-1 - lag])
    return out


def grad_of_steps(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `causal_conv`'s steps, from that of its result (..., l, c)."""
    weight = weight.to(grad.dtype)
    if _served_by_onednn(grad):
        return _onednn(grad, weight.flip(1), None, first=weight.shape[1] - 1)
    taps = weight.unbind(1)
    out = grad * taps[-1]
    for lag in range(1, min(len(taps), grad.shape[-2])):
        out[..., :-lag, :].addcmul_(grad[..., lag:, :], taps[-1 - lag])
    return out


def grad_of_taps(grad: Tensor, steps: Tensor, width: int) -> Tensor:
    """The gradient of `causal_conv`'s taps (c, width), from that of its result and its steps (..., l, c)."""
    (*_, length, channels), lags = steps.shape, range(min(width, steps.shape[-2]))
    out = grad.new_zeros(channels, width)
    one_step = steps.numel() // length
    if steps.device.type != "cpu" or torch.compiler.is_compiling() or one_step < SUMMED_AT_ONCE:
        for lag in lags:
            product = grad[..., lag:, :] * steps[..., : length - lag, :]
            out[:, width - 1 - lag] = product.flatten(0, -2).sum(0)
        return out
    # All lags while a step's numbers are in the cache; sums stay there.
    grads, seen = grad.unbind(-2), steps.unbind(-2)
    sums = [torch.zeros_like(seen[0], memory_format=torch.contiguous_format) for _ in lags]
    for step in range(length):
        for lag in lags[: length - step]:
            sums[lag].addcmul_(grads[step + lag], seen[step])
    for lag in lags:
        out[:, width - 1 - lag] = sums[lag].flatten(0, -2).sum(0)
    return out


def _served_by_onednn(steps: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # which fuses the plain form, and breaks at is_available
        and steps.device.type == "cpu"
        and steps.dtype == torch.float32
        and steps.shape[-1] % ONEDNN_CHANNELS == 0
        and torch.backends.mkldnn.is_available()
    )


def _onednn(steps: Tensor, weight: Tensor, bias: Tensor | None, first: int) -> Tensor:
    """Convolve (..., l, c), with zeros before and after, and take l results from the `first` on."""
    *sequences, length, channels = steps.shape
    width = weight.shape[1]
    images = steps.reshape(-1, 1, length, channels).permute(0, 3, 1, 2)  # channels last, one row of pixels
    with torch.autocast("cpu", enabled=False):
        out = F.conv2d(images, weight[:, None, None], bias, padding=(0, width - 1), groups=channels)
    return out.permute(0, 2, 3, 1)[:, 0, first : first + length].unflatten(0, sequences)
