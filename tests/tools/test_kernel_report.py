"""tools.kernel_report, tools.kernel_launches: launches of a step are recorded, machine code is read."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from tools import kernel_report
from tools.kernel_launches import CHIPS, PRODUCTS, Launch, Model, denoiser, sampling_step, training_step
from tools.kernel_report import Compiled, compile_launch, machine_code

H200 = CHIPS[90].plan
READ = Compiled(
    registers=64,
    spilled_bytes=0,
    shared_bytes=0,
    warps=4,
    programs=8,
    widths={16: 1},
    instructions=100,
    matrix_instructions=0,
    flops=0,
)
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/                   STG.E.U16 desc[UR4][R2.64], R8 ;
        /*0050*/              @!P1 BRA `(.L_x_0) ;
        /*0060*/                   EXIT ;
        /*0070*/                   NOP ;
"""


@pytest.mark.parametrize("batch", [1, 32])
def test_a_sampling_step_is_recorded_as_it_is_launched(batch: int) -> None:
    model = denoiser("tiny", torch.bfloat16)
    depth = model.config.depth
    launches = sampling_step(model, batch, H200)
    names = [launch.name for launch in launches]
    assert names.count("scan_forward") == 2 * depth
    assert names.count("local_attention_kernel") == depth
    products = [launch for launch in launches if launch.name in PRODUCTS]
    assert len(products) == 5 * depth + 1  # and the last layer
    assert names.count("gates_kernel") == depth
    assert names.count("norm_forward") == depth, "that of the temporal scan is left to the next norm"
    shallow = sampling_step(denoiser("tiny", torch.bfloat16, depth - 1), batch, H200)
    assert len(launches) - len(shallow) <= kernel_report.MAX_LAUNCHES_OF_A_BLOCK
    scans = [launch for launch in launches if launch.name == "scan_forward"]
    assert scans[0].arguments["convolved"].shape[:3] == (4, batch, 6 * 64)
    assert scans[0].arguments["convolved"].dtype == torch.bfloat16
    assert names.count("conv_forward") == 2 * depth
    assert not any("backward" in name for name in names)


def test_a_training_step_has_the_backward_kernels() -> None:
    launches = training_step(denoiser("tiny", torch.float32), 1, H200)
    names = {launch.name for launch in launches if isinstance(launch, Launch)}
    assert {"conv_forward", "scan_forward", "norm_backward", "scan_backward", "conv_backward"} <= names
    assert not {"local_attention_kernel", "add_norm_kernel"} & names, "those keep nothing for a gradient"


