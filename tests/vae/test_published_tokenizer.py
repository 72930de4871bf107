"""medsora.vae.published_tokenizer: LlamaGen's VQ-16 by its published names, strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medsora.vae import VQTokenizer
from medsora.vae.published_tokenizer import load_published, published_name, read_published_tokenizer

LEVELS = range(5)
LAYER = ("weight", "bias")


def names_of_half(half: str, residuals: int, coarsest: int, sampling: str) -> set[str]:
    """Published names of the encoder or decoder, written down apart from the code's own map."""
    widen = {"encoder": {2: [0], 4: [0]}, "decoder": {1: [0], 3: [0]}}[half]
    parts = {"conv_in", "norm_out", "conv_out"}
    for level in LEVELS:
        for number in range(residuals):
            parts |= {f"conv_blocks.{level}.res.{number}.{x}" for x in ("norm1", "conv1", "norm2", "conv2")}
            if number in widen.get(level, []):
                parts.add(f"conv_blocks.{level}.res.{number}.nin_shortcut")
        if level < 4:
            parts.add(f"conv_blocks.{level}.{sampling}.conv")
    attention = ("norm", "q", "k", "v", "proj_out")
    parts |= {f"conv_blocks.{coarsest}.attn.{n}.{x}" for n in range(residuals) for x in attention}
    parts |= {f"mid.1.{x}" for x in attention}
    parts |= {f"mid.{n}.{x}" for n in (0, 2) for x in ("norm1", "conv1", "norm2", "conv2")}
    return {f"{half}.{part}.{kind}" for part in parts for kind in LAYER}


def published_names() -> set[str]:
    rest = {f"{part}.{kind}" for part in ("quant_conv", "post_quant_conv") for kind in LAYER}
    halves = names_of_half("encoder", 2, 4, "downsample") | names_of_half("decoder", 3, 0, "upsample")
    return halves | rest | {"quantize.embedding.weight"}


def published_state(tokenizer: VQTokenizer) -> dict[str, torch.Tensor]:
    """A file's content with the published names and shapes, from a tokenizer's weights."""
    state = {published_name(name): value.clone() for name, value in tokenizer.base.state_dict().items()}
    for name, value in state.items():
        if value.dim() == 2 and name != "quantize.embedding.weight":
            state[name] = value[:, :, None, None]
    state["quantize.embedding.weight"] *= 3
    return state | {"quantize.codebook_used": torch.zeros(65536)}


def narrow() -> VQTokenizer:
    torch.manual_seed(0)
    sizes = {"block_out_channels": [8, 8, 16, 16, 32], "latent_channels": 16, "num_vq_embeddings": 64}
    return VQTokenizer.from_preset("endogen", norm_num_groups=8, **sizes)


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        state = published_state(VQTokenizer.from_preset("endogen"))
    assert set(state) - {"quantize.codebook_used"} == published_names()
    assert state["encoder.conv_blocks.4.attn.0.q.weight"].shape == (512, 512, 1, 1)
    assert state["quant_conv.weight"].shape == (8, 256, 1, 1)
    assert state["post_quant_conv.weight"].shape == (256, 8, 1, 1)
    assert state["quantize.embedding.weight"].shape == (16384, 8)


@torch.no_grad()
def test_published_weights_compute_the_same_codes_and_frames() -> None:
    source = narrow()
    target = narrow()
    for parameter in target.parameters():
        parameter.zero_()
    load_published(target, published_state(source), "file")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(target.encode(images), source.encode(images))
    torch.testing.assert_close(target.reconstruct(images), source.reconstruct(images))
    torch.testing.assert_close(target.codebook.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("decoder.mid.1.k.bias"), r"lacks decoder\.mid\.1\.k\.bias"),
        (lambda state: state.update({"loss.x": torch.zeros(1)}), r"holds loss\.x"),
        (lambda state: state.update({"encoder.conv_in.bias": torch.zeros(3)}), r"conv_in\.bias is \(3,\)"),
    ],
)
def test_the_first_difference_is_named(change, words: str) -> None:
    state = published_state(narrow())
    change(state)
    with pytest.raises(ValueError, match=words):
        load_published(narrow(), state, "file")


def test_other_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=r"cut\.pt is not a complete"):
        read_published_tokenizer(tmp_path / "cut.pt")
    torch.save({"model": {"x": 1}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no state dict"):
        read_published_tokenizer(tmp_path / "other.pt")
    torch.save({"model": published_state(narrow())}, tmp_path / "narrow.pt")
    with pytest.raises(ValueError, match="does not fit"):
        read_published_tokenizer(tmp_path / "narrow.pt")
    with pytest.raises(OSError, match="correct the path"):
        read_published_tokenizer(tmp_path / "none.pt")
