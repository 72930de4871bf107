"""medsora.vae.tokenizer: frames to codes and back, a codebook of unit length, straight-through gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from medsora.vae import VQTokenizer
from medsora.vae.choices import TOKENIZERS

MAX_FP16_BYTES = 2.5 * 2**20
SMALL = {"block_out_channels": [8, 8, 8, 8], "latent_channels": 8, "num_vq_embeddings": 32}


def small(quantize: bool = True) -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer.from_base(TOKENIZERS["phantom"] | SMALL, quantize=quantize)


def frames(*leading: int, side: int = 32) -> torch.Tensor:
    return torch.rand(*leading, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_presets_are_as_large_as_published_and_as_promised() -> None:
    with torch.device("meta"):
        published, tiny = (VQTokenizer.from_preset(name) for name in ("endogen", "phantom"))
    assert published.num_parameters() == 71_883_403
    assert (published.downsampling, published.num_codes, published.codebook.shape[1]) == (16, 16384, 8)
    assert (tiny.downsampling, tiny.num_codes) == (8, 4096)
    assert 2 * tiny.num_parameters() < MAX_FP16_BYTES
    with pytest.raises(ValueError, match="endogen, phantom"):
        VQTokenizer.from_preset("large")


@torch.no_grad()
def test_codes_are_those_of_diffusers_and_decode_alike() -> None:
    tokenizer, images = small(), frames(3)
    codes = tokenizer.encode(images)
    assert (codes.shape, codes.dtype) == ((3, 4, 4), torch.long)
    latents = F.normalize(tokenizer.base.encode(images).latents, dim=1)
    theirs = tokenizer.base.quantize(latents)[2][2]
    assert torch.equal(codes.flatten(), theirs)
    decoded = tokenizer.base.decode(latents).sample.clamp(-1, 1)
    torch.testing.assert_close(tokenizer.decode(codes), decoded)
    torch.testing.assert_close(tokenizer.reconstruct(images), decoded)


@torch.no_grad()
def test_clips_are_encoded_frame_by_frame_in_bounded_parts() -> None:
    tokenizer, clips = small(), frames(2, 9)
    codes = tokenizer.encode(clips)
    assert codes.shape == (2, 9, 4, 4)
    assert torch.equal(codes[1, 8], tokenizer.encode(clips[1, 8:])[0])
    assert tokenizer.decode(codes).shape == clips.shape


def test_gradients_pass_straight_through_the_codes_and_reach_the_codebook() -> None:
    tokenizer, images = small().train(), frames(2)
    out = tokenizer(images)
    out.reconstruction.square().mean().backward(retain_graph=True)
    assert tokenizer.base.encoder.conv_in.weight.grad.abs().sum() > 0
    assert tokenizer.codebook.grad is None or not tokenizer.codebook.grad.any()
    (out.rows - out.latents.detach()).square().mean().backward()
    touched = tokenizer.codebook.grad.abs().sum(1) > 0
    assert set(touched.nonzero().flatten().tolist()) == set(out.codes.tolist())
    torch.testing.assert_close(out.latents.norm(dim=1), torch.ones(len(out.latents)))


@torch.no_grad()
def test_without_quantisation_the_latents_themselves_are_decoded() -> None:
    tokenizer, images = small(quantize=False), frames(1, 2)
    out = tokenizer(images)
    assert out.codes is None
    torch.testing.assert_close(tokenizer.reconstruct(images), out.reconstruction)
    assert not torch.equal(small().reconstruct(images), out.reconstruction)
    tokenizer.trainable_parameters()
    assert not tokenizer.codebook.requires_grad
    with pytest.raises(ValueError, match="without quantisation"):
        tokenizer.encode(images)


@torch.no_grad()
def test_saved_ones_and_half_precision_weights_load_strictly(tmp_path: Path) -> None:
    tokenizer, images = small(), frames(2)
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = VQTokenizer.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert loaded.digest == tokenizer.digest
    state = {name: value.half() for name, value in tokenizer.base.state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    half = VQTokenizer.from_base(TOKENIZERS["phantom"] | SMALL, tmp_path / "half.safetensors")
    torch.testing.assert_close(half.codebook.norm(dim=1), torch.ones(32))
    assert half.digest != tokenizer.digest
    save_file(state | {"more": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match="'more' is unknown"):
        VQTokenizer.from_base(TOKENIZERS["phantom"] | SMALL, tmp_path / "more.safetensors")
    with pytest.raises(OSError, match="no whole saved VAE"):
        VQTokenizer.from_pretrained(tmp_path)


def test_the_digest_is_of_what_decides_the_codes() -> None:
    tokenizer = small()
    before = tokenizer.digest
    with torch.no_grad():
        tokenizer.base.decoder.conv_in.weight.add_(1)
    assert tokenizer.digest == before
    with torch.no_grad():
        tokenizer.codebook[0] *= -1
    assert tokenizer.digest != before


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"height 36: .* 32 and 40"):
        small().encode(frames(1, side=36))
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 3, H, W\)"):
        small().encode(torch.zeros(3, 32, 32))
