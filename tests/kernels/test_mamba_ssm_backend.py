"""Our layout and our sums are mamba-ssm's: its own Triton kernels, run on a CPU, equal the recurrence."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from benchmarks.support.scan_inputs import random_inputs
from medsora.kernels import mamba2_scan, mamba_ssm_backend
from tests.support.patience import PATIENCE_S
from tests.support.triton.run_mamba_ssm import CASES


@pytest.mark.skipif(
    importlib.util.find_spec("mamba_ssm") is None,
    reason="mamba-ssm is not installed; 'make test' installs it as pure Python",
)
def test_its_kernels_equal_the_recurrence_with_every_gradient() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.triton.run_mamba_ssm"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert [(line["length"], line["orders"]) for line in lines] == CASES
    for line in lines:
        assert max(line["errors"].values()) < 2e-5, line


def test_it_reports_which_of_its_functions_runs() -> None:
    compiled = importlib.util.find_spec("causal_conv1d_cuda") is not None
    expected = "mamba_split_conv1d_scan_combined" if compiled else "mamba_chunk_scan_combined"
    assert mamba_ssm_backend.function_in_use() == expected


def test_sequences_are_fetched_and_put_back_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_recurrence(zxbcdt: torch.Tensor, *others: torch.Tensor | float) -> torch.Tensor:
        *weights, headdim, eps = others
        return mamba2_scan(zxbcdt, *weights, headdim=headdim, eps=eps, backend="reference")

    inputs = random_inputs(12, orders=4)
    inputs["orders"] = inputs["orders"].view(2, 2, 3, 4)
    expected = mamba2_scan(**inputs, backend="reference")
    monkeypatch.setattr(mamba_ssm_backend, "scan_sequences", by_recurrence)
    torch.testing.assert_close(mamba_ssm_backend.scan(**inputs, eps=1e-5), expected)
