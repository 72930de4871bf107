"""benchmarks.train, benchmarks.support.stage2_step: a training step against the public wiring, and stage 2's
step as the loop takes it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import train
from benchmarks.support import measure, stage2_step
from benchmarks.support.stage2_step import Stage2Step
from benchmarks.support.wirings import CLIP, IMAGES, build, latents, products_by
from medsora import MedSora
from tests.support import tiny_training as tiny

CPU = torch.device("cpu")


def test_the_loss_reaches_every_weight_and_no_gradient_stays() -> None:
    model = MedSora.from_preset("tiny").train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    z, t = latents(1, CLIP + IMAGES, CPU, torch.float32)
    loss = train.loss_of(model, z, t, torch.float32)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    for onednn in (False, True):
        products_by(onednn)(train.forward_backward)(model, z, t, torch.float32)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_both_wirings_are_timed() -> None:
    values = train.measure(build("tiny", CPU, torch.float32), 1, CPU, torch.float32, 1)
    assert set(values["ms"]) == {"reference", "ours", *train.PRODUCTS.values()}
    kept = values["kept for the backward, MiB"]
    assert 0 < kept["ours"] < kept["reference"]
    assert set(values["changes"]) == {"wiring and gradients", "products by oneDNN"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_caches_are_timed_with_as_many_steps_as_are_taken(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Counted:
        batch = 2

        def __init__(self, config: object, steps: int) -> None:
            self.left = steps
            made.append(self)

        def __call__(self) -> None:
            self.left -= 1

    monkeypatch.setattr(stage2_step, "Stage2Step", Counted)
    monkeypatch.setattr(measure, "seconds", lambda work, device: (work(), 1.0)[1])
    values = train._measure_caches(train.PHANTOM, 2, torch.device(device))
    assert values["ms"] == {"caches off": 1000.0, "caches on": 1000.0}
    assert [step.left for step in made] == [0, 0]


def test_a_step_of_stage_2_moves_the_weights_until_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    step = Stage2Step(tiny.tiny_config(tmp_path, tiny.write_clips(tmp_path / "clips")), steps=1)
    before = {name: value.clone() for name, value in step.stage.model.state_dict().items()}
    step()
    after = step.stage.model.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert not any(parameter.grad is not None for parameter in step.stage.model.parameters())
    with pytest.raises(RuntimeError, match="no step is left"):
        step()
