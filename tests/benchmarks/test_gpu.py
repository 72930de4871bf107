"""benchmarks.gpu, benchmarks.sample, benchmarks.support.bare_machine: the command for a GPU: every part runs
on a machine without diffusers, and its time is bounded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import sample
from benchmarks.gpu import COMPILING_S, TIMED_PARTS, check, run_together, step_error
from benchmarks.support.wirings import build
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

WITHOUT = """
import sys
GONE = ("diffusers", "safetensors", "hyper_connections")
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in GONE + ("accelerate", "transformers", "omegaconf"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in GONE else found(name)
sys.argv = ["gpu", "--only", sys.argv[1], "--quick", "--results", sys.argv[2]]
from benchmarks.gpu import main
sys.exit(main())
"""


def test_the_parts_take_less_than_eight_minutes() -> None:
    assert COMPILING_S + sum(TIMED_PARTS.values()) < 8 * 60


def test_bf16_is_timed_beside_float32(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    wirings = build("tiny", torch.device("cpu"), torch.float32)
    monkeypatch.setattr(sample, "bf16_problem", lambda device: "it has none")
    found = sample.bf16_against_float32(wirings, 1, 1)
    assert found[sample.BF16].low > 0
    assert 0 < found[sample.BF16_ERROR] < 0.05
    assert wirings.isolated.dtype == torch.float32
    assert capsys.readouterr().out == "--dtype auto samples in float32: it has none\n"


def test_what_fails_or_hangs_is_reported_and_ended_with_its_children(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    hangs = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', "
        f"'import time; time.sleep(3600); open({str(alive)!r}, chr(119))'])"
    )
    ends = {"good": "pass", "bad": "raise SystemExit(3)"}
    outcomes = run_together({name: [sys.executable, "-c", code] for name, code in ends.items()}, PATIENCE_S)
    assert outcomes == {"good": True, "bad": False}
    assert run_together({"hangs": [sys.executable, "-c", hangs]}, 1) == {"hangs": False}
    assert not alive.exists()


def test_numbers_are_checked_and_a_wrong_one_is_seen(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert check(torch.device("cpu"), results, (1, 5)) == 0
    values = json.loads(results.read_text())["figures"]
    assert values["checked"] == values["of"] == 4
    assert 0 < max(values["largest relative error"].values()) < 2e-2
    assert values["step"] is None, "there are no kernels of our own here"
    assert step_error("cpu") < 1e-3


def test_a_step_is_measured_without_diffusers(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, "sample", results],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "done without: diffusers, safetensors, hyper_connections" in run.stdout
    kept = json.loads(results.read_text())
    assert kept["benchmark"] == "sample"
    assert kept["figures"]["step, same latents"]["median"] > 0
    assert {"torch"} <= set(kept["versions"])
