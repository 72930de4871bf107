"""Losses of stage 1 (§3.3, Eq. 16): L1, LPIPS and focal frequency loss, each weighted once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from medsora.vae.tokenizer import TokenizerOutput

LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
MIN_VARIANCE = 1e-12  # lower bound; a frame of one colour has variance 0
SHARPNESS_TOLERANCE = 0.2  # decades of variance
MOTION_BLOCK_PX = 16
MIN_CHANGE = 1e-5  # mean square; its root is 0.4 of 255 grey levels


class VaeLossParts(NamedTuple):
    """The unweighted parts, scalars, and their weighted sum `total`."""

    total: Tensor
    l1: Tensor
    lpips: Tensor
    ffl: Tensor
    kl: Tensor
    coarse: Tensor
    sharpness: Tensor
    motion: Tensor


class VaeLoss(nn.Module):
    """Weighted sum of L1, LPIPS, FFL, KL, coarse, sharpness and motion; a part of weight 0 reads 0.

    `lpips_net` ("vgg" or "alex") and `lpips_trunk` are those of `PerceptualLoss`.
    """

    def __init__(
        self,
        *,
        l1: float = 1.0,
        lpips: float = 0.1,
        ffl: float = 0.1,
        kl: float = 0.0,
        coarse: float = 0.0,
        sharpness: float = 0.0,
        motion: float = 0.0,
        lpips_net: str = "vgg",
        lpips_trunk: str | None = None,
    ) -> None:
        super().__init__()
        self.weights = {"l1": l1, "lpips": lpips, "ffl": ffl, "kl": kl, "coarse": coarse}
        self.weights |= {"sharpness": sharpness, "motion": motion}
        self.perceptual = None
        if lpips:
            from medsora.vae.perceptual import PerceptualLoss  # its packages are not needed for sampling

            self.perceptual = PerceptualLoss(lpips_net, trunk=lpips_trunk)

    def forward(
        self,
        reconstruction: Tensor,
        video: Tensor,
        mean: Tensor,
        logvar: Tensor,
        coarse: Tensor | None = None,
    ) -> VaeLossParts:
        """Compare videos (B, F, 3, H, W) in [-1, 1]; mean and log-variance (B, n, C, h, w) are unscaled.

        `coarse` (B, F, 3, H/2, W/2), which only its part needs: the latents decoded at half size.
        """
        prediction, target = reconstruction.float(), video.float()
        nothing = prediction.new_zeros(())
        parts = self._pixel_parts(prediction, target) | {
            "kl": kl_divergence(mean.float(), logvar.float()) if self.weights["kl"] else nothing,
            "coarse": coarse_loss(coarse.float(), target) if self.weights["coarse"] else nothing,
            "sharpness": sharpness_loss(prediction, target) if self.weights["sharpness"] else nothing,
            "motion": motion_loss(prediction, target) if self.weights["motion"] else nothing,
        }
        total = sum(self.weights[name] * value for name, value in parts.items())
        return VaeLossParts(total=total, **parts)

    def _pixel_parts(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return L1, LPIPS and the focal frequency loss, unweighted."""
        nothing = prediction.new_zeros(())
        return {
            "l1": (prediction - target).abs().mean() if self.weights["l1"] else nothing,
            "lpips": self.perceptual(prediction, target) if self.perceptual else nothing,
            "ffl": focal_frequency_loss(prediction, target) if self.weights["ffl"] else nothing,
        }


class TokenizerLossParts(NamedTuple):
    """The unweighted parts, scalars, and their weighted sum `total`."""

    total: Tensor
    l1: Tensor
    l2: Tensor
    lpips: Tensor
    ffl: Tensor
    commitment: Tensor
    codebook: Tensor


