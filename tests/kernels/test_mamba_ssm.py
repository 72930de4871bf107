"""Our layout and our sums are mamba-ssm's: its own Triton kernels, run on a CPU, equal the recurrence."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from kernels import mamba_ssm_backend
from tests.kernels.run_mamba_ssm import CASES
from tests.patience import PATIENCE_S


@pytest.mark.skipif(
    importlib.util.find_spec("mamba_ssm") is None,
    reason="mamba-ssm is not installed; 'make test' installs it as pure Python",
)
def test_its_kernels_equal_the_recurrence_with_every_gradient() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.run_mamba_ssm"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert [(line["length"], line["orders"]) for line in lines] == CASES
    for line in lines:
        assert max(line["errors"].values()) < 2e-5, line


def test_it_says_which_of_its_functions_runs() -> None:
    compiled = importlib.util.find_spec("causal_conv1d_cuda") is not None
    expected = "mamba_split_conv1d_scan_combined" if compiled else "mamba_chunk_scan_combined"
    assert mamba_ssm_backend.function_in_use() == expected
