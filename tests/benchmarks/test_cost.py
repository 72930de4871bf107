"""The cost table: what is counted, and that counting leaves nothing behind."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import cost
from benchmarks.page import PAGE
from medsora import MedSora
from medsora.errors import BadInput
from medsora.runtime.files import END_MARK as END

SMALL = {"in_channels": 4, "width": 32, "depth": 2, "heads": 2, "d_state": 8, "headdim": 16}


def test_cost_is_counted_and_grows_about_linearly() -> None:
    short, long = (cost.counted(cost.Case("tiny", frames, 32, 2, overrides=SMALL)) for frames in (16, 32))
    assert (short.latents, long.latents) == (4, 8)
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
    counted = cost.counted(cost.Case("tiny", 8, 32, 2, overrides=SMALL))
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


@pytest.mark.parametrize("preset", cost.PRESETS)
def test_every_preset_is_counted(preset: str) -> None:
    """Whatever `denoiser.preset` may name: on the causal VAE's latents, and on one latent per frame."""
    causal, per_frame = (
        cost.counted(cost.Case(preset, 16, 32, 2, each, {"depth": 2})) for each in (False, True)
    )
    assert (causal.latents, per_frame.latents) == (4, 16)
    assert per_frame.sampling_flops > 3 * causal.sampling_flops > 0


def test_a_point_is_measured() -> None:
    found = cost.measure(cost.Case("tiny", 8, 32, 2, overrides=SMALL), 2)
    assert found.training_s > found.sampling_s > 0
    assert found.peak_bytes >= 0  # this process's, whose earlier peak may be larger


def test_a_point_that_memory_does_not_suffice_for_is_left_out() -> None:
    assert cost.in_a_fresh_process(pow, 2, 3) == 8
    assert cost.in_a_fresh_process(bytearray, 2**62) is None
    assert cost.in_a_fresh_process(os._exit, 9) is None, "killed: waited for, the rest would never come"
    with pytest.raises(ZeroDivisionError):
        cost.in_a_fresh_process(divmod, 1, 0)


POINT = cost.Cost("tiny", 16, 4, 4_180_000, 1_700_000_000, 2_400_000_000, 2**30)
RUN = cost.Measured(3 * 2**30, 0.25, 0.125)


def test_what_was_not_measured_is_a_dash() -> None:
    assert POINT.row() == ["tiny", "4.18", "16", "4", "1.7", "2.4", "1.00", "1.08", "–", "–", "–"]
    assert replace(POINT, measured=RUN).row()[-3:] == ["3.00", "0.25", "0.125"]


@pytest.mark.parametrize("measured", [None, RUN])
def test_table_and_plot(
    measured: cost.Measured | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{cost.BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setattr(cost, "PAGE", page)
    monkeypatch.setattr(cost, "PICTURE", tmp_path / "cost.svg")
    monkeypatch.setattr(
        cost,
        "counted",
        lambda case: replace(POINT, preset=case.preset, frames=case.frames, measured=measured),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = [
        "--preset",
        "S",
        "tiny",
        "--frames",
        "16",
        "32",
        "--page",
        "--plot",
        str(tmp_path / "own.png"),
    ]
    monkeypatch.setattr(sys, "argv", ["cost", *arguments])
    cost.main()
    text = page.read_text()
    assert text.startswith("before\n<!--")
    assert text.endswith("-->\nafter\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith(("| S |", "| tiny |"))]
    assert [row.split(" | ")[2] for row in rows] == ["16", "32"] * 2
    assert ("training step, measured" in (tmp_path / "cost.svg").read_text()) == (measured is not None)
    assert (tmp_path / "own.png").stat().st_size
    cost.draw(tmp_path / "own.svg", [replace(POINT, measured=measured), replace(POINT, preset="XL")])
    assert ("training step, measured" in (tmp_path / "own.svg").read_text()) == (measured is not None)


def test_the_page_holds_what_the_command_counts() -> None:
    """The documentation's numbers are this code's."""
    text = PAGE.read_text(encoding="utf-8").partition(cost.BEGIN)[2].partition(END)[0]
    for preset, frames in (("tiny", 16), ("S", 64), ("endora-B", 16)):
        counted = cost.counted(cost.Case(preset, frames, 128, 2)).row()[:8]
        assert f"| {' | '.join(counted)} |" in text


def test_a_dry_run_counts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "counted", lambda *_: pytest.fail("counted"))
    monkeypatch.setattr(sys, "argv", ["cost", "--preset", "S", "XL", "--frames", "16", "--dry-run"])
    cost.main()
    assert capsys.readouterr().out.splitlines()[1:] == ["S at 16 frames", "XL at 16 frames"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--frames", "12"], "12"),
        (["--size", "100"], "100"),
        (["--image-latents", "-1"], "--image-latents is -1"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--plot", "cost.jpeg"], "must end in .svg or .png"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["cost", "--preset", "tiny", *arguments])
    with pytest.raises(BadInput, match=sentence):
        cost.main()
