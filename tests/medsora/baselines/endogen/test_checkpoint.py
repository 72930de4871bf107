"""medsora.baselines.endogen.checkpoint, medsora.baselines.published: files with the published keys and shapes
load strictly; what does not fit is named.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from medsora.baselines.endogen.checkpoint import from_published, read_published
from medsora.config.presets import ENDOGEN_PRESETS
from medsora.errors import BadInput
from tests.support.endogen.naive import naive_endogen, published_shapes

SMALL = {"width": 16, "depth": 2, "heads": 2, "hidden": 12}


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in published_shapes(16, 2, 12, 11, 3).items()}


@pytest.fixture(autouse=True)
def small_preset() -> Any:
    with mock.patch.dict(ENDOGEN_PRESETS, small=SMALL):
        yield


def test_a_file_of_three_parts_and_its_arguments_loads(state: dict, tmp_path: Path) -> None:
    saved = {"model": state, "optimizer": {"state": {}}, "steps": 54236, "args": argparse.Namespace(x=1)}
    torch.save(saved, tmp_path / "model.pt")
    model = read_published(tmp_path / "model.pt", rows=4, cols=4)
    assert (model.config.classes, model.config.num_codes, model.length) == (3, 11, 16)
    assert not model.training
    codes = torch.randint(11, (1, 9))
    expected = naive_endogen(state, codes[0].tolist(), 2, heads=2, cols=4)
    torch.testing.assert_close(model(codes, torch.tensor([2]))[0], expected, rtol=1e-4, atol=1e-4)


def test_the_published_size_is_preset_b() -> None:
    shapes = published_shapes(768, 12, 2048, 16_384, 8)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    model = from_published(state, source="hyperkvasir")
    assert model.num_parameters() == 110_126_592
    assert model.preset == "B"


def test_other_pickled_objects_are_refused(state: dict, tmp_path: Path) -> None:
    torch.save({"model": state, "args": Path("x")}, tmp_path / "model.pt")
    with pytest.raises(BadInput, match=r"model\.pt"):
        read_published(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm.weight": None}, "lacks norm.weight"),
        ({"freqs_cis": torch.ones(3)}, "holds freqs_cis"),
        ({"output.weight": torch.ones(10, 16)}, r"output.weight is \(10, 16\) instead of \(11, 16\)"),
        ({"tok_embeddings.weight": None}, "no checkpoint of EndoGen"),
        ({"layers.2.ffn_norm.weight": torch.ones(16)}, "3 blocks of width 16, which is no known size"),
    ],
)
def test_the_first_difference_is_named(state: dict, change: dict, words: str) -> None:
    changed = {name: value for name, value in (state | change).items() if value is not None}
    with pytest.raises(BadInput, match=words):
        from_published(changed, source="the file")
