"""Backends are chosen openly: what is usable, why the rest is not, and what is wrong with bad input."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from kernels import backends, dispatch, mamba2_scan, triton_backend
from tests.kernels.scan_inputs import random_inputs


def test_every_backend_is_usable_or_says_why() -> None:
    table = backends()
    assert list(table) == list(dispatch.FASTEST_FIRST)
    assert table["torch"] is None
    assert table["reference"] is None
    assert all(reason is None or len(reason) > 10 for reason in table.values())


def test_auto_on_a_cpu_takes_torch_and_says_once_why_not_the_others(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._told.clear()
    inputs = random_inputs(4)
    with caplog.at_level(logging.INFO, logger="kernels.dispatch"):
        first = mamba2_scan(**inputs)
        second = mamba2_scan(**inputs)
    assert torch.equal(first, mamba2_scan(**inputs, backend="torch"))
    assert torch.equal(first, second)
    sentences = [record.getMessage() for record in caplog.records]
    assert len(sentences) == len(set(sentences)) == 2
    assert any("'triton' declined: " in s for s in sentences)
    assert any("'mamba_ssm' declined: " in s for s in sentences)


def test_a_backend_asked_for_by_name_never_falls_back() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is at hand: mamba_ssm may be usable")
    with pytest.raises(ValueError, match="'mamba_ssm' cannot serve here: "):
        mamba2_scan(**random_inputs(4), backend="mamba_ssm")


class Gpu(NamedTuple):
    major: int
    shared_memory_per_block_optin: int


@pytest.mark.parametrize(
    ("gpu", "steps", "dtype", "headdim", "d_state", "serves"),
    [
        (Gpu(9, 232_448), 300, torch.float32, 64, 128, True),
        (Gpu(8, 166_912), 300, torch.float32, 64, 128, True),
        (Gpu(8, 101_376), 300, torch.float32, 64, 128, False),
        (Gpu(8, 101_376), 300, torch.bfloat16, 64, 128, True),
        (Gpu(8, 101_376), 64, torch.float32, 64, 128, True),
        (Gpu(9, 232_448), 300, torch.float32, 128, 256, False),
        (Gpu(9, 232_448), 300, torch.bfloat16, 128, 256, True),
    ],
)
def test_long_sequences_go_elsewhere_where_shared_memory_does_not_suffice(
    monkeypatch: pytest.MonkeyPatch,
    gpu: Gpu,
    steps: int,
    dtype: torch.dtype,
    headdim: int,
    d_state: int,
    serves: bool,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: gpu)
    reason = triton_backend.declines("cuda", dtype, headdim, d_state, steps)
    assert (reason is None) == serves
    assert serves or f"this GPU has {gpu.shared_memory_per_block_optin:,}" in reason


def test_triton_without_a_compiler_declines_and_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_importing_the_package_needs_nothing_but_torch() -> None:
    heavy = ("triton", "mamba_ssm", "transformers", "diffusers", "einops", "torch._dynamo")
    code = (
        "import sys, torch; before = set(sys.modules); import kernels; "
        f"new = (set(sys.modules) - before) & set({heavy}); "
        "assert not new, new; assert not hasattr(kernels, '__version__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
