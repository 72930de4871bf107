"""medsora.training.stage1.loop, medsora.training.stage2.loop, medsora.training.stage2.loss: what may not
change an optimiser step: accumulation and checkpointing; and what bf16 does change.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medsora.config.schema import Config
from medsora.denoiser.block import Block
from medsora.training.stage1.stage import VaeStage
from medsora.training.step_guard import StepGuard
from medsora.vae.compensation import SpatialCompensation
from tests.support import tiny_training as tiny

STAGES = ("vae", "dit")
PART = {"vae": SpatialCompensation, "dit": Block}  # what gradient checkpointing runs a second time


class Enough(Exception):
    """The gradients are there; nothing else of the run is wanted."""


def gradients(
    stage: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, torch.Tensor], int]:
    """Return the first step's gradients, and how often a part of the model ran forward for them."""
    calls = []
    forward = PART[stage].forward

    def forward_and_count(*arguments, **options):
        calls.append(1)
        return forward(*arguments, **options)

    def enough(*arguments, **options) -> None:
        raise Enough

    with tiny.nothing_silent(), monkeypatch.context() as patch:
        patch.setattr(PART[stage], "forward", forward_and_count)
        patch.setattr(StepGuard, "check", enough)
        patch.setattr(VaeStage, "tasks", [])
        with tiny.first_gradients(stage) as kept, pytest.raises(Enough):
            tiny.train(stage, config)
    return kept, len(calls)


def assert_equal_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert sum(bool(gradient.any()) for gradient in one.values()) > 0.9 * len(one)
    worst = max(one, key=lambda name: float((one[name] - other[name]).abs().max()))
    torch.testing.assert_close(one[worst], other[worst], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation(
    stage: str, clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches of one clip are one batch of two; dropout, whose draws differ, is off."""
    found = []
    for accumulation in (1, 2):
        config = tiny.tiny_config(
            tmp_path / str(accumulation),
            clips,
            vae__path=str(vae_folder),
            denoiser__overrides={**tiny.DENOISER, "dropout": 0.0},
            train_vae__accumulation=accumulation,
            train_dit__accumulation=accumulation,
        )
        found.append(gradients(stage, config, monkeypatch)[0])
    assert_equal_gradients(*found)


@pytest.mark.parametrize("stage", STAGES)
def test_gradient_checkpointing(
    stage: str, clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recomputed activations, dropout included, give the same gradients."""
    found = []
    for checkpointing in (False, True):
        config = tiny.tiny_config(
            tmp_path / str(checkpointing),
            clips,
            vae__path=str(vae_folder),
            denoiser__gradient_checkpointing=checkpointing,
            train_vae__gradient_checkpointing=checkpointing,
        )
        found.append(gradients(stage, config, monkeypatch))
    (plain, forwards), (recomputed, forwards_twice) = found
    assert forwards_twice > forwards  # or nothing was recomputed and the test says nothing
    assert_equal_gradients(plain, recomputed)


@pytest.mark.parametrize("stage", STAGES)
def test_bf16(
    stage: str, clips: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers compute in bf16; weights, optimiser and losses stay float32; the step is nearly the same."""
    changes = {"vae__path": str(vae_folder), "denoiser__overrides": {**tiny.DENOISER, "dropout": 0.0}}
    exact, _ = gradients(stage, tiny.tiny_config(tmp_path / "fp32", clips, **changes), monkeypatch)
    kinds = set()
    convolve = torch.nn.functional.conv2d if stage == "dit" else torch.nn.functional.conv3d
    name = convolve.__name__

    def convolve_and_note(*arguments, **options):
        result = convolve(*arguments, **options)
        if torch.is_grad_enabled():
            kinds.add(result.dtype)
        return result

    every = {"max_steps": 1, "precision": "bf16"}
    changes |= {f"train_{stage}__{key}": value for key, value in every.items()}
    tiny.forget_precision()
    try:
        with monkeypatch.context() as patch, tiny.nothing_silent(), tiny.first_gradients(stage) as rough:
            patch.setattr(torch.nn.functional, name, convolve_and_note)
            run = tiny.train(stage, tiny.tiny_config(tmp_path / "bf16", clips, **changes))
    finally:
        tiny.forget_precision()
    assert kinds == {torch.bfloat16}
    assert {t.dtype for t in tiny.saved_tensors(run, 1).values()} <= {torch.float32, torch.int64}
    together = [torch.cat([kept[name].flatten() for name in exact]) for kept in (exact, rough)]
    assert torch.nn.functional.cosine_similarity(*together, dim=0) > 0.99
    (line,) = [line for line in tiny.log_lines(run) if "loss/total" in line]
    assert 0 < line["loss/total"] < 10
