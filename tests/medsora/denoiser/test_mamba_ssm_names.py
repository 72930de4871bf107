"""medsora.denoiser.mamba: weights of the package mamba-ssm and ours interchange, both ways."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medsora.denoiser.mamba import Mamba2
from tests.support.patience import PATIENCE_S

# A program of its own: the package needs stand-ins for its compiled parts (which the weights do without), and
# its __init__ would import transformers.
PACKAGE = """
import sys
from importlib.util import find_spec
from types import ModuleType

from safetensors.torch import load_file, save_file

for compiled in ("selective_scan_cuda", "causal_conv1d_cuda"):
    sys.modules[compiled] = ModuleType(compiled)
sys.modules["mamba_ssm"] = ModuleType("mamba_ssm")
sys.modules["mamba_ssm"].__path__ = [sys.argv[1]]

from mamba_ssm.modules.mamba2 import Mamba2

ours, theirs = sys.argv[2:]
model = Mamba2(64, d_state=16, headdim=32, d_conv=4, expand=2)
save_file({key: value.clone() for key, value in model.state_dict().items()}, theirs)
model.load_state_dict(load_file(ours), strict=True)
"""


def test_state_dicts_interchange_with_mamba_ssm(tmp_path: Path) -> None:
    package = find_spec("mamba_ssm")
    if package is None:
        pytest.skip("the package mamba-ssm is not installed")
    model = Mamba2(64, d_state=16, headdim=32, d_conv=4, expand=2, backend="auto")
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_file(model.state_dict(), ours)
    command = [sys.executable, "-c", PACKAGE, *package.submodule_search_locations, str(ours), str(theirs)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert run.returncode == 0, run.stderr[-2000:]
    weights = load_file(theirs)
    model.load_state_dict(weights, strict=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
