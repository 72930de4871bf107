"""medsora.kernels.block_steps, medsora.kernels.fused.block: the fused steps of a block equal PyTorch's
operators, are taken only where they may be, and are few.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from medsora.kernels import block_steps
from medsora.kernels.fused import backend as triton_backend
from medsora.kernels.fused import plan as fused_plan
from tests.support.patience import PATIENCE_S

LAUNCHES = 15  # per block: 5 products, gates, scans of 3 and 2, attention, 3 norms


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_equal_the_operators_and_a_step_launches_few() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.triton.run_triton_block"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    *lines, last = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(lines) > 20
    for line in lines:
        assert line["worst"] <= line["tolerance"], line
    exact, rounded = last["whole"].values()
    assert exact["error"] < 1e-5
    assert exact["launches of a block"] <= LAUNCHES + 2, "both gates' products are PyTorch's"
    assert rounded["error"] < 3e-2
    assert rounded["launches of a block"] <= LAUNCHES
    assert rounded["launches of the rest"] <= 10


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


def test_sums_are_left_to_the_next_norm_by_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, branch, gate = torch.randn(3, 2, 3, 4, 16)
    layer, added = torch.nn.LayerNorm(16), torch.addcmul(x, gate, branch)
    assert torch.equal(block_steps.add(x, branch, gate, "auto"), added)
    total, normed = block_steps.add_norm(block_steps.Residual(x, branch, gate), gate, x, layer, "auto")
    assert torch.equal(total, added)
    assert torch.equal(normed, block_steps.add_norm(added, gate, x, layer, "auto")[1])
    monkeypatch.setattr(block_steps, "fused", lambda *_: True)
    assert block_steps.add(x, branch, gate, "auto") == (x, branch, gate, None)


def test_a_branch_is_divided_by_the_root_of_what_its_parts_add_up_to() -> None:
    branch, parts = torch.randn(2, 3, 4, 16), torch.rand(5, 2, 12)
    expected = branch / parts.sum(0).sqrt().reshape(2, 3, 4, 1)
    torch.testing.assert_close(block_steps.divided(branch, parts), expected)
    assert block_steps.divided(branch.bfloat16(), parts).dtype == torch.bfloat16
    assert block_steps.divided(branch, None) is branch


def test_a_scan_leaves_its_norm_to_kernels_alone_and_not_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = partial(block_steps.gated_scan, orders=None, headdim=16, eps=1e-5, backend="auto")
    weights = torch.zeros(64), torch.zeros(32)  # convolution, norm
    assert scan(torch.zeros(1), *weights) is None
    monkeypatch.setattr(block_steps, "fused", lambda *_: True)
    monkeypatch.setattr(fused_plan, "declines_tensors", lambda *_: None)
    monkeypatch.setattr(triton_backend, "scan", lambda *_, gated, **__: gated)
    assert scan(torch.zeros(1), *weights) is True
    assert scan(torch.zeros(1).half(), *weights) is None
    assert scan(torch.zeros(1), *weights, headdim=24) is None


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


@pytest.mark.parametrize(
    ("length", "window", "features", "dtype", "fits"),
    [
        (16, 8, 128, torch.bfloat16, True),
        (64, 8, 64, torch.bfloat16, True),  # presets S, B and L
        (4096, 40, 64, torch.bfloat16, True),
        (64, 8, 128, torch.bfloat16, True),
        (4096, 20, 128, torch.bfloat16, False),
        (16, 8, 256, torch.bfloat16, False),
        (64, 1000, 64, torch.bfloat16, False),
        (64, 8, 64, torch.float32, False),
    ],
)
def test_attention_is_cut_smaller_before_hopper(
    monkeypatch: pytest.MonkeyPatch, length: int, window: int, features: int, dtype: torch.dtype, fits: bool
) -> None:
    monkeypatch.setattr(fused_plan, "gpu", lambda _: fused_plan.Gpu((8, 9), 142, 99 * 1024))
    assert fused_plan.attends(length, window, features, dtype, torch.device("cuda")) == fits
    queries, keys = fused_plan.attention_tile(length, window, small=True)
    assert queries == 16
    assert keys >= min(length, queries + 2 * window)


@pytest.mark.parametrize(
    ("batch", "length", "window", "queries"),
    [
        (1, 64, 8, 16),  # preset B: 48 programs of a whole frame would leave most of a GPU idle
        (32, 64, 8, 64),
        (1, 4096, 8, 32),
        (1, 64, 48, 64),  # few queries see more keys than the frame has
    ],
)
def test_attention_is_cut_smaller_where_a_gpu_would_idle(
    monkeypatch: pytest.MonkeyPatch, batch: int, length: int, window: int, queries: int
) -> None:
    monkeypatch.setattr(fused_plan, "gpu", lambda _: fused_plan.Gpu((9, 0), 132, 227 * 1024))
    found = fused_plan.fitting_attention_tile(batch * 6 * 8, length, window, torch.device("cuda"))
    assert found[0] == queries


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU at hand the kernels are run")
@pytest.mark.parametrize("capability", ["80", "89"])
def test_attention_spills_nothing_before_hopper(capability: str, tmp_path: Path) -> None:
    sizes = ("--headdim", "64", "--heads", "8", "--attention", "--capability", capability)
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.triton.compile_triton", *sizes],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    compiled = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert [line["spilled_bytes"] for line in compiled] == [0, 0]
