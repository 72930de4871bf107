"""The scan against the package's reference: equal numbers first, then times of both."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import scan


def test_steps_are_put_back_in_place_and_summed_over_directions() -> None:
    batch, tokens, channels = 2, 6, 3
    orders = torch.stack([torch.stack([torch.randperm(tokens).view(2, 3) for _ in range(2)]) for _ in "ab"])
    x = torch.randn(batch, tokens, channels)
    ordered = x[:, orders.flatten(0, 1)].flatten(0, 2)
    found = scan.put_back_and_sum(ordered, orders, batch, tokens)
    assert found.shape == (2, batch, tokens, channels)
    torch.testing.assert_close(found, (2 * x).expand(2, -1, -1, -1))


@pytest.mark.skipif(find_spec("mamba_ssm") is None, reason="mamba-ssm is not installed")
def test_both_scans_are_compared_and_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    options = ["--batches", "1", "--rounds", "1", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["scan", *options])
    folders = list(find_spec("mamba_ssm").submodule_search_locations)
    scan.main()
    assert list(find_spec("mamba_ssm").submodule_search_locations) == folders, "its stand-in names its folder"
    values = json.loads(results.read_text())["figures"]
    assert (values["batch"], values["length"], values["rounds"]) == (1, scan.LENGTH, 1)
    assert all(milliseconds > 0 for milliseconds in values["ms"].values())
    monkeypatch.setattr(scan, "mamba2_scan", lambda **inputs: torch.zeros(()))
    with pytest.raises(RuntimeError, match="the two scans differ"):
        scan.measure(1, 1)
