"""Quality of a reconstruction: PSNR, SSIM, flicker, sharpness, spectra, and a baseline of PSNR.

Videos are (B, F, 3, H, W), RGB in [-1, 1]; every function returns one number per video, (B,).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from medsora.vae.losses import log_laplacian_variance

PIXEL_RANGE = 2.0
MIN_POWER = 1e-8  # below the rounding of 8-bit pixels: empty frequencies are no infinite dB


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB over all pixels and frames of a video; infinite for equal videos."""
    error = (prediction.float() - target.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(PIXEL_RANGE**2 / error)


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, Gaussian window), mean over a video's frames; 1 for equal."""
    per_video = [
        structural_similarity_index_measure(one.float(), other.float(), data_range=(-1.0, 1.0))
        for one, other in zip(prediction, target, strict=True)  # all at once would take gigabytes
    ]
    return torch.stack(per_video)


def flicker(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of consecutive-frame differences: motion that was not there, or is missing."""
    return (prediction.diff(dim=1) - target.diff(dim=1)).float().abs().flatten(1).mean(1)


def sharpness(prediction: Tensor, target: Tensor) -> Tensor:
    """Log10 of the variance of the Laplacian of grey frames over the target's, mean over frames; 0 for equal.

    Below 0 a reconstruction is blurred, above 0 noisy; in decades.
    """
    return (log_laplacian_variance(prediction) - log_laplacian_variance(target)).mean(1)


def mean_colour_psnr(target: Tensor) -> Tensor:
    """PSNR in dB of a video's own mean colour: what a reconstruction without any structure reaches."""
    return psnr(target.mean((1, 3, 4), keepdim=True).expand_as(target), target)


def spectrum_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference in dB of the frames' power spectra, averaged over directions (radially).

    Every radial frequency from one period per frame to half the pixels of the smaller side counts the same,
    so that fine structure, which has little power, is not drowned by coarse structure.
    """
    return (_radial_spectrum_db(prediction) - _radial_spectrum_db(target)).abs().mean(1)


def _radial_spectrum_db(video: Tensor) -> Tensor:
    """(B, F, 3, H, W) -> (B, min(H, W) // 2): power of grey frames by radial frequency, mean over frames."""
    power = torch.fft.fft2(video.float().mean(2), norm="ortho").abs().square().mean(1)
    height, width = power.shape[-2:]
    rows, cols = (torch.fft.fftfreq(side, device=power.device) for side in (height, width))
    last = min(height, width) // 2
    radius = (min(height, width) * torch.hypot(rows[:, None], cols)).round().long().clamp(max=last + 1)
    sums = power.new_zeros(len(power), last + 2).index_add_(1, radius.flatten(), power.flatten(1))
    means = sums / radius.flatten().bincount(minlength=last + 2)
    return 10 * torch.log10(means[:, 1 : last + 1] + MIN_POWER)
