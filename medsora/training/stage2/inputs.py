"""From a micro-batch of clips to the denoiser's inputs: latents, noise, timesteps, alignment targets.

Everything random here belongs to a sample's number in the run (see `randomness.py`), so it does not depend on
the batch's composition, the number of processes and the caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medsora.config.schema import Config
from medsora.diffusion import CLEAN, GaussianDiffusion
from medsora.training.batches import to_device
from medsora.training.cache.prior import PriorCache, has_image_targets
from medsora.training.joint_images import image_latents, image_moments
from medsora.training.randomness import normal_for
from medsora.vae import VideoVAE

if TYPE_CHECKING:
    from medsora.flow_prior import FlowPrior  # needs packages that counting memory does without


@dataclass(frozen=True)
class NoisedLatents:
    """A micro-batch: scaled latents z_0, noise and z_t (B, n, C, h, w), timesteps (B,), the last images.

    Where first frames are given, `latent_t` and `weights` are (B, n): the given latents are free of noise,
    have the timestep `CLEAN` and no weight in the loss. `labels` (B, n) are None in a model without.
    """

    z_0: Tensor
    z_t: Tensor
    noise: Tensor
    t: Tensor
    num_images: int
    needed: Tensor | None  # (B,) bool, on the CPU: whose alignment loss is not provably zero; None: all
    latent_t: Tensor
    weights: Tensor | None
    labels: Tensor | None


class Stage2Inputs:
    """Encodes clips (or reads the cache), adds noise, and computes the targets of samples that need them."""

    def __init__(
        self,
        config: Config,
        vae: VideoVAE,
        diffusion: GaussianDiffusion,
        prior: FlowPrior | None,
        priors: PriorCache | None,
        device: torch.device,
        grid: tuple[int, int, int],
        width: int,
        classes: int = 0,
    ) -> None:
        self.classes, self.num_images = classes, image_latents(config, vae)
        self.config, self.vae, self.diffusion = config, vae, diffusion
        self.prior, self.priors = prior, priors
        self.device, self.grid, self.width = device, grid, width

    @torch.no_grad()
    def noised_latents(self, batch: dict[str, Any]) -> NoisedLatents:
        """Return the noised latents of a collated micro-batch (`Stage2Samples.collate`)."""
        if "mean" in batch:
            mean, logvar = to_device(batch["mean"], self.device), to_device(batch["logvar"], self.device)
        else:
            video = to_device(batch["video"][:, : self.config.data.frames], self.device)
            moments = [self._clip_moments(video, batch)]
            if self.config.images.count:
                images = to_device(batch["images"], self.device)
                moments.append(image_moments(self.vae, images, self.config.images.encoding))
            mean, logvar = (torch.cat(parts, dim=1) for parts in zip(*moments, strict=True))
        z_0 = self.vae.sample_latents(mean, logvar, noise=self._noise(mean, batch, "posterior"))
        noise = self._noise(mean, batch, "noise")
        t = latent_t = to_device(batch["t"], self.device)
        weights = None
        if "given" in batch:
            given = torch.arange(z_0.shape[1]) < batch["given"][:, None]
            given = to_device(given, self.device)
            latent_t, weights = t[:, None].masked_fill(given, CLEAN), (~given).float()
        z_t = self.diffusion.add_noise(z_0, noise, latent_t)
        if weights is not None:
            z_t = torch.where(given[:, :, None, None, None], z_0, z_t)
        return NoisedLatents(
            z_0=z_0,
            z_t=z_t,
            noise=noise,
            t=t,
            num_images=self.num_images,
            needed=batch["needed"],
            latent_t=latent_t,
            weights=weights,
            labels=self._labels(batch, z_0.shape[1]),
        )

    def _clip_moments(self, video: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Encode clips; where one latent is given, it is the first frame's alone, as when sampling."""
        mean, logvar = self.vae.encode_moments(video)
        alone = to_device((batch["given"] == 1).nonzero().flatten(), self.device) if "given" in batch else ()
        if len(alone):
            mean[alone, :1], logvar[alone, :1] = self.vae.encode_moments(video[alone, :1])
        return mean, logvar

    def _labels(self, batch: dict[str, Any], latents: int) -> Tensor | None:
        """(B, n): the clip's latents have its label; joint images, which show other videos, have none."""
        if not self.classes:
            return None
        labels = batch["label"][:, None].repeat(1, latents)
        labels[:, latents - self.num_images :] = self.classes
        return to_device(labels, self.device)

    @torch.no_grad()
    def alignment_targets(self, batch: dict[str, Any]) -> list[Tensor] | None:
        """Return one target (B', f, l, d) per block for the B' samples that need one; None if none does.

        An image prior's are (B', n, D, 2h̄, 2w̄), those of the joint images last.
        """
        if self.prior is None or not bool(batch["needed"].any()):
            return None
        rows = batch["needed"].nonzero().flatten().tolist()
        of_clips = [self._clip_features(batch, row) for row in rows]
        if has_image_targets(self.config):
            of_images = [self._image_features(batch, row) for row in rows]
            of_clips = [
                [torch.cat(layers) for layers in zip(*both, strict=True)]
                for both in zip(of_clips, of_images, strict=True)
            ]
        of_layers = [torch.stack(parts) for parts in zip(*of_clips, strict=True)]
        return self.prior.pair_with_blocks(of_layers)

    def _clip_features(self, batch: dict[str, Any], row: int) -> list[Tensor]:
        """Return a clip's features (f, l, d) per distinct DINO layer, from the cache or computed and kept."""
        if batch["prior"][row] is not None:
            return [to_device(layer, self.device).float() for layer in batch["prior"][row]]
        video, flow = batch["flow_video"][row], batch["flow"][row]
        layers = self.prior.distinct_targets(
            None if video is None else to_device(video[None], self.device),
            None if flow is None else to_device(flow[None], self.device),
            latent_frames=self.grid[0],
            grid=self.grid[1:],
            width=self.width,
        )
        of_clip = [layer[0] for layer in layers]
        if self.priors is not None:
            of_clip = self.priors.put(batch["index"][row], batch["flipped"][row], of_clip)
        return [layer.float() for layer in of_clip]

    def _image_features(self, batch: dict[str, Any], row: int) -> list[Tensor]:
        """Return the joint images' features (n - f, D, 2h̄, 2w̄) per distinct DINO layer, as for clips."""
        if batch["image_prior"][row] is None:
            pictures = to_device(batch["images"][row], self.device)
            return self.prior.picture_targets(pictures, self.num_images, self.grid[1:])
        joint = batch["image_prior"][row]
        of_entries = []
        for images, features in joint:
            if isinstance(features, Tensor):
                pictures, latents = to_device(features, self.device), self.num_images // len(joint)
                features = self.prior.picture_targets(pictures, latents, self.grid[1:])
                features = features if self.priors is None else self.priors.put(*images, features)
            of_entries.append([to_device(layer, self.device).float() for layer in features])
        return [torch.cat(of_layer) for of_layer in zip(*of_entries, strict=True)]

    def _noise(self, like: Tensor, batch: dict[str, Any], purpose: str) -> Tensor:
        seed, shape = self.config.run.seed, tuple(like.shape[1:])
        noise = [normal_for(shape, seed, purpose, int(sample)) for sample in batch["sample"]]
        return to_device(torch.stack(noise), self.device)
