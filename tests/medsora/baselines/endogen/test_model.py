"""EndoGen's transformer, medsora.baselines.endogen.grid and medsora.baselines.endogen.generate: the published
sizes, a plain re-creation, a cache.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medsora.baselines.endogen import EndoGen
from medsora.baselines.endogen.checkpoint import PUBLISHED_NAMES
from medsora.baselines.endogen.generate import draw, filter_logits, generate
from medsora.baselines.endogen.grid import frames_to_grid, grid_shape, grid_to_frames
from medsora.baselines.endogen.model import rotate, rotations
from medsora.baselines.published import published_name
from medsora.errors import BadInput
from tests.support.endogen.naive import naive_endogen

SMALL = {
    "num_codes": 13,
    "rows": 4,
    "cols": 3,
    "width": 24,
    "depth": 2,
    "heads": 3,
    "hidden": 20,
    "classes": 2,
}


def small(**settings: Any) -> EndoGen:
    torch.manual_seed(0)
    model = EndoGen(**SMALL | settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    ("preset", "classes", "parameters"),
    [
        ("tiny", 8, 8_949_888),
        ("B", 8, 110_126_592),
        ("B", 3, 110_122_752),
        ("L", 8, 341_895_168),
        ("XL", 8, 773_429_760),
    ],
)
def test_counts_are_the_published_ones(preset: str, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = EndoGen.from_preset(preset, classes=classes)
    assert model.num_parameters() == parameters
    assert model.preset == preset


def test_equals_the_plain_re_creation() -> None:
    model = small().double()
    weights = {published_name(name, PUBLISHED_NAMES): value for name, value in model.state_dict().items()}
    codes = torch.randint(13, (2, 11))
    found = model(codes, torch.tensor([1, 2]))
    for row, label in enumerate((1, 2)):
        expected = naive_endogen(weights, codes[row].tolist(), label, heads=3, cols=3)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-10)
    assert torch.equal(model(codes)[1], found[1])  # the last row is that for no label


def test_cached_steps_equal_the_forward_without_a_cache() -> None:
    model = small().double()
    codes, labels = torch.randint(13, (3, 12)), torch.tensor([0, 1, 2])
    whole = model(codes[:, :-1], labels)
    cache = model.start(3)
    buffer = cache.buffer.data_ptr()
    steps = [model.step(cache, codes[:, k - 1] if k else None, labels) for k in range(12)]
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=0, atol=1e-10)
    assert cache.buffer.data_ptr() == buffer


def test_the_class_token_is_not_turned_but_zeroed() -> None:
    turns = rotations(4, 3, 8, torch.device("cpu"), torch.float64)
    assert turns.shape == (13, 4, 2)
    assert not turns[0].any()
    assert torch.allclose(turns[1:].square().sum(-1), torch.ones(12, 4, dtype=torch.float64))
    assert torch.equal(turns[1 + 3, 2:], turns[1, 2:])  # one row down: the column's half is the same


def test_bf16_queries_are_turned_in_float32() -> None:
    model, x = small().bfloat16(), torch.randn(1, 3, 13, 8).bfloat16()
    turns = model._turns(x)
    assert turns.dtype == torch.float32
    assert torch.equal(rotate(x, turns), rotate(x.float(), turns).bfloat16())


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = EndoGen.from_preset("tiny", num_codes=1024, classes=3)
    assert not model.output.weight.any()
    drawn = [p for name, p in model.named_parameters() if p.ndim == 2 and name != "output.weight"]
    assert torch.cat([p.flatten() for p in drawn]).std().item() == pytest.approx(0.02, rel=0.01)
    assert all((p == 1).all() for p in model.parameters() if p.ndim == 1)


@pytest.mark.parametrize(("frames", "rows", "cols"), [(16, 4, 4), (64, 8, 8), (6, 2, 3)])
def test_frames_lie_row_by_row_in_time(frames: int, rows: int, cols: int) -> None:
    numbered = torch.arange(frames).view(1, frames, 1, 1, 1).expand(2, frames, 3, 4, 5)
    picture = frames_to_grid(numbered, rows, cols)
    assert picture.shape == (2, 3, 4 * rows, 5 * cols)
    for number in range(frames):
        row, col = divmod(number, cols)
        cell = picture[..., 4 * row : 4 * row + 4, 5 * col : 5 * col + 5]
        assert (cell == number).all()
    assert torch.equal(grid_to_frames(picture, rows, cols), numbered)


def test_grids_are_square() -> None:
    assert (grid_shape(16), grid_shape(64)) == ((4, 4), (8, 8))
    with pytest.raises(BadInput, match="such as 16 or 25"):
        grid_shape(17)


def test_one_seed_is_one_clip_at_any_batch_size() -> None:
    model, options = small(), {"top_k": 9, "top_p": 0.95, "guidance": 1.5}
    together = generate(model, [0, 1, 2], seeded(5, 6, 7), **options)
    alone = [generate(model, [label], seeded(5 + label), **options)[0] for label in range(3)]
    assert torch.equal(together, torch.stack(alone))
    assert together.shape == (3, 12)
    assert not torch.equal(*generate(model, [0, 0], seeded(5, 6)))


def test_guidance_mixes_logits() -> None:
    """Greedy codes equal those of a loop over whole forwards with mixed logits."""
    model = small()
    found = generate(model, [1], seeded(0), guidance=2.5, temperature=0)
    codes = torch.empty(1, 0, dtype=torch.long)
    for _ in range(12):
        labelled, without = (model(codes, torch.tensor([label]))[:, -1] for label in (1, 2))
        codes = torch.cat((codes, (without + 2.5 * (labelled - without)).argmax(-1)[:, None]), dim=1)
    assert torch.equal(found, codes)
    assert torch.equal(
        generate(model, [2], seeded(0), temperature=0),
        generate(model, [1], seeded(0), guidance=0, temperature=0),
    )


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    generator = torch.Generator().manual_seed(0)
    drawn = draw(probabilities.log().expand(20_000, 3), [generator] * 20_000, 1.0, 0, 1.0)
    found = drawn.bincount(minlength=3) / 20_000
    assert (found - probabilities).abs().max() < 0.015


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [(0, 1.0, 4), (2, 1.0, 2), (9, 1.0, 4), (0, 0.6, 2), (0, 0.3, 1), (3, 0.85, 2)],
)
def test_filters_keep_the_likeliest(top_k: int, top_p: float, kept: int) -> None:
    logits: Tensor = torch.tensor([[0.1, 0.5, 0.05, 0.35]]).log()
    found = filter_logits(logits, top_k, top_p)
    assert found.isfinite().sum() == kept
    assert torch.equal(found.topk(kept).indices, logits.topk(kept).indices)


def test_bad_sizes_are_one_sentence() -> None:
    with pytest.raises(BadInput, match="divisible by 4 times the heads"):
        EndoGen(**SMALL | {"heads": 5})
    with pytest.raises(BadInput, match="n below 12"):
        small()(torch.zeros(1, 12, dtype=torch.long))
