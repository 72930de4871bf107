"""tools.widen_vae: a wider VAE begins as the narrow one, and its copied channels part when it is trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from medsora.errors import BadInput
from medsora.vae import FrequencyCompensatedVAE
from medsora.vae.base import load_base
from tests.support.paths import CONFIGS
from tools.widen_vae import main, widened


def described(path: Path, channels: list[int]) -> Path:
    """Write the config of a small base with these channels per level."""
    config = json.loads((CONFIGS / "phantom_base.json").read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"block_out_channels": channels}), encoding="utf-8")
    return path


def test_the_wide_vae_computes_what_the_narrow_one_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = described(tmp_path / "narrow.json", [8, 8, 8, 12])
    wide, out = described(tmp_path / "wide.json", [8, 16, 8, 24]), tmp_path / "wide.safetensors"
    torch.manual_seed(0)
    FrequencyCompensatedVAE.from_base(narrow, compensation=False).save_base(
        tmp_path / "again.json", narrow.with_suffix(".safetensors")
    )
    monkeypatch.setattr(sys, "argv", ["widen_vae", str(narrow), str(wide), str(out)])
    main()
    video = torch.rand(1, 9, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        one, two = (
            FrequencyCompensatedVAE.from_base(config, compensation=False, weights=weights).eval()
            for config, weights in ((narrow, narrow.with_suffix(".safetensors")), (wide, out))
        )
        torch.testing.assert_close(one.encode(video), two.encode(video), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            one.decode(one.encode(video)), two.decode(two.encode(video)), atol=1e-5, rtol=0
        )


def test_copies_get_gradients_of_nearly_opposite_directions(tmp_path: Path) -> None:
    narrow, wide = (
        load_base(described(tmp_path / "vae.json", channels)) for channels in ([8] * 4, [8, 16, 8, 8])
    )
    wide.load_state_dict(widened(narrow.state_dict(), wide.state_dict(), seed=0))
    wide.decode(wide.encode(torch.rand(1, 3, 5, 16, 16)).latent_dist.mode()).sample.square().mean().backward()
    weight = wide.encoder.down_blocks[1].resnets[0].conv1.conv.weight
    assert torch.equal(weight[0::2], weight[1::2])
    pair = weight.grad[0::2].flatten(), weight.grad[1::2].flatten()
    assert torch.cosine_similarity(*pair, dim=0) < -0.8  # the norm's statistics are what both share


def test_other_widths_are_refused(tmp_path: Path) -> None:
    narrow, wide = (
        load_base(described(tmp_path / "vae.json", channels)) for channels in ([8] * 4, [8, 24, 8, 8])
    )
    with pytest.raises(BadInput, match="in the narrow VAE"):
        widened(narrow.state_dict(), wide.state_dict(), seed=0)
