"""medsora.kernels.fused.scan, medsora.kernels.fused.forward, medsora.kernels.fused.backward,
medsora.kernels.fused.ops: the fused kernels equal the recurrence with every gradient, and compile for the
GPU they are meant for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.patience import PATIENCE_S
from tests.support.triton.run_triton import CASES

HOPPER_SHARED_BYTES = 227 * 1024

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def test_kernels_equal_the_recurrence_with_every_gradient() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.triton.run_triton"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    *lines, last = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert [line["case"] for line in lines] == [str(case) for case in CASES]
    for line in lines:
        assert line["worst"] <= line["tolerance"], line
    assert last["registration"] == "kept"


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU at hand the kernels are run, not only compiled"
)
@pytest.mark.parametrize(
    ("sizes", "kernels"),
    [
        ([], 14),
        (["--headdim", "64", "--d-state", "128", "--heads", "16", "--tile", "64"], 14),  # presets S, B and L
        (["--headdim", "64", "--d-state", "128", "--heads", "16", "--dtype", "fp32", "--chunked"], 3),
        (["--headdim", "64", "--d-state", "256", "--dtype", "fp32", "--chunked"], 3),  # half a head of 128
    ],
)
def test_kernels_compile_for_hopper(tmp_path: Path, sizes: list[str], kernels: int) -> None:
    """The interpreter takes Python that the compiler refuses, so what it ran is compiled as well."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.triton.compile_triton", *sizes],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    compiled = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(compiled) == kernels
    assert all(line["cubin_bytes"] > 1000 for line in compiled)
    assert all(line["shared_bytes"] <= line["shared_bound"] <= HOPPER_SHARED_BYTES for line in compiled)
