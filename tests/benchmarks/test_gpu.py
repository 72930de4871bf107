"""The command for a GPU: every part runs on a machine without diffusers, and its time is bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu import PARTS
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("diffusers", "safetensors", "accelerate", "transformers", "omegaconf"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import importlib.util
found, gone = importlib.util.find_spec, ("diffusers", "safetensors")
importlib.util.find_spec = lambda name, package=None: None if name in gone else found(name)
sys.argv = ["gpu", "--only", sys.argv[1], "--quick", "--results", sys.argv[2]]
from benchmarks.gpu import main
sys.exit(main())
"""


def test_the_parts_take_less_than_eight_minutes() -> None:
    assert sum(PARTS.values()) < 8 * 60


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
    assert "done without: diffusers, safetensors" in run.stdout
    kept = json.loads(results.read_text())
    assert kept["benchmark"] == "sample"
    assert kept["figures"]["step, same latents"]["median"] > 0
    assert {"torch"} <= set(kept["versions"])
