"""medsora.kernels.fused.gates: compiled for GPUs, it spills nothing; test_block_steps.py tests its values."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from tools.kernel_launches import CHIPS, denoiser, sampling_step
from tools.kernel_report import compile_launch


@pytest.mark.parametrize("capability", [90, 80, 89])
def test_gates_spill_nothing_in_tiles_of_either_size(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    gpu = CHIPS[capability].plan
    tiles = {}
    for batch in (1, 32):
        launches = sampling_step(denoiser("B", torch.bfloat16, 1), batch, gpu)
        gates = next(launch for launch in launches if launch.name == "gates_kernel")
        built = compile_launch(gates, capability)
        assert built.spilled_bytes == 0
        assert built.shared_bytes <= gpu.shared_bytes
        tiles[batch] = gates.arguments["ROWS"] * gates.arguments["COLUMNS"], gates.grid
        assert gates.grid[0] * gates.grid[1] >= gpu.multiprocessors
    assert tiles[1] < tiles[32]
