"""The cost table: what is counted, and that counting leaves nothing behind."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import cost
from medsora import MedSora
from medsora.errors import BadInput

SMALL = {"in_channels": 4, "width": 32, "depth": 2, "heads": 2, "d_state": 8, "headdim": 16}


def test_cost_is_counted_and_grows_about_linearly() -> None:
    short, long = (cost.counted("tiny", frames, 32, 2, **SMALL) for frames in (16, 32))
    model = MedSora.from_preset("tiny", **SMALL)
    assert short.parameters == long.parameters == sum(p.numel() for p in model.parameters())
    assert short.training_flops > short.sampling_flops  # the joint images
    assert 1.7 < long.sampling_flops / short.sampling_flops < 2.3
    assert long.activation_bytes > short.activation_bytes > 0
    assert short.peak_bytes - short.activation_bytes == 20 * short.parameters


def test_flops_are_those_of_a_real_forward() -> None:
    """2 per multiply-add of a product of known size; and the model still runs after it was counted."""
    layer = torch.nn.Linear(8, 16, bias=False)

    class Counted(torch.nn.Module):
        def forward(self, z: torch.Tensor, t: torch.Tensor, num_images: int) -> torch.Tensor:
            return layer(z)

    assert cost.count_flops(Counted(), (torch.zeros(4, 8), torch.zeros(1)), 0) == 2 * 4 * 8 * 16
    counted = cost.counted("tiny", 8, 32, 2, **SMALL)
    model = MedSora.from_preset("tiny", backend="torch", **SMALL).eval()
    inputs = (torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, dtype=torch.long))
    assert cost.count_flops(model, inputs, 0) == counted.sampling_flops


def test_saved_bytes_count_each_storage_once() -> None:
    class Squares(torch.nn.Module):
        def forward(self, z: torch.Tensor, t: torch.Tensor, num_images: int) -> object:
            squared = z * z  # keeps z, which is one storage, twice
            return type("Out", (), {"eps": squared, "variance": squared})()

    z = torch.zeros(10, requires_grad=True)
    assert cost.saved_bytes(Squares(), (z, z), 0) == 2 * 10 * 4  # z, and its square for the loss


def test_a_length_that_the_vae_cannot_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cost", "--preset", "tiny", "--frames", "12"])
    with pytest.raises(BadInput, match="12"):
        cost.main()
