"""`python -m medsora.denoiser` prints the parameters of every preset, part by part."""

from __future__ import annotations

import runpy

import pytest

from medsora.denoiser import PRESETS, parameter_table


def test_the_table_holds_every_presets_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("medsora.denoiser", run_name="__main__")
    page = capsys.readouterr().out
    assert all(preset in page for preset in PRESETS)
    for preset in PRESETS:
        assert f"{parameter_table(preset, heads=1)['total']:,}" in page
        for part, count in parameter_table(preset).items():
            assert part in page
            assert f"{count:,}" in page, (preset, part)
