"""medsora.demo.run, medsora.demo.adapt, medsora.demo.pace, medsora.demo.outcome, medsora.demo.report: both
demos at their smallest: every part is there at the end, and the page needs no network.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsora.config import shipped
from medsora.config.load import load_config
from medsora.data.reading.video_io import probe, read_frames
from medsora.demo import adapt as demo_adapt
from medsora.demo import pace as demo_pace
from medsora.demo import run as demo_module
from medsora.demo.outcome import compare_looks
from medsora.demo.run import demo
from medsora.errors import BadInput
from medsora.project.export import export_run
from medsora.saved import find
from tests.support.drifting_clips import drifting_clip
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
    assert "trivial baseline: frozen phantom clips" in page
    assert not re.search(r"\breal\b|cheat", re.sub('base64,[^"]*', "", page))
    assert "pass: they beat" in page.lower().replace("fail: ", "pass: ")
    sources = re.findall(r'(?:src|href)="([^"]{5})', page)
    assert sources
    assert set(sources) == {"data:"}


def test_the_manifest_reports_how_it_was_made(run: Path) -> None:
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
        seconds = demo_pace.PASSES_OF_SAMPLING + 210 * demo_pace.PASSES_PER_STEP
        assert demo_pace.paced(fresh, seconds).train_dit.max_steps == steps
    for pass_s, steps in ((1000.0, 1), (1.0, 40), (1e-6, 100)):
        monkeypatch.setattr(demo_pace, "seconds_of_a_pass", lambda config, s=pass_s: s)
        assert demo_pace.shortened(fresh, 40 * demo_pace.PASSES_PER_STEP).train_dit.max_steps == steps


@pytest.fixture(scope="module")
def adapted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Fine-tune the model of `run`, as if it were the one that ships; return the run and what is printed."""
    folder = tmp_path_factory.mktemp("adapted")
    models = folder / "models"
    export_run(run / "dit-tiny", models / "phantom")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(printed):
        patch.setattr(shipped, "models_folder", lambda: models)
        patch.setattr(find, "models_folder", lambda: models)
        patch.setattr(demo_adapt, "STEPS", 2)
        patch.setattr(demo_adapt, "MIN_TRAINING_S", 1)
        demo_module.main(
            [
                "--videos=3",
                "--minutes=0.001",
                f"run.dir={folder}",
                f"phantom.folder={folder}/clips",
                f"cache.dir={folder}/cache",
                "phantom.videos=6",
                "data.holdout=0.5",
                "data.size=64",
                "train_vae.crop=null",
                f"vae.base={run.parent / 'base.json'}",
                "vae.weights=null",
                "denoiser.overrides={patch: 2, expand: 2, width: 32, depth: 2, heads: 2, d_state: 16, "
                "headdim: 16}",
                "data.labels=none",
                "train_dit.sample_steps=2",
                "tracking.trackers=[]",
            ]
        )
    return folder / "demo", printed.getvalue()


def test_fine_tuning_ends_when_its_time_is_over_and_shows_before_and_after(adapted: tuple[Path, str]) -> None:
    folder, printed = adapted
    for stage, section in (("vae", "train_vae"), ("dit-tiny", "train_dit")):
        steps = getattr(load_config(folder / stage / "config.yaml", outputs_anywhere=True), section).max_steps
        assert 0 < steps < 500
    for name in ("before", "after"):
        assert len(list((folder / name).glob("video-*.mp4"))) == 3
    assert printed.count("fine-tuning closed") == 2
    assert printed.count("stage 1 improves on its base") == 1
    page = re.sub('base64,[^"]*', "", (folder / "report.html").read_text(encoding="utf-8"))
    for words in ("Shipped model", "After fine-tuning", "phantom (held out)", "colour distance, of 255"):
        assert words in page, words
    assert str(folder) not in page


def test_from_scratch_the_demo_trains_from_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configs = []
    monkeypatch.setattr(
        demo_module, "demo", lambda config, *_: (configs.append(config), (tmp_path / "report.html", None))[1]
    )
    with pytest.raises(SystemExit) as leaving:
        demo_module.main(["--from", "scratch", "--check"])
    assert leaving.value.code == 1
    assert configs[0].phantom.look == "white-light"


def test_a_missing_model_is_named_before_anything_is_rendered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shipped, "models_folder", lambda: tmp_path)
    monkeypatch.setattr(demo_adapt, "clip_folder", lambda *_, **__: pytest.fail("clips are rendered"))
    with pytest.raises(BadInput, match="there is no folder phantom"):
        demo_module.main(["--config", "configs/phantom_clinic.yaml", f"run.dir={tmp_path}"])


def test_numbers_without_a_meaning_are_refused_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(BadInput, match="--videos is 0 but must be at least 1"):
        demo_module.main(["--from", "scratch", "--videos", "0"])
    with pytest.raises(SystemExit, match="2"):
        demo_module.main(["--minutes", "nan"])
    assert "must be a number of minutes greater than 0, not nan" in capsys.readouterr().err


def test_a_third_of_the_way_is_needed_in_colour_and_in_the_pyramid() -> None:
    """Clips on their way from one look to a darker one."""
    clips = [drifting_clip(seed) for seed in range(20)]
    target = [clip // 4 for clip in clips[:8]]
    held_out, before, moved = [clip // 4 for clip in clips[8:12]], clips[12:16], clips[16:20]

    def holds(part: float, gain_db: float = 1.0) -> list[bool]:
        after = [np.round((1 - 0.75 * part) * clip).astype(np.uint8) for clip in moved]
        outcome = compare_looks(target, held_out, before, after, (28.0, 28.0 + gain_db))
        assert len(outcome.rows()[0]) == len(outcome.header)
        return [criterion.met for criterion in outcome.criteria]

    assert holds(1.0) == [True, True, True]
    assert holds(0.1, gain_db=0.05) == [False, False, False]
