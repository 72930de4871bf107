"""The VAE's moments of every enumerated window, on disk (`cache.latents: disk`), flipped and not.

With the cache a clip starts at its window's first frame instead of a drawn one, and joint images come from a
finite set: `single` takes the first frame of every window, `packed` groups of eight drawn once per cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from medsora.config.schema import Config
from medsora.data.clips import ClipDataset
from medsora.runtime.digests import weights_digest
from medsora.training.cache.fingerprint import clips_digest
from medsora.training.cache.store import TensorStore
from medsora.training.joint_images import image_moments
from medsora.training.randomness import derive_seed
from medsora.vae import VideoVAE

GROUPS_TRIED = 16
CODE_VERSION = 3  # raise when the computation of latents from a file changes


class JointImages(NamedTuple):
    """Joint images that are encoded together, by the name of their entry: one picture, or a group."""

    entry: str
    flipped: bool


class LatentCache:
    """Moments of clips and joint images by window; `build` once, then read by the loader's workers."""

    def __init__(self, config: Config, clips: ClipDataset, vae: VideoVAE) -> None:
        self.clips, self.images, self.flips = clips, config.images, config.data.flips
        self.groups = config.cache.image_groups if config.images.encoding == "packed" else 0
        self.group_images = vae.frames_per_chunk
        self.entry_latents = vae.frames_to_latents(self.group_images) if self.groups else 1
        self.seed = config.run.seed
        self.alone = _first_frames_alone(config)
        depends_on = {
            "code": CODE_VERSION,
            "clips": clips_digest(clips),
            "frames": clips.spec.frames,
            "vae": weights_digest(vae),
            "images": [self.images.encoding, self.groups, self.seed if self.groups else 0],
            "pictures": self.alone,
        }
        self.store = TensorStore(Path(config.cache.dir), "latents", depends_on)
        videos = np.array([video for video, _ in clips.windows])
        self.windows_elsewhere = {int(video): np.flatnonzero(videos != video) for video in np.unique(videos)}

    def build(self, vae: VideoVAE, accelerator: Accelerator) -> None:
        """Encode the missing entries, as `TensorStore.fill` does."""
        groups = range(self.groups if self.images.count else 0)
        names = [clip_entry(i) for i in range(len(self.clips))] + [_group_name(k) for k in groups]

        def encode(name: str) -> dict[str, Tensor]:
            kind, number = name.split("-")
            encode_one = self._encode_clip if kind == "clip" else self._encode_group
            return encode_one(vae, int(number), accelerator.device)

        self.store.fill(names, "latents", encode, accelerator)

    def clip(self, index: int, flipped: bool, *, first_alone: bool = False) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (f, C, h, w) of a window's clip, unscaled.

        `first_alone` puts the first frame, encoded as a picture, in place of the clip's first latent.
        """
        entry = self.store.require(clip_entry(index))
        mean, logvar = entry["mean"][int(flipped)], entry["logvar"][int(flipped)]
        if first_alone:
            mean = torch.cat([entry["image_mean"][int(flipped)], mean[1:]])
            logvar = torch.cat([entry["image_logvar"][int(flipped)], logvar[1:]])
        return mean, logvar

    def choose_images(self, video: int, sample: int) -> list[JointImages]:
        """Draw a sample's joint images, from videos other than `video`.

        With a single video its other windows serve; among few videos a packed group may show `video` too, if
        none of `GROUPS_TRIED` drawn groups is free of it.
        """
        random = np.random.default_rng(derive_seed(self.seed, "images", sample))
        if self.groups:
            return [
                JointImages(self._group_without(video, random), self._draw_flip(random))
                for _ in range(self.images.count // self.group_images)
            ]
        candidates = self.windows_elsewhere[video]
        candidates = candidates if len(candidates) else np.arange(len(self.clips))
        return [
            JointImages(clip_entry(int(window)), self._draw_flip(random))
            for window in random.choice(candidates, size=self.images.count)
        ]

    def joint_images(self, chosen: Sequence[JointImages]) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (n - f, C, h, w) of the images of `choose_images`, unscaled."""
        entries = [(self.store.require(images.entry), int(images.flipped)) for images in chosen]
        means = [entry["image_mean"][flip] for entry, flip in entries]
        logvars = [entry["image_logvar"][flip] for entry, flip in entries]
        return torch.cat(means), torch.cat(logvars)

    def pictures(self, images: JointImages) -> Tensor:
        """Decode joint images: (1 or a group's number, 3, H, W) in [-1, 1]."""
        kind, number = images.entry.split("-")
        if kind == "clip":
            pixels = self.clips.fixed_clip(int(number), images=(), kept=True)["video"][:1]
        else:
            pixels, _ = self._group_pictures(int(number))
        return pixels.flip(-1) if images.flipped else pixels

    def every_image(self) -> list[JointImages]:
        """Return all that `choose_images` may draw."""
        entries = [_group_name(k) for k in range(self.groups)] or [
            clip_entry(i) for i in range(len(self.clips))
        ]
        return [JointImages(entry, flipped) for entry in entries for flipped in self.flips]

    def _draw_flip(self, random: np.random.Generator) -> bool:
        return bool(random.integers(2)) and len(self.flips) > 1

    def _group_without(self, video: int, random: np.random.Generator) -> str:
        """A drawn group that shows no frame of `video`, if there is one among those tried."""
        for _ in range(GROUPS_TRIED):
            name = _group_name(int(random.integers(self.groups)))
            if video not in self.store.require(name)["videos"]:
                break
        return name

    @torch.no_grad()
    def _encode_clip(self, vae: VideoVAE, index: int, device: torch.device) -> dict[str, Tensor]:
        video = self.clips.fixed_clip(index, images=(), kept=True)["video"][: self.clips.spec.frames]
        both = torch.stack([video, video.flip(-1)]).to(device)
        mean, logvar = vae.encode_moments(both)
        entry = {"mean": mean.float().cpu(), "logvar": logvar.float().cpu()}
        if self.alone:
            entry |= self._picture_entry(vae, both[:, :1], "single")
        return entry

    @torch.no_grad()
    def _encode_group(self, vae: VideoVAE, group: int, device: torch.device) -> dict[str, Tensor]:
        images, videos = self._group_pictures(group)
        both = torch.stack([images, images.flip(-1)]).to(device)
        return self._picture_entry(vae, both, "packed") | {"videos": torch.tensor(videos)}

    def _group_pictures(self, group: int) -> tuple[Tensor, list[int]]:
        random = np.random.default_rng(derive_seed(self.seed, "group", group))
        return self.clips.image_group(self.group_images, random)

    @staticmethod
    def _picture_entry(vae: VideoVAE, pictures: Tensor, encoding: str) -> dict[str, Tensor]:
        mean, logvar = image_moments(vae, pictures, encoding)
        return {"image_mean": mean.float().cpu(), "image_logvar": logvar.float().cpu()}