class TokenizerLoss(VaeLoss):
    """`l1`·L1 + `l2`·L2 + `lpips`·LPIPS + `ffl`·FFL + `commitment`·commitment + codebook, else as `VaeLoss`.

    The last two are those of the VQ-VAE (van den Oord et al. 2017, Eq. 3): the codebook learns by gradient.
    """

    def __init__(self, *, l2: float = 1.0, commitment: float = 0.25, **weights: Any) -> None:
        super().__init__(**weights)
        self.weights |= {"l2": l2, "commitment": commitment, "codebook": 1.0}

    def forward(self, out: TokenizerOutput, video: Tensor) -> TokenizerLossParts:
        """Compare frames (..., 3, H, W) in [-1, 1] with the output of a `VQTokenizer` in training."""
        prediction, target = out.reconstruction.float(), video.float()
        nothing = prediction.new_zeros(())
        quantised = out.codes is not None
        parts = self._pixel_parts(prediction, target) | {
            "l2": F.mse_loss(prediction, target) if self.weights["l2"] else nothing,
            "commitment": F.mse_loss(out.latents, out.rows.detach()) if quantised else nothing,
            "codebook": F.mse_loss(out.rows, out.latents.detach()) if quantised else nothing,
        }
        total = sum(self.weights[name] * value for name, value in parts.items())
        return TokenizerLossParts(total=total, **parts)


def focal_frequency_loss(prediction: Tensor, target: Tensor, alpha: float = 1.0) -> Tensor:
    """Focal frequency loss (Jiang et al. 2021) of images (..., H, W): a scalar, float32.

    The squared distance of the orthonormal 2-D spectra, each frequency weighted by its own distance to the
    power `alpha`, divided by the largest of its image and channel; no gradient flows through the weights.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        difference = torch.fft.fft2(prediction.float(), norm="ortho") - torch.fft.fft2(
            target.float(), norm="ortho"
        )
        squared = difference.real.square() + difference.imag.square()
        weight = squared.detach().sqrt().pow(alpha)
        weight = weight / weight.amax((-2, -1), keepdim=True)
        weight = weight.nan_to_num(0.0).clamp(0.0, 1.0)  # equal images: 0 / 0
        return (weight * squared).mean()


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(logvar)) from N(0, 1), averaged over every latent value."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def coarse_loss(coarse: Tensor, video: Tensor) -> Tensor:
    """L1 of halved latents, decoded, against the halved video (scale equivariance, Skorokhodov et al. 2025).

    It leaves the coarse structure to the latents' low frequencies, which a denoiser learns first.
    """
    return (coarse - halved(video)).abs().mean()


def sharpness_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean distance of the frames' sharpness beyond `SHARPNESS_TOLERANCE`, in decades: a scalar.

    Sharpness is `log_laplacian_variance`. L1 alone leaves out what it cannot predict pixel by pixel, which
    blurs; to make up for all of it would cost more PSNR than the eye gains.
    """
    distance = (log_laplacian_variance(prediction) - log_laplacian_variance(target)).abs()
    return (distance - SHARPNESS_TOLERANCE).clamp_min(0).mean()


def motion_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean distance, in decades, between how much neighbouring frames change: a scalar; 0 for one frame.

    The change of a block of `MOTION_BLOCK_PX` pixels is `_log_change`. Frames that share a latent are blurred
    into one another where L1 cannot distinguish them, so that texture moves less than in the target.
    """
    if target.shape[1] == 1:
        return prediction.new_zeros(())
    return (_log_change(prediction) - _log_change(target)).abs().mean()


def _log_change(video: Tensor) -> Tensor:
    """Log10 of the mean square difference of neighbouring grey frames: (B, F, 3, H, W) -> (B, F - 1, h, w).

    h and w count blocks of `MOTION_BLOCK_PX` pixels; those that are cut off at the edge are left out.
    """
    change = video.float().mean(2).diff(dim=1).square()
    return F.avg_pool2d(change, min(MOTION_BLOCK_PX, *change.shape[-2:])).clamp_min(MIN_CHANGE).log10()


def log_laplacian_variance(video: Tensor) -> Tensor:
    """Log10 of the variance of the Laplacian of grey frames: (B, F, 3, H, W) -> (B, F), float32."""
    grey = video.float().mean(2).flatten(0, 1)[:, None]
    with torch.autocast(video.device.type, enabled=False):
        edges = F.conv2d(grey, torch.tensor(LAPLACIAN, device=video.device)[None, None])
    return edges.var(dim=(1, 2, 3)).clamp_min(MIN_VARIANCE).log10().reshape(video.shape[:2])


def halved(frames: Tensor) -> Tensor:
    """Average 2x2 neighbours: (..., H, W) -> (..., H/2, W/2)."""
    return F.avg_pool2d(frames.flatten(0, -4), 2).unflatten(0, frames.shape[:-3])
