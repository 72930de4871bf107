"""Every optimiser that a config may name: its settings, and that its saved state continues it bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medsora.config.choices import OPTIMIZERS
from medsora.errors import BadInput
from medsora.saved.optimizer import build_optimizer, moments, optimizer_tensors, restore_optimizer


def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for number in range(first, last):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def pair(
    name: str, betas: tuple[float, float] = (0.8, 0.95)
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return model, build_optimizer(name, model.parameters(), lr=0.01, betas=betas, weight_decay=0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimiser_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    (model, optimizer), (resumed, restored) = pair(name), pair(name)
    names = [key for key, _ in model.named_parameters()]
    before = model.weight.detach().clone()
    steps(model, optimizer, 0, 3)
    assert not torch.equal(model.weight, before)
    tensors = optimizer_tensors(optimizer, names)
    assert sum(tensor.shape == model.weight.shape for tensor in tensors.values()) == moments(name)
    save_file(tensors, tmp_path / "state.safetensors")
    resumed.load_state_dict(model.state_dict())
    restore_optimizer(restored, names, tmp_path / "state.safetensors")
    steps(model, optimizer, 3, 6)
    steps(resumed, restored, 3, 6)
    assert torch.equal(resumed.weight, model.weight)
    assert torch.equal(resumed.bias, model.bias)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_optimisers_state_is_refused(name: str, tmp_path: Path) -> None:
    model, optimizer = pair("rmsprop" if name == "sgd" else "sgd")
    names = [key for key, _ in model.named_parameters()]
    steps(model, optimizer, 0, 1)
    save_file(optimizer_tensors(optimizer, names), tmp_path / "state.safetensors")
    with pytest.raises(BadInput, match=r"the state of (weight|bias) does not fit"):
        restore_optimizer(pair(name)[1], names, tmp_path / "state.safetensors")


def test_settings_reach_the_optimiser() -> None:
    assert [type(pair(name)[1]).__name__.lower() for name in OPTIMIZERS] == list(OPTIMIZERS)
    for name in OPTIMIZERS:
        defaults = pair(name)[1].defaults
        assert (defaults["lr"], defaults["weight_decay"]) == (0.01, 0.1)
        assert defaults.get("betas", (0.8, 0.95)) == (0.8, 0.95)
        assert defaults.get("momentum", 0.8) in (0.8, 0)  # RMSprop's own is left alone
        assert defaults.get("alpha", 0.95) == 0.95


def test_sgd_without_momentum_has_no_state(tmp_path: Path) -> None:
    model, optimizer = pair("sgd", (0.0, 0.9))
    steps(model, optimizer, 0, 2)
    names = [key for key, _ in model.named_parameters()]
    save_file(optimizer_tensors(optimizer, names), tmp_path / "state.safetensors")
    restore_optimizer(pair("sgd", (0.0, 0.9))[1], names, tmp_path / "state.safetensors")
