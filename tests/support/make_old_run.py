"""Write the archive that `tests/repository/test_old_runs.py` reads.

`python -m tests.support.make_old_run OUT.tar.xz`

It was run at commit 228d447 and holds what that commit's commands left behind, at the smallest sizes that are
still real: both stages' runs, each as a kill after its middle checkpoint leaves it; both caches of stage 2;
kept features of an evaluation; an exported model and a saved pipeline; videos sampled from them; a config
with every key; and `expected.json`, what the same commands wrote or computed beyond that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsora import MedSoraPipeline
from medsora.config.load import load_config
from medsora.config.schema import Config

CONFIG = """
run: {name: old, seed: 7}
data:
  frames: 9
  size: 32
  interval: 1
  holdout: 0.25
  labels: labels.csv
  balance: true
  crop: none
  workers: 0
phantom: {videos: 4, frames: 10, seed: 3}
vae: {base: base.json}
images: {count: 8, encoding: packed}
denoiser:
  preset: tiny
  prediction: velocity
  overrides: {width: 8, depth: 2, heads: 2, d_state: 4, headdim: 8}
flow: {estimator: exact}
dino: {model: test_vit, weights: dino.safetensors}
alignment: {weight: 1, margin: 0}
train_vae:
  train: all
  lr: 1e-2
  lpips: 0
  kl: 1e-4
  batch: 2
  epochs: 99
  max_steps: 24
  eval_every: 22
  eval_clips: 1
  save_every: 22
  keep: 9
  log_every: 1
train_dit:
  phases: [{lr: 1e-2, batch: 2, until_epoch: 10}, {lr: 5e-3, batch: 1}]
  max_steps: 24
  warmup_steps: 2
  clip_from_epoch: 0
  ema_decay: 0.8
  first_frame_prob: 0.3
  error_of: velocity
  sample_every: 100
  sample_videos: 1
  sample_steps: 2
  eval_every: 19
  eval_clips: 1
  save_every: 19
  keep: 9
  log_every: 2
cache: {latents: disk, prior: disk, image_groups: 2}
tracking: {trackers: []}
"""
BASE = {"block_out_channels": [2] * 4, "layers_per_block": 1, "norm_num_groups": 1, "latent_channels": 2}
KILLED_AFTER = {"vae": 22, "dit-tiny": 19}
VIDEOS = ("--num-videos", "2", "--steps", "2", "--seed", "5", "--label", "polyp", "--format", "frames")
# Every key, none at its default, written as people write them: words that YAML reads as booleans, whole
# numbers for fractions, exponents without a point, numbers in quotes.
EVERY_KEY = """
run: {name: 2024, dir: others/runs, seed: 11}
phantom: {videos: "12", frames: 18, seed: 1, polyp_size: 2, folder: others/clips}
data:
  root: some/clips
  frames: 17
  size: [48, 64]
  interval: 2
  clip_stride: 5
  crop: [0, 0.25, 0.1, 0]
  flip: no
  holdout: 0
  split_csv: split.csv
  labels: folders
  balance: on
  workers: 0
vae: {base: base.json, weights: base.safetensors, compensation: false, path: some/vae}
images: {count: 3, encoding: single}
denoiser:
  preset: XL
  mixing: mixed
  prediction: velocity
  backend: torch
  gradient_checkpointing: yes
  weights: some/run
  overrides: {patch: 1, dropout: 0.5, window: 4}
flow: {estimator: dis, weights: flow.pth}
dino: {model: vit_tiny_patch16_224, weights: random}
alignment: {weight: 1e-3, margin: 0, correlation: sample, averaging: uniform}
train_vae:
  train: all
  lr: 1e-3
  betas: [0, 0.99]
  lr_decay: cosine
  warmup_steps: 20
  batch: 4
  accumulation: 2
  epochs: 3
  max_steps: 2160
  clip_norm: 1
  l1: 2
  lpips: 0
  lpips_net: alex
  lpips_trunk: trunk.pth
  ffl: 1
  kl: 3.0e-3
  coarse: 0.5
  latent_std: 2
  precision: bf16
  gradient_checkpointing: true
  eval_every: 300
  eval_clips: 2
  save_every: 200
  keep: 1
  keep_every: 1000
  log_every: 1
train_dit:
  phases:
    - {lr: 4e-3, batch: 8, until_epoch: 5}
    - {lr: 1e-5, batch: 1, until_epoch: null}
  betas: [0.5, 0.98]
  weight_decay: 0
  lr_decay: cosine
  warmup_steps: 50
  accumulation: 4
  epochs: 5
  max_steps: 3600
  clip_norm: 2
  clip_from_epoch: 0
  ema_decay: 0.998
  precision: bf16
  label_dropout: 0
  first_frame_prob: 1
  given_frames: [1, 9]
  error_of: velocity
  matmul: medium
  sample_every: 10
  sample_videos: 6
  sample_steps: 50
  eval_every: 40
  eval_clips: 2
  save_every: 30
  keep: 2
  keep_every: 90
  log_every: 5
