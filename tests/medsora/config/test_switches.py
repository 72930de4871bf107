"""Switches that do not fit one another are refused by the config, by name, before anything is built."""

from __future__ import annotations

import pytest

from medsora.config.load import config_from_dict
from medsora.config.schema import DenoiserConfig
from medsora.config.switches import PAPER, SWITCHES
from medsora.errors import BadInput
from medsora.spiral import VARIANTS, scan_order


def test_the_configs_defaults_are_the_papers() -> None:
    assert {name: getattr(DenoiserConfig(), name) for name in PAPER} == PAPER


@pytest.mark.parametrize("scan", SWITCHES["scan"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 7), (7, 1), (4, 4), (3, 5), (8, 4)])
def test_every_scan_order_visits_every_cell_once(scan: str, rows: int, cols: int) -> None:
    for variant in range(VARIANTS):
        assert scan_order(scan, rows, cols, variant).sort().values.tolist() == list(range(rows * cols))


@pytest.mark.parametrize(
    ("switches", "sentence"),
    [
        (
            {"scan": "scribble"},
            rf"denoiser.scan is 'scribble' but must be one of {', '.join(SWITCHES['scan'])}\.",
        ),
        (
            {"spatial": "attention", "scan": "snake"},
            "denoiser.scan is snake, but denoiser.spatial attention scans nothing",
        ),
        ({"spatial": "attention", "axes": "width"}, "denoiser.axes is width, but .*leave it at both"),
        ({"spatial": "attention", "directions": "forward"}, "denoiser.directions is forward, but"),
        ({"spatial": "attention", "fusion": "mean"}, "denoiser.fusion is mean, but .*leave it at gate"),
        ({"spatial": "attention", "temporal": "none"}, "frames would never exchange information"),
        ({"local_attention": False, "heads": 1}, "denoiser.heads is 1, but denoiser.local_attention"),
    ],
)
def test_switches_that_do_not_fit_are_one_sentence(switches: dict, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as refusal:
        config_from_dict({"denoiser": switches}, "a config")
    assert "\n" not in str(refusal.value)
    for name, value in switches.items():
        if name in PAPER and value in ("attention", "snake", "mean", False):
            config_from_dict({"denoiser": {name: value}}, "a config")