@pytest.mark.parametrize("capability", [90, 80])
def test_a_launch_is_compiled_and_its_code_is_read(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches = sampling_step(denoiser("B", torch.bfloat16, 1), 1, H200)
    launch = next(launch for launch in launches if launch.name == "norm_forward")
    built = compile_launch(launch, capability)
    assert 16 <= built.registers <= 64
    assert built.spilled_bytes == 0
    assert built.warps == 4
    assert built.programs >= 8
    assert built.widths[16] == 5  # two orders' y, z, the weight's two halves in float32 or one store
    assert 100 < built.instructions < 1000


def test_bytes_count_an_argument_once_and_only_the_columns_that_are_read() -> None:
    launches = sampling_step(denoiser("B", torch.bfloat16, 1), 2, H200)
    tokens, d_inner, width = 2 * 384, 1024, 512
    spatial = next(launch for launch in launches if launch.name == "norm_forward")
    assert spatial.bytes == 2 * tokens * d_inner * (1 + 4 + 2) + spatial.arguments["norm_weight"].nbytes
    conv = next(launch for launch in launches if launch.name == "conv_forward")
    of_tokens = tokens * (1024 + 2 * 128 + 16)  # x, B, C and Δ, without the gate
    read = sum(conv.arguments[name].nbytes for name in ("orders", "conv_weight", "conv_bias", "dt_bias"))
    written = 4 * tokens * ((1024 + 2 * 128) * 2 + 16 * 4)
    assert conv.bytes == 2 * of_tokens + read + written
    _, gated = (launch for launch in launches if launch.name == "scan_forward")
    others = (value for name, value in gated.arguments.items() if torch.is_tensor(value) and name != "zxbcdt")
    assert gated.bytes == tokens * 1024 * 2 + sum(value.nbytes for value in others)
    alone = next(launch for launch in launches if launch.name == "add_norm_kernel")
    of_weights = sum(alone.arguments[name].nbytes for name in ("weight", "bias"))
    of_modulation = sum(alone.arguments[name].nbytes for name in ("shift", "scale"))
    assert alone.bytes == 2 * tokens * width * 2 + of_weights + of_modulation


@pytest.mark.parametrize(("batch", "steps"), [(1, [32, 16]), (32, [32, 32])])
def test_a_convolution_is_cut_smaller_where_a_gpu_would_idle(batch: int, steps: list[int]) -> None:
    launches = sampling_step(denoiser("B", torch.bfloat16, 1), batch, H200)
    of_scans = [launch for launch in launches if launch.name == "conv_forward"]
    arguments = [launch.arguments for launch in of_scans]
    assert [given["GROUPS"] * given["GROUP"] for given in arguments] == steps
    assert [given["GROUP"] for given in arguments] == [4, 2], "frames of 8 rows; 6 latents"
    assert [launch.grid[0] for launch in of_scans] == [batch * 384 // count for count in steps]


def test_loops_count_as_often_as_they_are_passed() -> None:
    code = list(machine_code(LISTING, [3, 5]))
    assert dict(code)["MOV"] == dict(code)["EXIT"] == 1
    assert dict(code)["LDG.E.128.CONSTANT"] == 3
    assert dict(code)["HMMA.16816.F32.BF16"] == 15
    assert sum(times for _, times in code) == 1 + 3 * 3 + 2 * 15 + 1
    assert kernel_report.access_widths(code) == {16: 3, 2: 3}


def test_matrix_instructions_count_what_they_multiply() -> None:
    assert kernel_report.matrix_flops("HMMA.16816.F32.BF16") == 2 * 16 * 8 * 16
    assert kernel_report.matrix_flops("HMMA.1688.F32.TF32") == 2 * 16 * 8 * 8
    assert 4 * kernel_report.matrix_flops("HGMMA.64x128x16.F32.BF16") == 2 * 64 * 128 * 16
    assert kernel_report.matrix_flops("FFMA") == 0


def test_times_follow_instructions_products_or_bytes_whichever_takes_longest() -> None:
    launches = sampling_step(denoiser("B", torch.bfloat16, 1), 32, H200)
    launch, model = next(launch for launch in launches if launch.name == "norm_forward"), Model()
    moved = launch.bytes / model.bytes_per_s
    assert READ.seconds(launch, model) == pytest.approx(model.start_s + moved, rel=1e-6)
    multiplied = replace(READ, flops=10**9)
    assert multiplied.seconds(launch, model) == pytest.approx(
        model.start_s + launch.grid[0] * launch.grid[1] * 10**9 / model.flops_per_s[torch.bfloat16]
    )
    slow = replace(READ, instructions=10**5, programs=1)
    rounds = -(-launch.grid[0] * launch.grid[1] // 132)
    assert slow.seconds(launch, model) == pytest.approx(model.start_s + rounds * 4e5 / model.clock_hz)


@pytest.mark.parametrize("spilled", [0, 8])
def test_bars_that_are_missed_are_listed(
    spilled: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = replace(READ, spilled_bytes=spilled, programs=2)
    monkeypatch.setattr(kernel_report, "compile_launch", lambda launch, capability: built)
    options = ["--preset", "tiny", "--steps", "sampling", "--dtypes", "bf16", "--batches", "1"]
    monkeypatch.setattr(sys, "argv", ["kernel_report", *options, "--capabilities", "80"])
    assert kernel_report.main() == 1
    missed = capsys.readouterr().out.partition("bars missed: ")[2]
    assert "scan_forward: 2 programs of a multiprocessor at once, not 4" in missed
    assert ("norm_forward spills 8 bytes" in missed) == bool(spilled)
