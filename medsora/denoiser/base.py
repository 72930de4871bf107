"""Base class of all denoisers: presets, strict loading, adaLN's table and the checks of a call's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from medsora.config.switches import PAPER
from medsora.denoiser.weights import read_matching_weights
from medsora.errors import BadInput


class Modulation(NamedTuple):
    """Output of adaLN for the timesteps.

    Per block (B or 1, 1 or n, 9·d; of Endora 6·d), and for the last layer (…, 2·d).
    """

    blocks: Sequence[Tensor]
    final: Tensor


class PresetModel(ModelMixin, ConfigMixin):
    """Base class of models that come in sizes: presets, and strict loading.

    presets: settings by the name of a size.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """Build the preset `name` with some of its settings replaced.

        Raises:
            BadInput: if the preset or a setting is unknown.
        """
        if name not in cls.presets:
            raise BadInput(f"preset {name!r} is unknown; there are {', '.join(cls.presets)}")
        settings = [key for key in signature(cls.__init__).parameters if key != "self"]
        for key in overrides:
            if key not in settings:
                raise BadInput(f"{cls.__name__} has no setting {key!r}; it has {', '.join(settings)}")
        return cls(**cls.presets[name] | overrides)

    @property
    def preset(self) -> str | None:
        """The preset whose sizes and parts this model has (with its number of heads, or one), or None."""
        usual = signature(type(self).__init__).parameters
        sizes = {key: usual[key].default for settings in self.presets.values() for key in settings}
        sizes |= {key: usual[key].default for key in ("layout", *PAPER) if key in usual}
        heads = {"heads": 1} if self.config.heads == 1 else {}
        for name, settings in self.presets.items():
            if all(self.config[key] == value for key, value in (sizes | settings | heads).items()):
                return name
        return None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any) -> Self:
        """Load a folder or hub name that `save_pretrained` wrote, strictly: safetensors, never pickles.

        Raises:
            BadInput: if the weights do not fill the model that the folder's config describes, and for
                `use_safetensors=False`.
            OSError: if there are none.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        if kwargs.pop("use_safetensors", True) is False:
            raise BadInput("use_safetensors is False, but pickles are never read; leave it out.")
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, output_loading_info=True, use_safetensors=True, **kwargs
        )
        strays = [key for keys in info.values() for key in keys]
        if strays:
            raise BadInput(
                f"the weights in {pretrained_model_name_or_path} do not fit the config beside them "
                f"(first difference: {strays[0]}); save the model again or take another folder"
            )
        return (model, info) if wants_info else model

    def load_weights(
        self, path: str | PathLike, labels: tuple[Sequence[str], Sequence[str]] | None = None
    ) -> None:
        """Fill this model from a safetensors file, or from a folder that holds one, strictly.

        `labels`, the names of the file's labels and of this model's, matches the embedding's rows by name.

        Raises:
            FileNotFoundError: if there is no such file.
            BadInput: if the file is damaged or holds another model; the sentence names the first difference.
        """
        self.load_state_dict(read_matching_weights(Path(path), self, labels))


class Denoiser(PresetModel):
    """Base class of denoisers: noisy latents and timesteps in; noise, variance and features out.

    A subclass has the modules `time`, `blocks`, `final` and `labels` (or None), and the settings
    `in_channels`, `width`, `depth`, `patch`, `classes` and `prior_width`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["Block"]
    _repeated_blocks: ClassVar = ["Block"]

    def add_adapter(self, prior_width: int) -> None:
        """Add the trained convolution that makes tokens of an image prior's maps of so many channels.

        0 channels: there is none, and `adapter` is None.
        """
        self.adapter = None
        if prior_width:
            self.adapter = nn.Conv2d(prior_width, self.config.width, kernel_size=2, stride=2, bias=False)
            self.adapter.to(self.device, self.dtype)
        if prior_width != self.config.prior_width:  # added to a model that was built without
            self.register_to_config(prior_width=prior_width)

    @property
    def num_features(self) -> int:
        """Number of features that a forward returns."""
        return len(self.blocks)

    def modulation(self, t: Tensor, labels: Tensor | None = None) -> Modulation:
        """Output of adaLN for timesteps and labels, each (B,) or (B, n).

        It does not depend on the latents, so sampling computes it once for all steps (28.4 of B's 86.5
        million parameters).
        """
        time = self.time(t if t.ndim == 2 else t[:, None])
        if self.labels is not None:
            labels = torch.full_like(t, self.config.classes) if labels is None else labels
            time = time + self.labels(labels if labels.ndim == 2 else labels[:, None])
        time = nn.functional.silu(time)
        return Modulation([block.modulation(time) for block in self.blocks], self.final.modulation(time))

    def _check(self, z: Tensor, t: Tensor, num_images: int, labels: Tensor | None) -> None:
        channels, patch = self.config.in_channels, self.config.patch
        if z.ndim != 5 or z.shape[2] != channels:
            raise BadInput(f"latents must be (B, n, {channels}, h, w), not {tuple(z.shape)}")
        if z.shape[3] % patch or z.shape[4] % patch:
            raise BadInput(f"latents of {z.shape[3]}x{z.shape[4]} do not divide into {patch}x{patch} patches")
        per_sample, per_frame = tuple(z.shape[:1]), tuple(z.shape[:2])
        if tuple(t.shape) not in (per_sample, per_frame):
            raise BadInput(f"timesteps must be {per_sample} or {per_frame}, not {tuple(t.shape)}")
        if labels is not None and self.labels is None:
            raise BadInput("this denoiser has no labels (classes is 0): leave them out")
        if labels is not None and tuple(labels.shape) not in (per_sample, per_frame):
            raise BadInput(f"labels must be {per_sample} or {per_frame}, not {tuple(labels.shape)}")
        if not 0 <= num_images < z.shape[1]:
            raise BadInput(f"{num_images} of {z.shape[1]} latent frames cannot be images: a clip must remain")
