"""Stage 2's loss (Eq. 17): the hybrid diffusion loss and the flow alignment."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from torch import Tensor, nn

from medsora.config.schema import Config
from medsora.diffusion import GaussianDiffusion
from medsora.flow_prior import alignment_loss, image_alignment_loss
from medsora.training.stage2.inputs import NoisedLatents


class DenoisingLosses(NamedTuple):
    """A micro-batch's losses, scalars: `total`, of Eq. 17, and by name what it is made of.

    `per_block` (L, B') is the alignment's r, see `AlignmentLoss`; None without alignment.
    """

    total: Tensor
    parts: dict[str, Tensor]
    per_block: Tensor | None


class DenoisingLoss:
    """Eq. 17: L = mean over samples of w(t)·L_simple + L_vb, plus α·L_align (Eq. 14-15) where α is not 0.

    w(t) is 1 in the paper, see `GaussianDiffusion.error_weight`. The denoiser runs inside `autocast()`, the
    losses outside, in float32.
    """

    def __init__(
        self,
        config: Config,
        diffusion: GaussianDiffusion,
        autocast: Callable[[], AbstractContextManager[None]],
        adapter: nn.Module | None = None,
    ) -> None:
        """`adapter` is the denoiser's, with an image prior (`alignment.kind`)."""
        self.adapter = adapter
        self.alignment, self.loss_target = config.alignment, config.train_dit.loss_target
        self.diffusion, self.autocast = diffusion, autocast

    def __call__(
        self, model: nn.Module, noised: NoisedLatents, targets: list[Tensor] | None
    ) -> DenoisingLosses:
        """Run `model` on noised latents; `targets` are `Stage2Inputs.alignment_targets` of the same batch."""
        with self.autocast():
            out = model(noised.z_t, noised.latent_t, num_images=noised.num_images, labels=noised.labels)
        diffusion = self.diffusion.hybrid_loss(
            out.eps.float(),
            out.variance.float(),
            noised.z_0,
            noised.z_t,
            noised.noise,
            noised.latent_t,
            weights=noised.weights,
        )
        weight = self.diffusion.error_weight(noised.t, self.loss_target)
        total = (weight * diffusion.mse + diffusion.vb).mean()
        parts = {"mse": diffusion.mse.mean(), "vb": diffusion.vb.mean()}
        if not self.alignment.weight:
            return DenoisingLosses(total, parts, None)
        if self.adapter is not None and self.alignment.kind == "image":
            aligned = image_alignment_loss(
                out.features, targets, self.adapter, noised.needed, out.image_features
            )
        else:
            aligned = alignment_loss(
                out.features,
                targets,
                noised.t,
                margin=self.alignment.margin,
                correlation=self.alignment.correlation,
                needed=noised.needed,
            )
        total = total + self.alignment.weight * aligned.loss
        return DenoisingLosses(total, parts | {"alignment": aligned.loss}, aligned.per_block)
