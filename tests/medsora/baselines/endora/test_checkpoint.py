"""medsora.baselines.endora.checkpoint: files with the published keys and shapes load, others do not."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medsora.baselines.endora import Endora
from medsora.baselines.endora.checkpoint import from_published, read_published
from medsora.errors import BadInput
from tests.support.naive_endora import (
    frame_positions,
    naive_endora,
    positions,
    published_state,
)

SMALL = {"width": 24, "depth": 4}


def write(path: Path, **content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture
def state() -> dict[str, Tensor]:
    return published_state(**SMALL)


@torch.no_grad()
def test_a_published_file_gives_the_plain_model_s_noise(state: dict[str, Tensor], tmp_path: Path) -> None:
    """The average is taken, and the layers that nothing uses are dropped."""
    other = {name: value + 1 for name, value in state.items()}
    args = argparse.Namespace(model="EnDora-XL/2", lr=1e-4)
    found = read_published(write(tmp_path / "x.pt", model=other, ema=state, opt={}, args=args), heads=3)
    assert (found.frames, found.latent_side, found.model.config.layout) == (16, 16, "interlaced")
    z, t = torch.randn(1, 3, 4, 4, 4).double(), torch.tensor([321])
    exact = {name: value.double() for name, value in state.items()}
    eps, variance, _ = naive_endora(exact, z, t, heads=3, temporal=(1, 3))
    out = found.model.double()(z, t)
    torch.testing.assert_close(out.eps, eps, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(out.variance, variance, atol=1e-10, rtol=1e-10)


def test_latte_s_labels_and_the_prior_s_adapter_come_along(tmp_path: Path) -> None:
    latte = published_state(**SMALL, classes=5, unused=False, tokens=256)
    found = read_published(write(tmp_path / "latte.pt", model=latte), heads=3)
    assert (found.model.config.classes, found.latent_side) == (5, 32)
    endora = published_state(**SMALL, adapter=8)
    adapted = read_published(write(tmp_path / "prior.pt", ema=endora), heads=3).model
    assert torch.equal(adapted.adapter.weight, endora["cov.weight"])
    assert adapted.config.prior_width == 8
    parallel = {f"module.{name}": value for name, value in endora.items()}
    read_published(write(tmp_path / "parallel.pt", ema=parallel), heads=3)


def test_the_ablation_s_name_gives_its_layout(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = write(tmp_path / "x.pt", ema=state, args=argparse.Namespace(model="EnDora-XL/2_var"))
    assert read_published(file, heads=3).model.config.layout == "separate"
    assert read_published(file, heads=3, layout="interlaced").model.config.layout == "interlaced"


def test_the_published_size_on_meta() -> None:
    """Every key and shape of EnDoraIMG-XL/2, with its 677,757,344 parameters."""
    with torch.device("meta"):
        state = published_state(width=1152, depth=28, adapter=384)
    assert sum(value.numel() for value in state.values()) == 677_757_344
    with torch.device("cpu"):
        state |= {
            "pos_embed": frame_positions(8, 8, 1152)[None].float(),
            "temp_embed": positions(torch.arange(16), 1152)[None].float(),
        }
    model = from_published(state, source="it").model
    assert model.preset == "XL"
    adapter = 384 * 1152 * 4
    assert sum(p.numel() for p in model.parameters()) == 673_681_568 + adapter


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "blocks.2.mlp.fc1.bias"), r"lacks blocks\.2\.mlp\.fc1\.bias"),
        (
            lambda s: s | {"blocks.1.attn.norm.weight": torch.ones(8)},
            r"holds blocks\.1\.attn\.norm",
        ),
        (lambda s: s | {"final_layer.linear.bias": torch.ones(16)}, r"\(16,\) instead of \(32,\)"),
        (lambda s: without(s, "x_embedder.proj.weight"), "is no checkpoint of Endora or Latte"),
        (lambda s: s | {"pos_embed": s["pos_embed"].flip(1)}, "pos_embed is not the fixed table"),
        (lambda s: s | {"pos_embed": s["pos_embed"][:, :60]}, "pos_embed is not the fixed table"),
        (lambda s: s | {"temp_embed": s["temp_embed"] + 1}, "temp_embed is not the fixed table"),
        (lambda s: without(s, "temp_embed"), "temp_embed is missing"),
        (lambda s: {"x": 3}, "no state dict of tensors"),
    ],
)
def test_another_file_is_refused_by_its_first_difference(
    state: dict[str, Tensor], tmp_path: Path, change: Callable, words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        read_published(write(tmp_path / "x.pt", ema=change(state)), heads=3)


def test_heads_are_required_where_no_published_size_has_them(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="--heads"):
        read_published(write(tmp_path / "x.pt", ema=state))


class Stranger:
    """What no checkpoint may run."""


def test_only_tensors_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="tensors only"):
        read_published(write(tmp_path / "x.pt", ema=state, args=Stranger()), heads=3)
    with pytest.raises(BadInput, match="does not exist"):
        read_published(tmp_path / "none.pt")


def test_what_the_tests_write_is_what_the_model_has(state: dict[str, Tensor]) -> None:
    model = Endora(**SMALL, heads=3)
    shapes = sorted(tuple(value.shape) for value in model.state_dict().values())
    tables = ("pos_embed", "temp_embed", "linear.", "linear_2.")
    assert shapes == sorted(tuple(v.shape) for n, v in state.items() if not n.startswith(tables))