def _first_frames_alone(config: Config) -> bool:
    """Whether every clip's first frame is kept as a picture too: a joint image, or one that is given."""
    joint = bool(config.images.count) and config.images.encoding == "single"
    return joint or config.train_dit.first_frame_prob > 0


def latent_cache_bytes(config: Config, clips: int, vae: VideoVAE) -> int:
    """Size of all entries of `clips` windows in bytes, flipped ones included."""
    latents, *of_one = vae.latent_shape(config.data.frames, *config.data.height_width)
    per_latent = 2 * 2 * 4 * math.prod(of_one)  # mean and log-variance, plain and flipped, float32
    groups = image_entry_latents(config, 0, vae)
    return per_latent * (clips * (latents + _first_frames_alone(config)) + groups)


def image_entry_latents(config: Config, clips: int, vae: VideoVAE) -> int:
    """Return how many latents all the joint images have that may be drawn, of `clips` windows, unflipped."""
    if not config.images.count:
        return 0
    if config.images.encoding == "packed":
        return config.cache.image_groups * vae.frames_to_latents(vae.frames_per_chunk)
    return clips


def clip_entry(index: int) -> str:
    """Return the name of a window's entry in a cache."""
    return f"clip-{index:07d}"


def _group_name(group: int) -> str:
    return f"group-{group:05d}"
