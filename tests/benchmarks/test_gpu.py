"""benchmarks.gpu, benchmarks.sample, benchmarks.support.bare_machine, benchmarks.support.gpu_checks: the
command for a GPU: every part runs on a machine without diffusers, and its time is bounded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import sample
from benchmarks.gpu import CALLS, check, run_together, step_error
from benchmarks.support import gpu_checks
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


def test_the_limits_of_both_calls_are_those_that_the_documentation_states() -> None:
    page = (ROOT / "docs" / "gpu-run.md").read_text()
    assert "limited to 410 and 340 s" in page
    assert {call: sum(limits.values()) for call, limits in CALLS.items()} == {1: 410, 2: 340}


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


def test_what_a_part_printed_before_it_was_killed_is_not_lost(capfd: pytest.CaptureFixture) -> None:
    prints = "import time; print('a value'); time.sleep(3600)"
    assert run_together({"prints": [sys.executable, "-c", prints]}, 30) == {"prints": False}
    assert "a value" in capfd.readouterr().out


def test_a_kernel_that_is_wrong_or_differs_or_fails_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    good = {"errors": {"out": 0.01}, "limits": {"out": 0.02}, "same twice": True}
    found = dict.fromkeys(gpu_checks.OPERATIONS, good)
    found |= {"gates": good | {"errors": {"out": float("inf")}}, "norms": good | {"same twice": False}}
    found["attention"] = RuntimeError("no such kernel")
    del found["temporal scan"]  # not in time
    monkeypatch.setattr(
        gpu_checks, "in_processes", lambda *_: (((name, 1), value) for name, value in found.items())
    )
    results = tmp_path / "results.jsonl"
    assert gpu_checks.check_kernels(torch.device("cpu"), results, quick=True, seconds=1) == 1
    rows = [json.loads(line)["figures"] for line in results.read_text().splitlines()]
    assert {row["kernel"]: row["good"] for row in rows} == {
        "norms": False,
        "gates": False,
        "temporal branch": True,
        "spatial scan": True,
    }
    last = capsys.readouterr().out.splitlines()[-1]
    assert all(name in last for name in ("norms", "attention", "gates", "temporal scan"))
    assert "spatial" not in last


@pytest.mark.parametrize("name", ["norms", "gates"])
def test_a_kernel_is_compared_with_float64(name: str) -> None:
    found = gpu_checks.operation_errors(name, "tiny", 1, "cpu")
    torch.use_deterministic_algorithms(False)
    assert found["same twice"]
    assert all(0 < error <= found["limits"][key] for key, error in found["errors"].items())


def test_numbers_are_checked_and_a_wrong_one_is_seen(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert check(torch.device("cpu"), results, (1, 5), seconds=PATIENCE_S) == 0
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
