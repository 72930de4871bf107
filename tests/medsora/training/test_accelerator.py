"""Precision, learning rates and gradients of both training loops, and what every process must agree on."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode

from medsora.config.schema import STAGE_2
from medsora.denoiser import MedSora
from medsora.diffusion import GaussianDiffusion
from medsora.errors import BadInput
from medsora.runtime.processes import join_group
from medsora.training import accelerator as module
from medsora.training.stage1.tokenizer import perplexity
from medsora.training.stage2.block_alignment import BlockAlignment
from medsora.training.stage2.inputs import NoisedLatents
from medsora.training.stage2.loss import DenoisingLoss
from tests.support import tiny_training as tiny
from tests.support.paths import ROOT


@pytest.fixture
def cpu() -> Accelerator:
    return Accelerator(cpu=True)


def model_with_gradient(*values: float) -> torch.nn.Module:
    model = torch.nn.Linear(len(values), 1, bias=False)
    model.weight.grad = torch.tensor([values])
    return model


@pytest.mark.parametrize("largest", [None, 100.0, 1.0])
def test_the_norm_is_that_before_clipping(cpu: Accelerator, largest: float | None) -> None:
    model = model_with_gradient(3.0, 4.0)
    assert float(module.clipped_norm(cpu, model, largest)) == pytest.approx(5)
    left = 1.0 if largest == 1 else 5.0
    assert float(model.weight.grad.norm()) == pytest.approx(left, rel=1e-5)


def test_a_gradient_that_is_not_finite_shows_in_the_norm(cpu: Accelerator) -> None:
    assert not math.isfinite(module.clipped_norm(cpu, model_with_gradient(1.0, math.inf), 1.0))


def test_every_parameter_group_gets_the_learning_rate() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.1, 0.2)]
    optimizer = torch.optim.AdamW(groups)
    module.set_learning_rate(optimizer, 3e-4)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-4, 3e-4]


def test_the_precision_of_products_is_put_back() -> None:
    def fail_in_between() -> None:
        with module.float32_products("medium"):
            assert torch.get_float32_matmul_precision() == "medium"
            raise KeyError

    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError):
        fail_in_between()
    assert torch.get_float32_matmul_precision() == before


def test_fp16_is_refused_on_a_cpu(cpu: Accelerator) -> None:
    for precision in ("no", "bf16"):
        module.check_precision(precision)
    if cpu.device.type == "cpu":
        with pytest.raises(BadInput, match="fp16 needs a GPU"):
            module.check_precision("fp16")


@pytest.mark.parametrize("problem", [None, "this processor lists no bf16 products"])
def test_bf16_that_a_cpu_emulates_is_said(
    cpu: Accelerator,
    problem: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "bf16_problem", lambda device: problem)
    module.check_precision("no")
    assert not caplog.messages
    module.check_precision("bf16")
    assert caplog.messages == [
        f"the precision bf16 may make a step several times slower than no does: {problem}."
    ] * (problem is not None)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stand-in for a Mac, whose MPS PyTorch reports."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    monkeypatch.undo()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mps_is_chosen_on_a_mac_with_what_it_supports(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert join_group().device == torch.device("mps")
    module.check_precision("no")
    with pytest.raises(BadInput, match="fp16 needs a GPU with CUDA"):
        module.check_precision("fp16")
    for newer in (False, True):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor, newer=newer: newer)
        with nullcontext() if newer else pytest.raises(BadInput, match="bf16 on MPS needs macOS 14"):
            module.check_precision("bf16")
    with pytest.raises(BadInput, match="this run is on mps: leave it off"):
        module.check_compile()


def test_operators_that_mps_lacks_run_on_the_cpu_of_a_mac() -> None:
    """PyTorch reads the variable when it is imported."""
    code = "import sys; sys.platform = 'darwin'; import medsora, os; assert 'torch' not in sys.modules"
    code += "; print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("1", "")


class NoFloat64(TorchDispatchMode):
    """Refuses float64 on the device of the models, as MPS does; the meta device stands in for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                assert tensor.dtype != torch.float64, func
        return made


