"""A frozen vision transformer (DINO) that reads flow pictures: tokens of chosen layers (§3.2, step 3)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsora.flow_prior.weights import load_strictly, read_weights

logger = logging.getLogger(__name__)

# Limits of a JSON file that describes an encoder: length, settings, the encoder's size (ViT-B: 0.9e8).
MAX_CHARACTERS, MAX_NUMBER, MAX_DEPTH, MAX_PARAMETERS = 10**5, 10**4, 128, 2 * 10**8


class DinoEncoder(nn.Module):
    """A timm vision transformer: pictures in [0, 1] to the patch tokens of some of its layers.

    A picture of H x W pixels gives a grid of H/patch x W/patch tokens (64 pixels at patch 16: 4x4, 128 at
    patch 8: 16x16); the model's position embedding is resampled to that grid. Sides that the patch does not
    divide are first resized up to the next multiple.

    Args:
        name: a timm model, for the paper's DINO "vit_base_patch8_224.dino" (without ".dino" it is another);
            or a JSON file in timm's form that changes one: {"architecture": name, "model_args": {...}}.
        weights: "hub" (timm's cache or download; not for a JSON file), a local `.safetensors` or `.pth` file
            in timm's names (also the official DINO checkpoints), or "random" (untrained, always the same; for
            tests and trials).

    Attributes:
        depth: number of layers.
        settings: contents of the JSON file; None for a name of timm.
        untrained: whether the weights are random.

    Raises:
        ValueError: no such vision transformer, or weights that do not fit it.
        OSError: weights that can be neither read nor downloaded.
    """

    def __init__(self, name: str = "vit_base_patch8_224.dino", weights: str | Path = "hub") -> None:
        super().__init__()
        self.untrained = str(weights) == "random"
        from_hub = str(weights) == "hub"
        with torch.random.fork_rng(devices=[]):  # the caller's randomness is left as it was
            torch.default_generator.manual_seed(0)
            self.network = build_network(name, pretrained=from_hub)
        if self.untrained:
            logger.warning(
                "the flow prior is untrained (%s has random weights): the alignment loss carries no signal.",
                name,
            )
        elif not from_hub:
            state = _encoder_weights(read_weights(weights))
            load_strictly(self.network, state, weights, f"timm's {name}")
        self.depth = len(self.network.blocks)
        self.settings = _read_settings(name) if name.endswith(".json") else None
        config = timm.data.resolve_model_data_config(self.network)
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: a frozen network has no other."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pictures: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the patch tokens of some layers as maps.

        Args:
            pictures: (N, 3, H, W) RGB in [0, 1].
            layers: ascending, without repetition, counted from 0.

        Returns:
            one (N, D, H/patch, W/patch) per layer, as the layer leaves it (before the final norm).
        """
        return self.network.forward_intermediates(
            (self.fitted(pictures) - self.mean) / self.std,
            indices=list(layers),
            stop_early=True,  # layers beyond the last one needed are not computed
            intermediates_only=True,
        )

    def fitted(self, pictures: Tensor) -> Tensor:
        """Return pictures (N, 3, H, W), resized up where the patch does not divide their sides."""
        patch = self.network.patch_embed.patch_size
        size = [-(-side // step) * step for side, step in zip(pictures.shape[-2:], patch, strict=True)]
        if list(pictures.shape[-2:]) == size:
            return pictures
        return F.interpolate(pictures, size=size, mode="bilinear", align_corners=False)


def _encoder_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """Take the bare encoder out of a checkpoint: no heads; the teacher of an official DINO run."""
    state = state.get("teacher", state)
    bare = {name.removeprefix("module.").removeprefix("backbone."): value for name, value in state.items()}
    return {name: value for name, value in bare.items() if not name.startswith("head.")}


def build_network(name: str, *, pretrained: bool = False) -> nn.Module:
    """Return the vision transformer `name`, a name of timm or a JSON file, as `DinoEncoder` describes it.

    Its output is the class token after the last norm.

    Raises:
        ValueError: no such vision transformer, a file that describes none, or one that no hub has.
        OSError: weights that can be neither read nor downloaded.
    """
    refusal = f"{name!r} cannot be the flow prior's encoder: expected a vision transformer of timm"
    architecture, settings = _read_settings(name) if name.endswith(".json") else (name, {})
    if pretrained and name.endswith(".json"):
        raise ValueError(f"the weights of {name} are on no hub: give their file (dino.weights), or random.")
    size = 0
    try:
        create = partial(timm.create_model, architecture, num_classes=0, dynamic_img_size=True, **settings)
        if settings:
            with torch.device("meta"):  # without memory: anybody may have written the file
                size = sum(parameter.numel() for parameter in create().parameters())
        network = create(pretrained=pretrained) if size <= MAX_PARAMETERS else None
    except (TypeError, ValueError, AssertionError, ArithmeticError) as error:  # settings it does not take
        raise ValueError(f"{refusal}.") from error
    except RuntimeError as error:
        raise ValueError(f"{refusal} (timm: {str(error).rstrip('.')}).") from error
    except OSError as error:
        raise OSError(
            f"the weights of {name} could not be downloaded from the Hugging Face Hub: "
            "connect to the network once so that timm can fetch them, or give a local .safetensors or .pth "
            "file of them (dino.weights)."
        ) from error
    if network is None:
        raise ValueError(f"{refusal} with at most {MAX_PARAMETERS:,} parameters, not {size:,}.")
    if not hasattr(network, "blocks"):
        raise ValueError(f"{refusal}.")
    return network


def _read_settings(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Return the architecture and the settings that a JSON file in timm's form names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or one of its settings is no number, or none of a model's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the encoder's description {path} does not exist: correct dino.model.")
    try:
        with path.open(encoding="utf-8") as file:
            content = json.loads(file.read(MAX_CHARACTERS))
        architecture, settings = content["architecture"], content.get("model_args", {})
        numbers = all(
            type(value) in (int, float) and 0 <= value <= (MAX_DEPTH if key == "depth" else MAX_NUMBER)
            for key, value in settings.items()
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f'{path} describes no encoder: expected {{"architecture": NAME, "model_args": {{...}}}}.'
        ) from error
    known = isinstance(architecture, str) and timm.is_model(architecture)  # no name that timm would download
    if not known or not numbers or content.keys() - {"architecture", "model_args"}:
        raise ValueError(
            f"{path} has more than an architecture of timm and model_args whose values are numbers from 0 to "
            f"{MAX_NUMBER:,} (depth: {MAX_DEPTH})."
        )
    return architecture, settings
