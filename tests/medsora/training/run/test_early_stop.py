"""Early stopping: when the held-out loss ends a run, what is left of it, and its resumption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from medsora.config.schema import Config, DenoiserTrainingConfig
from medsora.errors import Interrupted
from medsora.runtime.interruption import StopRequest
from medsora.training.run.early_stop import EarlyStop
from medsora.training.stage1.stage import VaeStage
from medsora.training.stage2.stage import Stage2
from tests.support import tiny_training as tiny

LOSSES = {1: 0.5, 2: 0.4, 3: 0.45, 4: 0.44, 5: 0.3, 6: 0.31, 7: 0.32, 8: 0.33}
SAID = (
    "early stopping: held_out {} has not improved in 2 evaluations on 0.4 at step 2, whose checkpoint is kept"
)


def stopper(tmp_path: Path, losses: list[float], patience: int = 2, gain: float = 0.0) -> EarlyStop:
    lines = [{"step": 0, "held_out/mse": 0.0}]
    lines += [line for step, loss in enumerate(losses, 1) for line in ({"step": step}, held_out(step, loss))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = DenoiserTrainingConfig(early_stop=patience, early_stop_gain=gain)
    return EarlyStop.of(
        SimpleNamespace(path=tmp_path, checkpoints=tmp_path, stage="train_dit"), settings, "held_out/mse"
    )


def held_out(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "held_out/mse": loss}


@pytest.mark.parametrize(
    ("losses", "gain", "best"),
    [
        ([], 0.0, None),
        ([3.0, 2.0, 2.0], 0.0, (2, 2.0, 1)),
        ([3.0, 2.0, 2.5, 1.9], 0.0, (4, 1.9, 0)),
        ([3.0, 2.0, 2.5, 1.9], 0.1, (2, 2.0, 2)),
        ([3.0, float("nan"), float("nan")], 0.0, (1, 3.0, 2)),
        ([float("nan"), 3.0, 2.0], 0.0, (3, 2.0, 0)),
    ],
)
def test_the_best_evaluation_and_how_many_followed(
    losses: list[float], gain: float, best: tuple | None, tmp_path: Path
) -> None:
    found = stopper(tmp_path, losses, gain=gain)
    assert found.best() == best
    assert (found.why() is not None) == (best is not None and best[2] >= 2)


def test_a_loss_that_is_never_finite_ends_the_run(tmp_path: Path) -> None:
    found = stopper(tmp_path, [float("nan")] * 3)
    assert found.best()[::2] == (1, 2)
    assert found.why() is not None


def test_it_is_off_by_default() -> None:
    assert (
        EarlyStop.of(SimpleNamespace(path=Path(), stage="train_dit"), DenoiserTrainingConfig(), "loss")
        is None
    )


@pytest.fixture(params=["vae", "dit"])
def configure(
    request: pytest.FixtureRequest, clips: Path, vae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Config]:
    """A run of a stage whose held-out losses are LOSSES; `configure.stage` names it."""
    stage = request.param

    def evaluate(self: VaeStage | Stage2, step: int) -> None:
        name = "held_out/loss" if stage == "vae" else "held_out/mse"
        self.run.log(step, {name: LOSSES.get(step, 0.0)})

    monkeypatch.setattr(VaeStage if stage == "vae" else Stage2, "evaluate", evaluate)

    def make(work: Path, patience: int | None = 2) -> Config:
        keys = {"early_stop": patience, "max_steps": 8, "eval_every": 1, "save_every": 100, "keep": 1}
        changes = {f"train_{stage}__{key}": value for key, value in keys.items()}
        return tiny.tiny_config(work, clips, vae__path=str(vae_folder), alignment__weight=0, **changes)

    make.stage = stage
    return make


def test_a_run_stops_and_keeps_its_best_checkpoint(configure: Callable[..., Config], tmp_path: Path) -> None:
    stage = configure.stage
    run = tiny.train(stage, configure(tmp_path), pages=True)
    steps = sorted(folder.name for folder in (run / "checkpoints").iterdir())
    assert steps == ["step-0000002", "step-0000004"]
    output = SAID.format("loss" if stage == "vae" else "mse")
    assert (run / "messages.txt").read_text().count(output) == 1
    assert output in (run / "report.html").read_text()
    assert tiny.log_lines(run)[-1]["step"] == 4
    if stage == "dit":
        assert (run / "samples" / "step-0000004.png").is_file()  # what is due at the end of a run
    else:
        final, best = (
            load_file(folder / "diffusion_pytorch_model.safetensors")
            for folder in (run / "final", run / "checkpoints" / "step-0000002" / "vae")
        )
        assert all(torch.equal(final[name], best[name]) for name in best)

    before = tiny.log_lines(run)
    tiny.train(stage, configure(tmp_path))
    assert tiny.log_lines(run) == before
    tiny.train(stage, configure(tmp_path, 5))  # it continues where it stopped
    assert tiny.log_lines(run)[-1]["step"] == 8


def test_a_best_checkpoint_that_is_gone_or_damaged_is_not_taken(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    """It is removed, for one, where early stopping is off for a while."""
    if configure.stage == "dit":
        pytest.skip("stage 2 exports nothing at its end")
    run = tiny.train("vae", configure(tmp_path))
    best, last = (run / "checkpoints" / f"step-{step:07d}" for step in (2, 4))
    weights = Path("vae", "diffusion_pytorch_model.safetensors")
    damage = (lambda: (best / weights).write_bytes(b"no weights"), lambda: shutil.rmtree(best))
    for times, break_it in enumerate(damage, 1):
        break_it()
        tiny.train("vae", configure(tmp_path))
        assert (run / "final" / weights.name).read_bytes() == (last / weights).read_bytes()
        assert (run / "messages.txt").read_text().count("that of the last step is taken") == times


def test_stopping_early_is_the_same_in_a_run_that_was_interrupted(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tiny.train(configure.stage, configure(tmp_path / "once"))
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "wanted", lambda self: True)
        for _ in range(3):  # each stops before its first step, or after one
            with pytest.raises(Interrupted):
                tiny.train(configure.stage, configure(tmp_path))
    run = tiny.train(configure.stage, configure(tmp_path))
    tiny.assert_same_run(run, once, 4)


def test_the_held_out_loss_of_stage_1_is_that_of_training(clips: Path, tmp_path: Path) -> None:
    """Eq. 16 of the means' reconstructions, on the same clips each time: the untrained VAE's is repeated."""
    options = {"early_stop": 1, "max_steps": 1, "lr": 1e-12, "coarse": 0.5, "kl": 0.1}
    config = tiny.tiny_config(
        tmp_path, clips, **{f"train_vae__{key}": value for key, value in options.items()}
    )
    run = tiny.train("vae", config)
    losses = [line["held_out/loss"] for line in tiny.log_lines(run) if "held_out/loss" in line]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    (trained,) = [line["loss/total"] for line in tiny.log_lines(run) if "loss/total" in line]
    assert losses[0] == pytest.approx(trained, rel=0.3)
