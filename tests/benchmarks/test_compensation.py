"""The comparison of both kinds of decoder compensation: what is measured, and the rule that decides."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import compensation
from benchmarks.compensation import LENGTHS, better_kind, scores, table
from medsora.evaluation.metrics.motion import DIS_NOTE

SEEDS = (0, 1)


def rows(psnr: dict[str, tuple[float, float]], flow: dict[str, float]) -> dict:
    """Scores of both kinds: PSNR of either seed, mean flow; the originals move by 1 px per frame."""
    found = {(frames, "original", None): {"flow": 1.0} for frames in LENGTHS}
    for kind, values in psnr.items():
        for seed in SEEDS:
            scored = {"PSNR": values[seed], "flow": flow[kind]}
            found |= {(frames, kind, seed): scored for frames in LENGTHS}
    return found


@pytest.mark.parametrize(
    ("causal", "standard", "better"),
    [
        ((30.0, 30.0), (30.2, 30.2), "standard"),  # a clear gain counts, whatever moves
        ((30.2, 30.2), (30.0, 30.0), "causal"),
        ((30.0, 30.2), (30.2, 30.0), "standard"),  # seeds contradict each other: the flow decides
        ((30.05, 30.05), (30.0, 30.0), "standard"),  # too small a gain
    ],
)
def test_the_rule(causal: tuple[float, float], standard: tuple[float, float], better: str) -> None:
    psnr = {"causal": causal, "standard": standard}
    flow = {"causal": 0.5, "standard": 0.9 if better == "standard" else 2.0}
    assert better_kind(rows(psnr, flow), SEEDS) == better


def test_scores_of_a_vae_that_repeats_a_frame() -> None:
    class Still:
        """Returns the first of every four frames four times."""

        def encode(self, video: torch.Tensor) -> torch.Tensor:
            return video[:, ::4]

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents.repeat_interleave(4, dim=1)

    positions = torch.arange(32.0)
    frames = [torch.sin((positions[:, None] + positions + 2 * k) / 3) for k in range(16)]
    video = torch.stack(frames)[None, :, None].expand(1, 16, 3, 32, 32)
    found = scores(Still(), video)
    assert found["flow 0-3"] == pytest.approx(0, abs=0.05)
    assert found["PSNR"] < 40
    header, _, row = table({(16, "original", None): found})
    assert {"PSNR", "FFL", "flow"} < {name.strip() for name in header.split("|")}
    assert "| 16 | original |  |" in row


def test_the_flow_is_read_with_its_caveat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DIS and RAFT differ on generated clips by more than models do: the page says so, as `evaluate.py`'s."""
    monkeypatch.setattr(sys, "argv", ["compensation", "--out", str(tmp_path), "--seeds", "0"])
    clips = np.random.default_rng(0).integers(255, size=(1, max(LENGTHS), 16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(compensation, "phantom_clips", lambda *_: (clips, None))
    monkeypatch.setattr(compensation, "trained", lambda *_: None)
    monkeypatch.setattr(compensation, "compensation_off", lambda _: nullcontext())
    monkeypatch.setattr(compensation, "scores", lambda *_: {"PSNR": 30.0, "flow": 1.0, "flow 0-3": 1.0})
    compensation.main()
    assert DIS_NOTE[1:] in capsys.readouterr().out
