"""The fused steps of a block equal PyTorch's operators, are taken only where they may be, and are few."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from kernels import block_steps, fused_plan, triton_backend
from tests.patience import PATIENCE_S

LAUNCHES = 17  # of a block: 7 products, 2 scans of 2, attention, 3 norms, gates, the last sum


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_equal_the_operators_and_a_step_launches_few() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.run_triton_block"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    *lines, last = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(lines) > 20
    for line in lines:
        assert line["worst"] <= line["tolerance"], line
    assert last["whole"]["error"] < 1e-5
    assert last["whole"]["launches of a block"] <= LAUNCHES
    assert last["whole"]["launches of the rest"] <= 10


def test_kernels_are_for_sampling_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_plan, "declines_tensors", lambda device, dtype: None)
    monkeypatch.setattr(triton_backend, "unusable", lambda: None)
    monkeypatch.setattr(triton_backend, "register", lambda: None)
    tokens = torch.zeros(1)
    assert not block_steps.fused("auto", tokens), "gradients may be wanted"
    with torch.no_grad():
        assert block_steps.fused("auto", tokens)
        assert block_steps.fused("triton", tokens, tokens)
        assert not block_steps.fused("auto", tokens, tokens.double()), "operators promote"
        assert not block_steps.fused("torch", tokens), "who chose another backend has none of these either"
        with torch.autocast("cpu", torch.bfloat16):
            assert not block_steps.fused("auto", tokens), "operators choose their precision"
        monkeypatch.setattr(triton_backend, "unusable", lambda: "no compiler")
        assert not block_steps.fused("auto", tokens)


@pytest.mark.parametrize(
    ("length", "window", "features", "dtype", "fits"),
    [
        (64, 8, 64, torch.float32, True),
        (4096, 8, 64, torch.float32, True),
        (4096, 8, 128, torch.bfloat16, True),
        (64, 1000, 64, torch.bfloat16, True),  # one tile holds the frame, whatever the window
        (4096, 48, 64, torch.bfloat16, True),
        (4096, 48, 64, torch.float32, False),
        (4096, 100, 16, torch.bfloat16, False),
        (64, 8, 128, torch.float32, False),
    ],
)
def test_wide_windows_are_left_to_the_operators(
    length: int, window: int, features: int, dtype: torch.dtype, fits: bool
) -> None:
    queries, keys = fused_plan.attention_tile(length, window)
    assert keys >= min(length, queries + 2 * window)
    assert fused_plan.attends(length, window, features, dtype, torch.device("cpu")) == fits
