"""Video classifiers of the downstream task: a small one for the phantom, and TimeSformer (ViT-B/16)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from medsora.baselines.published import read_checkpoint
from medsora.errors import BadInput, bad_input_from_errors
from medsora.evaluation.conditional.classifier import ClipClassifier
from medsora.flow_prior.weights import load_strictly

BACKBONES = ("small", "timesformer")
MEAN, STD = 0.45, 0.225  # normalisation of pixels in [0, 1] that TimeSformer was trained with
HEAD_WIDTH = 64  # every published size has heads of this width
# Names of the published state dict (TimeSformer's, SVT's and Endo-FM's repositories), and of transformers.
PUBLISHED_NAMES = {
    "pos_embed": "embeddings.position_embeddings",
    "time_embed": "embeddings.time_embeddings",
    "cls_token": "embeddings.cls_token",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.": "encoder.layer.",
    ".temporal_norm1": ".temporal_layernorm",
    ".temporal_fc": ".temporal_dense",
    ".norm1": ".layernorm_before",
    ".norm2": ".layernorm_after",
    ".temporal_attn.qkv": ".temporal_attention.attention.qkv",
    ".temporal_attn.proj": ".temporal_attention.output.dense",
    ".attn.qkv": ".attention.attention.qkv",
    ".attn.proj": ".attention.output.dense",
    ".mlp.fc1": ".intermediate.dense",
    ".mlp.fc2": ".output.dense",
    "norm.": "layernorm.",
}


class TimeSformer(nn.Module):
    """Clips (B, F, 3, H, W) in [-1, 1] -> logits (B, classes): divided space-time attention, linear head.

    `weights` is a folder that transformers saved, or a PyTorch file with the published names, such as SVT's
    `kinetics400_vitb_ssl.pth` (state dict under `teacher`, names with `backbone.`); only tensors are read.

    Raises:
        BadInput: the weights are damaged, something else, or for other clips than `frames` of `size` pixels.
    """

    def __init__(self, classes: int, weights: str | Path, frames: int, size: int) -> None:
        super().__init__()
        from transformers import TimesformerModel

        with bad_input_from_errors():
            if Path(weights).is_dir():
                self.body = TimesformerModel.from_pretrained(
                    weights, local_files_only=True, use_safetensors=True
                )
            else:
                self.body = _from_published(weights)
        config = self.body.config
        if (config.num_frames, config.image_size) != (frames, size):
            raise BadInput(
                f"{weights} is for {config.num_frames} frames of {config.image_size} pixels, not {frames} of "
                f"{size}; give --frames {config.num_frames} --size {config.image_size}."
            )
        self.head = nn.Linear(config.hidden_size, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, video: Tensor) -> Tensor:
        """Video (B, F, 3, H, W) in [-1, 1] -> logits (B, classes)."""
        pixels = ((video + 1) / 2 - MEAN) / STD
        return self.head(self.body(pixels).last_hidden_state[:, 0])


def build_backbone(name: str, classes: int, weights: str | Path | None, frames: int, size: int) -> nn.Module:
    """Return one of `BACKBONES`; raises `BadInput` for weights or clips that do not fit it."""
    if name == "timesformer":
        if weights is None:
            raise BadInput(
                "--backbone timesformer needs --weights: SVT's kinetics400_vitb_ssl.pth (release v1.0 of "
                "kahnchana/svt), or a folder that transformers saved."
            )
        return TimeSformer(classes, weights, frames, size)
    if frames < 8 or size < 32:
        raise BadInput(f"the small backbone takes at least 8 frames of 32 pixels, not {frames} of {size}.")
    return ClipClassifier(classes)


def _transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published TimeSformer's state dict under the names of transformers' `TimesformerModel`."""
    renamed = {}
    for name, value in state.items():
        for theirs, ours in PUBLISHED_NAMES.items():
            if name.startswith(theirs) or (theirs.startswith(".") and theirs in name):
                name = name.replace(theirs, ours, 1)
        renamed[name] = value
    return renamed


def _from_published(path: str | Path) -> nn.Module:
    from transformers import TimesformerConfig, TimesformerModel

    state, _ = read_checkpoint(path, "teacher", "model_state", "model")
    inner = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
    state = {name: value for name, value in (inner or state).items() if not name.startswith("head.")}
    state = _transformers_names(state)
    try:
        width, _, patch, _ = state["embeddings.patch_embeddings.projection.weight"].shape
        patches = state["embeddings.position_embeddings"].shape[1] - 1
        layers = {name.split(".")[2] for name in state if name.startswith("encoder.layer.")}
        config = TimesformerConfig(
            hidden_size=width,
            num_attention_heads=max(1, width // HEAD_WIDTH),
            num_hidden_layers=len(layers),
            intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_frames=state["embeddings.time_embeddings"].shape[1],
            patch_size=patch,
            image_size=round(patches**0.5) * patch,
        )
        body = TimesformerModel(config)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no published TimeSformer ({error}).") from error
    load_strictly(body, state, path, "TimeSformer")
    return body