cache: {latents: disk, prior: disk, image_groups: 4, dir: others/cache}
tracking: {trackers: [wandb], project: others}
"""
CHANGED = [
    "data.size=64",
    "train_vae.precision=no",
    "train_dit.phases=[{lr: 1e-4, batch: 3}]",
    "train_dit.first_frame_prob=0",
    "alignment.correlation=batch",
]
# What is drawn for people to see, and what is found by a path of this machine.
LEFT_OUT = (
    "report.html",
    "curves/*",
    "distances.png",
    "*sheet.png",
    "samples.png",
    "lock.txt",
    "check-*.json",
)


def main() -> None:
    """Make everything in a temporary folder and pack it."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.make_old_run", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.tar.xz")
    out = parser.parse_args().out.resolve()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work, chdir(work):
        expected = make_everything()
        Path("expected.json").write_text(json.dumps(expected, indent=1), encoding="utf-8")
        for pattern in LEFT_OUT:
            for path in Path().rglob(pattern):
                path.unlink()
        for path in Path().rglob("*"):
            assert not path.is_file() or work.encode() not in path.read_bytes(), f"{path} names {work}"
        pack(out)
    print(f"{out}: {out.stat().st_size} bytes")


def pack(out: Path) -> None:
    """Pack the present folder; four bytes at a time, as weights are made of, compress best."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "pb": 2}]
    with lzma.open(out, "wb", filters=filters) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(Path().rglob("*")):
            if path.is_file():
                archive.addfile(entry(path), BytesIO(path.read_bytes()))


def entry(path: Path) -> tarfile.TarInfo:
    """Describe a file without its owner and time."""
    described = tarfile.TarInfo(path.as_posix())
    described.size = path.stat().st_size
    return described


def make_everything() -> dict[str, Any]:
    """Run the commands from the present, empty folder; return what a test can compare with."""
    Path("old.yaml").write_text(CONFIG, encoding="utf-8")
    Path("base.json").write_text(json.dumps(BASE), encoding="utf-8")
    save_file(dino_weights("test_vit"), "dino.safetensors")
    call("train_vae", "--config", "old.yaml")
    call("medsora.training.fill_caches", "--config", "old.yaml")
    call("train_dit", "--config", "old.yaml")
    expected = {stage: kill_after(Path("runs/old", stage), step) for stage, step in KILLED_AFTER.items()}
    call("medsora.__main__", "export", "runs/old", "exported")
    MedSoraPipeline.from_run("runs/old/dit-tiny", raw=True).save_pretrained("pipeline")
    call("sample_ddim", "--model", "runs/old/dit-tiny", "--out", "videos/ema", *VIDEOS)
    call("sample_ddim", "--model", "runs/old/dit-tiny", "--out", "videos/raw", "--raw", *VIDEOS)
    call("evaluate", *evaluation())
    Path("every_key.yaml").write_text(EVERY_KEY, encoding="utf-8")
    every, changed = (
        dict(flat(dataclasses.asdict(load_config("every_key.yaml", changes)))) for changes in ([], CHANGED)
    )
    for key, default in flat(dataclasses.asdict(Config())):
        assert (every[key], changed[key]) != (default, default), f"{key} is at its default"
    return expected | {"every_key": every, "changes": CHANGED, "every_key_changed": changed}


def call(module: str, *arguments: str) -> None:
    """Do here what `python -m MODULE ARGUMENTS` does; paths of this machine stay out of what it writes."""
    program: Callable[[], None] = import_module(module).main
    with mock.patch.object(sys, "argv", [f"{module}.py", *arguments]):
        program()


def evaluation() -> tuple[str, ...]:
    """Return the arguments of `evaluate.py`, whose features of the real clips are kept."""
    (clips,) = Path("runs").glob("phantom-clips-*")
    sizes = ("--frames", "9", "--size", "32", "--clips", "4")
    return ("--real", str(clips), "--fake", "videos/ema", "--metrics", "pixel", *sizes)


def dino_weights(name: str) -> dict[str, Tensor]:
    """Return weights of a timm model that differ from zero in few places: they need little room."""
    torch.manual_seed(0)
    state = timm.create_model(name, num_classes=0).state_dict()
    for tensor in state.values():
        if tensor.dim() > 1:
            scale = 6 / tensor[0].numel() ** 0.5
            tensor.copy_((torch.rand_like(tensor) < 0.03) * torch.randn_like(tensor).sign() * scale)
    return state


def kill_after(run: Path, step: int) -> dict[str, Any]:
    """Take from `run` what came after `step`; return what it logged then and its last optimiser's norms."""
    last = sorted((run / "checkpoints").iterdir())[-1]
    norms = optimizer_norms(last)
    shutil.rmtree(last)
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == [f"step-{step:07d}"]
    shutil.rmtree(run / "samples")
    log = run / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step), "utf-8")
    return {"log": [line for line in lines if line["step"] > step], "optimizer": norms}


def optimizer_norms(checkpoint: Path) -> dict[str, float]:
    """Return the norm of each part of a checkpoint's optimiser state over all parameters."""
    tensors = load_file(checkpoint / "optimizer.safetensors")
    parts = {name.rpartition("/")[2] for name in tensors}
    return {
        part: sum(float(t.double().square().sum()) for name, t in tensors.items() if name.endswith(part))
        ** 0.5
        for part in sorted(parts)
    }


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config's keys with dots, `train_dit.phases` and such whole."""
    for key, value in values.items():
        if isinstance(value, dict) and f"{prefix}{key}" != "denoiser.overrides":
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


if __name__ == "__main__":
    main()
