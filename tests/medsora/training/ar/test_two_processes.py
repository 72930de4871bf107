"""medsora.training.ar.loop: two CPU processes train EndoGen together with the gradients of one process, and
the command trains it under `accelerate launch`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from medsora.config.load import load_config, save_config
from medsora.config.schema import Config
from medsora.saved.find import find_model
from medsora.training.ar import loop
from medsora.training.ar.stage import ArStage
from tests.support.endogen import tiny_tokenizer as tokens
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.tiny_training import log_lines

ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def keep_gradients(config_path: Path, out: Path) -> None:
    """Train one step, `out` with the rank in its name gets the gradients.

    The last layer, which begins at zero and would let no gradient through, is drawn.
    """
    kept: dict[str, torch.Tensor] = {}
    build, clipped_norm = loop.build_ar_stage, loop.clipped_norm

    def awake(config: Config) -> ArStage:
        stage = build(config)
        torch.manual_seed(0)
        nn.init.normal_(stage.model.output.weight, std=0.02)
        return stage

    def keep(accelerator: Accelerator, model: nn.Module, largest: float | None) -> torch.Tensor:
        kept.update((name, p.grad.clone()) for name, p in model.named_parameters())
        kept["rank"] = torch.tensor(accelerator.process_index)
        return clipped_norm(accelerator, model, largest)

    with (
        mock.patch.object(loop, "build_ar_stage", awake),
        mock.patch.object(loop, "clipped_norm", keep),
    ):
        tokens.train(load_config(config_path, outputs_anywhere=True))
    rank = int(kept.pop("rank"))
    save_file(kept, f"{out}-{rank}.safetensors")


def test_gradients_are_those_of_one_process(clips: Path, tmp_path: Path) -> None:
    """Equal to 1e-6 without dropout and masking, whose draws are a process's own."""
    off = {"endogen__dropout": 0.0, "endogen__mask": 0.0, "train_ar__max_steps": 1}
    tokenizer = tokens.write_tokenizer(tmp_path / "tokenizer")
    for name in ("one", "two"):
        config = tokens.configure(tmp_path / name, clips, tokenizer, **off)
        save_config(config, tmp_path / f"{name}.yaml")
    keep_gradients(tmp_path / "one.yaml", tmp_path / "alone")
    launched(tmp_path, *LAUNCHER, "-m", __name__, str(tmp_path / "two.yaml"), str(tmp_path / "together"))
    alone = load_file(tmp_path / "alone-0.safetensors")
    first, second = (load_file(tmp_path / f"together-{rank}.safetensors") for rank in (0, 1))
    assert alone.keys() == first.keys() == second.keys()
    assert all(gradient.any() for gradient in alone.values())
    for name, gradient in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], gradient, rtol=0, atol=1e-6)


def test_the_command_trains_under_accelerate_launch(clips: Path, tmp_path: Path) -> None:
    tokenizer = tokens.write_tokenizer(tmp_path / "tokenizer")
    config = tokens.configure(Path(), clips, tokenizer)
    save_config(config, tmp_path / "config.yaml")
    command = ("-m", "medsora", "train-ar", "--config", "config.yaml", "train_ar.max_steps=2")
    output = launched(tmp_path, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *command)
    assert "EndoGen is trained" in output
    run = tmp_path / config.ar_dir
    assert find_model(run).step == 2
    assert [line["step"] for line in log_lines(run) if "loss/total" in line] == [1, 2]


def launched(folder: Path, *words: str) -> str:
    """Run Python with `words` in `folder` to its end; return what it printed."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


if __name__ == "__main__":
    keep_gradients(Path(sys.argv[1]), Path(sys.argv[2]))
