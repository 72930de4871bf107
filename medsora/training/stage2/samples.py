"""Stage 2's dataset: what one sample of the run needs, read by number; pixels, or latents from the cache.

The timestep belongs to the sample's number, so it is known before anything is read whether the alignment
loss of this sample can be other than zero, and leaves the frames for the optical flow on the disk if not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from medsora.config.schema import Config
from medsora.data.clips import ClipDataset
from medsora.flow_prior import needed
from medsora.training.batches import label_of_sample
from medsora.training.cache.latents import JointImages, LatentCache
from medsora.training.cache.prior import PriorCache, has_image_targets
from medsora.training.randomness import chance_for, derive_seed, timestep_for
from medsora.training.schedule import SampleKey

STACKED = ("mean", "logvar", "video", "images")
NUMBERS = ("sample", "t", "needed", "label", "given")
LISTED = ("index", "flipped", "name", "prior", "image_prior", "flow", "flow_video")


class Stage2Samples(Dataset):
    """Items by `SampleKey`; `collate` makes a micro-batch of them.

    Without a cache an item holds `video` (F+1, 3, H, W) and `images` (K, 3, H, W); with it `mean` and
    `logvar` (n, C, h, w) of clip and images. Samples whose alignment loss is not provably zero also hold what
    the prior starts from: its cached features, the exact `flow` (F, 2, H, W), or the frames as `flow_video`;
    for joint images with a target, `image_prior` pairs each `JointImages` with its features or its pixels.
    Where clips have labels an item holds its `label`; where first frames are given, how many latents are, as
    `given`.
    """

    def __init__(
        self,
        config: Config,
        clips: ClipDataset,
        *,
        steps: int,
        given_latents: Sequence[int] = (),
        latents: LatentCache | None = None,
        priors: PriorCache | None = None,
        draw: bool = True,
    ) -> None:
        """`draw=False` gives every clip at its window's start and unflipped: for evaluation.

        `given_latents`: how many latents each of `train_dit.given_frames` becomes.
        """
        self.config, self.clips, self.steps, self.draw = config, clips, steps, draw
        self.given_latents = given_latents
        self.latents, self.priors = latents, priors

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        logit_mean = self.config.train_dit.timestep_logit_mean
        t = timestep_for(self.steps, self.config.run.seed, key.number, logit_mean)
        alignment = self.config.alignment
        given = self._given_latents(key.number)
        # A sample with given frames is left out of the alignment: its latents have two noise levels.
        always = alignment.kind == "image" or alignment.correlation == "batch"
        aligned = alignment.weight > 0 and not given
        aligned = aligned and (always or bool(needed(torch.tensor([t]), alignment.margin)))
        item = {"sample": key.number, "t": t, "needed": aligned}
        item |= self._pixels(key, aligned) if self.latents is None else self._cached(key, aligned, given)
        if self.clips.labels.names:
            item["label"] = self._label(replace(key, index=item["index"]))
        if given is not None:
            item["given"] = given
        return item

    def _label(self, key: SampleKey) -> int:
        """The clip's label, or that for none where training drops it."""
        dropout = self.config.train_dit.label_dropout if self.draw else 0.0
        return label_of_sample(self.clips, key, self.config.run.seed, dropout)

    def _given_latents(self, sample: int) -> int | None:
        """Number of first latents that are given to the model, 0 for most; None if that is never trained."""
        settings, seed = self.config.train_dit, self.config.run.seed
        if not self.draw or settings.first_frame_prob == 0:
            return None
        if chance_for(seed, "first frame", sample) >= settings.first_frame_prob:
            return 0
        return self.given_latents[derive_seed(seed, "given frames", sample) % len(self.given_latents)]

    def _pixels(self, key: SampleKey, aligned: bool) -> dict[str, Any]:
        clip = self.clips[key.epoch, key.index] if self.draw else self.clips.fixed_clip(key.index)
        item = {name: clip[name] for name in ("index", "name", "video", "images", "flipped")}
        if aligned:
            item |= {"flow_video": clip["video"], "flow": clip.get("flow")}
        return item

    def _cached(self, key: SampleKey, aligned: bool, given: int | None) -> dict[str, Any]:
        video, window = self.clips.windows[key.index]
        choice = self.clips.choose(
            key.epoch, key.index, start=window.start, flip=None if self.draw else False, images=()
        )
        mean, logvar = self.latents.clip(key.index, choice.flipped, first_alone=given == 1)
        joint = self.latents.choose_images(video, key.number) if self.config.images.count else []
        if joint:
            image_mean, image_logvar = self.latents.joint_images(joint)
            mean, logvar = torch.cat([mean, image_mean]), torch.cat([logvar, image_logvar])
        item = {"index": key.index, "name": self.clips.name(choice), "flipped": choice.flipped}
        item |= {"mean": mean, "logvar": logvar}
        if aligned:
            stored = self.priors.get(key.index, choice.flipped) if self.priors else None
            if stored is not None:
                item["prior"] = stored
            else:
                pixels = self.clips.fixed_clip(key.index, flip=choice.flipped, images=())
                if pixels["index"] != key.index:  # it does not decode: take another sample whole
                    return self._cached(replace(key, index=pixels["index"]), aligned, given)
                item |= {"flow_video": pixels["video"], "flow": pixels.get("flow")}
            if has_image_targets(self.config):
                item["image_prior"] = [(images, self._image_prior(images)) for images in joint]
        return item

    def _image_prior(self, images: JointImages) -> list[Tensor] | Tensor:
        stored = self.priors.get(*images) if self.priors else None
        return self.latents.pictures(images) if stored is None else stored

    @staticmethod
    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack what every item has; what only some have stays a list with None where there is nothing."""
        batch: dict[str, Any] = {name: [item.get(name) for item in items] for name in LISTED}
        batch |= {name: torch.tensor([item[name] for item in items]) for name in NUMBERS if name in items[0]}
        return batch | {
            name: torch.stack([item[name] for item in items]) for name in STACKED if name in items[0]
        }