@pytest.mark.parametrize("correlation", ["sample", "batch"])
@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_a_step_needs_no_float64_on_the_device(
    prediction: str, correlation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # the meta device has no autocast
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    weighted = {"alignment__correlation": correlation, "train_dit__loss_target": "velocity"}
    config = tiny.tiny_config(tmp_path, tmp_path / "clips", **weighted)
    with NoFloat64(), torch.device("meta"):
        model = MedSora(**tiny.DENOISER, in_channels=4, prediction=prediction)
        z, t = torch.zeros(2, 3, 4, 4, 4), torch.zeros(2, dtype=torch.long)
        with torch.device("cpu"):
            diffusion = GaussianDiffusion()
            needed = torch.ones(2, dtype=torch.bool)
        z_t = diffusion.add_noise(z, z, t)
        noised = NoisedLatents(z, z_t, z, t, 1, needed, t, None, None)
        targets = [torch.zeros(2, 2, 4, tiny.DENOISER["width"]) for _ in range(tiny.DENOISER["depth"])]
        losses = DenoisingLoss(config, diffusion, nullcontext)(model, noised, targets)
        losses.total.backward()
        blocks = BlockAlignment()
        blocks.add(losses.per_block)
        blocks.add(losses.per_block)
    assert all(parameter.grad is not None for parameter in model.blocks.parameters())


class WithoutFloat64(torch.Tensor):
    """A stand-in for a tensor on MPS."""

    def double(self) -> torch.Tensor:
        raise TypeError("MPS has no float64")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_the_perplexity_of_codes_needs_no_float64_on_the_device() -> None:
    codes = torch.tensor([[0, 1], [1, 0]]).as_subclass(WithoutFloat64)
    assert perplexity(codes) == pytest.approx(2)


ENVIRONMENT = {  # what `accelerate launch` writes -> a word of the sentence that refuses it
    "ACCELERATE_MIXED_PRECISION=bf16": "mixed precision",
    "ACCELERATE_MIXED_PRECISION=fp8": "mixed precision",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4": "gradient accumulation",
    "ACCELERATE_USE_FSDP=true": "FSDP",
    "ACCELERATE_USE_DEEPSPEED=true": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM=true": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG=true": "parallelism config",
    "ACCELERATE_DYNAMO_BACKEND=INDUCTOR": "dynamo backend",
    "ACCELERATE_DOWNCAST_BF16=true": "downcasting to bf16",
    "XLA_DOWNCAST_BF16=1": "downcasting to bf16",
}


@pytest.mark.parametrize(("setting", "name"), ENVIRONMENT.items())
@pytest.mark.parametrize("stage", ["vae", "dit"])
def test_settings_of_the_launcher_are_refused_and_never_ignored(
    setting: str, name: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both stages, before anything is read: there are no clips."""
    variable, _, value = setting.partition("=")
    monkeypatch.setenv(variable, value)
    config = tiny.tiny_config(tmp_path, tmp_path / "clips")
    with pytest.raises(BadInput, match=rf"^accelerate is set to use .*{name} \({variable}={value.lower()}\)"):
        tiny.train(stage, config)


def test_what_the_launcher_writes_by_default_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (
        ("ACCELERATE_MIXED_PRECISION", "no"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
        ("ACCELERATE_USE_FSDP", "false"),
    ):
        monkeypatch.setenv(variable, value)
    for precision in ("no", "bf16"):
        module.check_launcher(precision)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    module.check_launcher("bf16")
    with pytest.raises(BadInput, match="set precision in the config"):
        module.check_launcher("fp16")


def test_gradients_are_averaged_with_the_last_micro_batch_only() -> None:
    class Synchronised:
        def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[str]:
            return nullcontext("apart")

    for last, expected in ((True, None), (False, "apart")):
        with module.gradients_synchronised(Synchronised(), torch.nn.Identity(), last) as found:
            assert found == expected


def test_the_state_of_a_loss_scaler_returns(cpu: Accelerator) -> None:
    assert module.scaler_state(cpu) is None
    first = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    second = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=2.0))
    module.restore_scaler(second, module.scaler_state(first))
    assert module.scaler_state(second)["scale"] == 8
    module.restore_scaler(second, None)
    assert module.scaler_state(second)["scale"] == 8


class Clips(list):
    """Starts of windows, with windows (video, window) and videos as a `ClipDataset` has them."""

    videos = (SimpleNamespace(source=SimpleNamespace(name="a.mkv")),)

    @property
    def windows(self) -> list[tuple[int, SimpleNamespace]]:
        return [(0, SimpleNamespace(start=start)) for start in self]


def test_processes_compare_folder_configuration_and_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[dict[str, object]] = []
    monkeypatch.setattr(module, "check_agreement", compared.append)

    def compare(starts: Clips, folder: str = "run", **changes: object) -> dict[str, object]:
        config = tiny.tiny_config(tmp_path, tmp_path / "clips", **changes)
        module.check_same_run(SimpleNamespace(path=Path(folder), stage=STAGE_2), config, starts)
        return compared[-1]

    first = compare(Clips([0, 16]))
    assert compare(Clips([0, 16])) == first
    for other, differing in (
        (compare(Clips([0, 16]), run__seed=1), {"configuration"}),
        (compare(Clips([0, 16]), folder="other"), {"run folder"}),
        (compare(Clips([0, 16]), cache__latents="disk"), {"configuration", "cache folder"}),
        (compare(Clips([0, 17])), {"list of clips"}),
        (compare(Clips([0])), {"number of clips", "list of clips"}),
    ):
        assert {key for key in first if first[key] != other[key]} == differing
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # as on a machine with another working folder
    elsewhere = compare(Clips([0, 16]))
    assert {key for key in first if first[key] != elsewhere[key]} == {"run folder"}
