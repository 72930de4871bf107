"""Products by oneDNN: the same sums as PyTorch's own, gradients included, and only where they are meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from medsora.denoiser import linear
from medsora.denoiser.linear import (
    AVAILABLE,
    MIN_ROWS,
    Linear,
    bf16_problem,
    is_intel_cpu,
    served_by_onednn,
)

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this PyTorch is built without oneDNN")


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(MIN_ROWS,), (2, 5, 7)])
def test_results_and_gradients_are_those_of_linear(shape: tuple[int, ...], bias: bool) -> None:
    layer = Linear(12, 20, bias=bias)
    x = torch.randn(*shape, 12, requires_grad=True)
    assert served_by_onednn(x, layer.weight)
    grad = torch.randn(*shape, 20)
    inputs = [x, *layer.parameters()]
    mine = torch.autograd.grad(layer(x), inputs, grad)
    expected = torch.autograd.grad(F.linear(x, layer.weight, layer.bias), inputs, grad)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
    for actual, wanted in zip(mine, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


def test_tokens_that_do_not_lie_side_by_side_are_multiplied_rightly() -> None:
    layer, x = Linear(12, 20), torch.randn(12, 8, 8).permute(1, 2, 0)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


def test_other_precisions_are_left_to_pytorch() -> None:
    weight, x = torch.randn(20, 12), torch.randn(64, 12)
    assert not served_by_onednn(x.double(), weight.double())
    assert not served_by_onednn(x.bfloat16(), weight.bfloat16())
    assert not served_by_onednn(x[:4], weight), "few rows gain nothing"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not served_by_onednn(x, weight)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert not served_by_onednn(x, weight)
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_flop_counter_sees_them() -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Linear(12, 20)(torch.randn(64, 12))
    assert counter.get_total_flops() == 2 * 64 * 12 * 20


def test_intels_processors_keep_to_intels_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for vendor, expected in (("GenuineIntel", True), ("AuthenticAMD", False)):
        cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
        assert is_intel_cpu(cpuinfo) is expected
    monkeypatch.setattr(linear.platform, "processor", lambda: "Intel64 Family 6, GenuineIntel")
    assert is_intel_cpu(tmp_path / "no such file")
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: False)
    assert not served_by_onednn(torch.randn(64, 12), torch.randn(20, 12))


def test_bf16_is_for_processors_that_list_its_products(tmp_path: Path) -> None:
    cpu, cpuinfo = torch.device("cpu"), tmp_path / "cpuinfo"
    for vendor, flags, problem in (
        ("AuthenticAMD", "avx512f avx512_bf16", None),
        ("GenuineIntel", "avx512_bf16 amx_bf16 amx_tile", None),
        ("GenuineIntel", "avx512f avx512_bf16", "no faster without AMX"),
        ("AuthenticAMD", "avx2 avx512f avx512bw", "lists no bf16 products"),
    ):
        cpuinfo.write_text(f"vendor_id\t: {vendor}\nflags\t\t: {flags}\n")
        found = bf16_problem(cpu, cpuinfo)
        assert found is None if problem is None else problem in found, flags
    assert "lists no bf16 products" in bf16_problem(cpu, tmp_path / "no such file")
    assert bf16_problem(torch.device("mps")) == "bf16 was not measured on mps"


def test_the_processor_is_checked_at_the_first_product_and_once() -> None:
    code = """
import pathlib, torch
reads, read_text = [], pathlib.Path.read_text
def count(path, *args, **named):
    reads.append(str(path))
    return read_text(path, *args, **named)
pathlib.Path.read_text = count
from medsora.denoiser import linear
assert "/proc/cpuinfo" not in reads, "read at import"
torch.backends.mkl.is_available = lambda: True
layer, x = linear.Linear(12, 20), torch.randn(64, 12)
layer(x), layer(x)
assert reads.count("/proc/cpuinfo") == 1, reads
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
