"""medsora.kernels.dispatch, medsora.kernels.fused.backend, medsora.kernels.fused.plan: backends are chosen
openly: what is usable, why the rest is not, and what is wrong with bad input.
"""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from benchmarks.support.scan_inputs import random_inputs
from medsora.kernels import backends, dispatch, mamba2_scan
from medsora.kernels.fused import backend as triton_backend
from medsora.kernels.fused import plan as fused_plan


def test_every_backend_is_usable_or_reports_why() -> None:
    table = backends()
    assert list(table) == list(dispatch.FASTEST_FIRST)
    assert table["torch"] is None
    assert table["reference"] is None
    assert all(reason is None or len(reason) > 10 for reason in table.values())


def test_listing_the_backends_registers_nothing() -> None:
    pytest.importorskip("triton")
    code = """
import os, sys
os.environ["TRITON_INTERPRET"] = "1"
from medsora.kernels import backends, mamba2_scan
from benchmarks.support.scan_inputs import random_inputs
import torch
assert backends()["triton"] is None
assert not hasattr(torch.ops.medsora, "scan")
inputs = random_inputs(2, batch=1, heads=1, headdim=16, d_state=16, dtype=torch.float32)
mamba2_scan(**inputs, backend="triton")
assert hasattr(torch.ops.medsora, "scan")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_auto_on_a_cpu_takes_torch_and_reports_why_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._reported.clear()
    inputs = random_inputs(4)
    with caplog.at_level(logging.INFO, logger="medsora.kernels.dispatch"):
        first = mamba2_scan(**inputs)
        second = mamba2_scan(**inputs)
    assert torch.equal(first, mamba2_scan(**inputs, backend="torch"))
    assert torch.equal(first, second)
    sentences = [record.getMessage() for record in caplog.records]
    assert len(sentences) == len(set(sentences)) == 2
    assert any("'triton' declined: " in s for s in sentences)
    assert any("'mamba_ssm' declined: " in s for s in sentences)


def test_a_backend_named_explicitly_never_falls_back() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is at hand: mamba_ssm may be usable")
    with pytest.raises(ValueError, match="'mamba_ssm' cannot serve here: "):
        mamba2_scan(**random_inputs(4), backend="mamba_ssm")


@pytest.mark.parametrize(
    ("kibibytes", "headdim", "d_state", "steps", "parts"),
    [
        (227, 64, 128, 4096, 1),  # an H200
        (227, 128, 128, 4096, 2),
        (227, 128, 256, 4096, 2),
        (163, 128, 256, 4096, 4),  # an A100
        (99, 64, 128, 4096, 1),  # cards of a workstation
        (99, 64, 256, 4096, 4),
        (99, 16, 256, 4096, 1),
        (99, 128, 256, 64, 2),  # one tile needs no states
        (99, 64, 256, 64, 1),
    ],
)
def test_a_head_is_split_until_a_program_of_it_fits_the_gpu(
    kibibytes: int, headdim: int, d_state: int, steps: int, parts: int
) -> None:
    assert fused_plan.split_of_a_head(headdim, d_state, steps, kibibytes * 1024) == parts
    assert fused_plan.shared_bytes(headdim // parts, d_state, steps) <= kibibytes * 1024


def test_triton_without_a_compiler_declines_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")

    class NoCompiler:
        @property
        def active(self) -> None:
            raise RuntimeError("Failed to find C compiler.\nMore.")

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("triton.runtime.driver", NoCompiler())
    reason = triton_backend.unusable.__wrapped__()
    assert "Failed to find C compiler." in reason
    assert "needs a C compiler and Python's headers" in reason


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="'cuda' is unknown; choose one of auto, triton, mamba_ssm, torch"):
        mamba2_scan(**random_inputs(4), backend="cuda")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"zxbcdt": torch.zeros(2, 0, 46)}, "tokens >= 1"),
        ({"zxbcdt": torch.zeros(2, 4, 45)}, r"zxbcdt must be \(2, 4, 46\)"),
        ({"headdim": 7}, "2 heads of headdim 7 need 14"),
        ({"conv_bias": torch.zeros(27)}, "d_inner = 16 is needed"),
        ({"conv_weight": torch.zeros(28, 2, 4)}, r"conv_weight must be \(28, width\)"),
        ({"A_log": torch.zeros(3)}, r"A_log must be \(2,\)"),
        ({"orders": torch.arange(4)}, r"orders must be integers \(k, 4\)"),
        ({"orders": torch.zeros(2, 5, dtype=torch.long)}, r"orders must be integers \(k, 4\)"),
        ({"orders": torch.zeros(2, 4)}, r"orders must be integers \(k, 4\)"),
    ],
)
def test_shapes_that_do_not_fit(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mamba2_scan(**random_inputs(4) | change)


@pytest.mark.parametrize("backend", dispatch.FASTEST_FIRST)
@pytest.mark.parametrize("numbers", [[0, 1, 1, 3], [0, 1, 2, 4], [-1, 0, 1, 2], [1, 2, 3, 4]])
@pytest.mark.parametrize("shape", [(2, 4), (1, 2, 2, 2)])
def test_orders_that_are_no_permutation(
    backend: str, numbers: list[int], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a backend is called, so those that need a GPU are let through to the check."""
    monkeypatch.setattr(dispatch, "_declines", lambda *tensors: None)
    orders = torch.tensor([[3, 1, 0, 2], numbers]).view(shape)
    with pytest.raises(ValueError, match="orders must visit each of the 4 tokens once"):
        mamba2_scan(**random_inputs(4) | {"orders": orders}, backend=backend)


def test_a_table_of_orders_is_checked_again_only_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    sorts, sort = [], torch.Tensor.sort
    monkeypatch.setattr(torch.Tensor, "sort", lambda *args: sorts.append(args) or sort(*args))
    inputs = random_inputs(4, orders=1)
    for _ in range(3):
        mamba2_scan(**inputs, backend="reference")
    assert len(sorts) == 1
    inputs["orders"][0, 0] = inputs["orders"][0, 1]
    with pytest.raises(ValueError, match="once"):
        mamba2_scan(**inputs, backend="reference")
    with torch.inference_mode():
        mamba2_scan(**random_inputs(4, orders=1))


def test_importing_the_package_needs_nothing_but_torch() -> None:
    heavy = ("triton", "mamba_ssm", "transformers", "diffusers", "einops", "torch._dynamo")
    code = (
        "import sys, torch; before = set(sys.modules); import kernels; "
        f"new = (set(sys.modules) - before) & set({heavy}); "
        "assert not new, new; assert not hasattr(kernels, '__version__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
