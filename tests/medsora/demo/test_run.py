"""medsora.demo.run, medsora.demo.pace, medsora.demo.proof, medsora.demo.report: the demo's whole road at its
smallest: every part is there at the end, and the page needs no network.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsora.config.load import load_config
from medsora.data.reading.video_io import probe, read_frames
from medsora.demo import pace as demo_pace
from medsora.demo import run as demo_module
from medsora.demo.run import demo
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    base = folder / "base.json"
    base.write_text(
        json.dumps({"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4})
    )
    config = load_config(
        ROOT / "configs" / "phantom.yaml",
        [
            "run.name=demo",
            f"run.dir={folder}",
            f"phantom.folder={folder}/clips",
            f"cache.dir={folder}/cache",
            "phantom.videos=5",
            "data.holdout=0.4",
            f"vae.base={base}",
            "vae.weights=null",
            "denoiser.overrides={width: 32, depth: 2, heads: 2, d_state: 16, headdim: 16}",
            "train_vae.max_steps=1",
            "train_dit.max_steps=2",
            "train_dit.sample_videos=1",
            "train_dit.sample_steps=2",
            "tracking.trackers=[]",
        ],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "STEPS", 5)
        demo(config, videos=2)
    return folder / "demo"


def test_videos_sheet_and_curves_are_there(run: Path) -> None:
    videos = sorted((run / "videos").glob("*.mp4"))
    assert [video.name for video in videos] == ["video-00000.mp4", "video-00001.mp4"]
    assert read_frames(videos[0]).shape == (17, 64, 64, 3)
    assert "synthetic" in probe(videos[0]).metadata["comment"]
    for name in ("sheet.png", "stage-1.png", "stage-2.png"):
        assert np.asarray(Image.open(run / name)).std() > 1


def test_the_page_holds_everything_itself(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<video") == 2 + 2 * 2  # generated; real and reconstructed of two held-out clips
    assert page.count("<img") == 3
    assert "untrained" in page
    assert "cheat: frozen real clips" in page
    assert "hold: they beat" in page.replace("DOES NOT HOLD", "hold").replace("Holds", "hold")
    sources = re.findall(r'(?:src|href)="([^"]{5})', page)
    assert sources
    assert set(sources) == {"data:"}


def test_the_manifest_says_how_it_was_made(run: Path) -> None:
    manifest = json.loads((run / "videos" / "manifest.json").read_text())
    assert manifest["synthetic"] is True
    assert manifest["settings"]["steps"] == 5


def test_a_faster_machine_trains_longer_and_a_begun_run_keeps_its_number(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(run / "dit-tiny" / "config.yaml", outputs_anywhere=True)
    assert demo_pace.paced(config, 1e9).train_dit.max_steps == 2, "it has begun"

    assert demo_pace.seconds_of_a_pass(config) > 0
    fresh = dataclasses.replace(
        config,
        denoiser=dataclasses.replace(config.denoiser, preset="S"),
        train_dit=dataclasses.replace(config.train_dit, max_steps=100),
    )
    for pass_s, steps in ((1000.0, 100), (1.0, 200), (1e-6, 220)):
        monkeypatch.setattr(demo_pace, "seconds_of_a_pass", lambda config, s=pass_s: s)
        seconds = demo_pace.SAMPLING + 210 * demo_pace.WHOLE_STEP
        assert demo_pace.paced(fresh, seconds).train_dit.max_steps == steps
