"""medsora.data.video_table, medsora.data.split, medsora.training.run.folder: files and folders whose names
are not UTF-8 are checked, split, labelled, trained on, resumed and evaluated.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medsora.config.schema import Config
from medsora.data.clips import ClipDataset, ClipSpec
from medsora.data.split import split_by_csv
from medsora.training.stage2.build import build_denoiser_stage
from tests.support import tiny_training as tiny
from tests.support.paths import ROOT
from tests.support.video_files import moving_frames, write_pictures

LATIN = os.fsdecode(b"caf\xe9")  # é in Latin-1


@pytest.fixture
def folder(clips: Path, tmp_path: Path) -> Path:
    """Two videos, three recordings as pictures and a poster, in a folder, all with such names."""
    folder = tmp_path / f"data {LATIN}"
    for number, video in enumerate(sorted(clips.glob("*.mkv"))[:2]):
        (folder / LATIN).mkdir(parents=True, exist_ok=True)
        shutil.copy(video, folder / LATIN / f"{LATIN}{number}.mkv")
    pictures = moving_frames(20, 32, 32)[:, ::-1]
    for number in range(3):
        write_pictures(folder / LATIN, f"{LATIN}{number}_{{:03d}}.png", pictures // (number + 1))
    write_pictures(folder / LATIN, [f"cover {LATIN}.png"], pictures[-1:])
    return folder


def config_of(folder: Path, vae_folder: Path, clips: Path, tmp_path: Path) -> Config:
    """Return a config of the folder under a name that a config may hold, which is plain text."""
    (tmp_path / "data").symlink_to(folder)
    changes = {"data__root": str(tmp_path / "data"), "data__labels": "folders", "vae__path": str(vae_folder)}
    changes |= {"train_dit__max_steps": 1, "train_dit__eval_every": 1, "alignment__weight": 0.0}
    return tiny.tiny_config(tmp_path, clips, **changes, data__group="/.*([0-9])[._]")


def test_the_check_prints_them(folder: Path, tmp_path: Path) -> None:
    arguments = ["check", str(folder), "--frames", "4", "--interval", "1", "--sheet", "sheet.png"]
    done = subprocess.run(
        [sys.executable, "-m", "medsora.data", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.decode("utf-8").split())
    for name in (r"caf\udce9/caf\udce91.mkv", r"caf\udce9/caf\udce92_*.png", r"cover caf\udce9.png"):
        assert name in text
    (cache,) = (tmp_path / "runs" / "cache").iterdir()
    assert len(json.loads(cache.read_text(encoding="utf-8"))["scans"]) == 5


def test_a_run_on_them_trains_resumes_and_keeps_its_split(
    folder: Path, vae_folder: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_dit.py", f"data.root={folder}"])
    config = config_of(folder, vae_folder, clips, tmp_path)
    run = tiny.train("dit", config, pages=True)
    stored = json.loads((run / "videos.json").read_text(encoding="utf-8"))["videos"]
    assert set(stored) == {f"{LATIN}/{LATIN}{k}.mkv" for k in range(2)} | {
        f"{LATIN}/{LATIN}{k}_*.png" for k in range(3)
    }
    (folder / LATIN / f"{LATIN}1.mkv").rename(folder / LATIN / f"{LATIN}9.mkv")
    stage = build_denoiser_stage(config)
    assert stage.samples.clips.labels.names == (r"caf\udce9",)
    text = (run / "messages.txt").read_text(encoding="utf-8")
    assert r"caf\udce9/caf\udce91.mkv) missing; 1 video (caf\udce9/caf\udce99.mkv) new" in text


def test_a_latin_1_table_names_latin_1_files(tmp_path: Path) -> None:
    names = [f"{LATIN}/a.mkv", "b.mkv", "c.mkv"]
    (tmp_path / "split.csv").write_bytes(b"file,split\ncaf\xe9/a.mkv,test\nb.mkv,train\nc.mkv,train\n")
    sides = split_by_csv(tmp_path / "split.csv", names, 0.1, 0)
    assert sides == {names[0]: "held-out", "b.mkv": "train", "c.mkv": "train"}


def test_clips_of_them_are_evaluated(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medsora.evaluation.features.clip_set import choose_clips

    monkeypatch.chdir(tmp_path)
    clips = choose_clips(folder, frames=8, size=32, interval=1, count=None, seed=0)
    assert {clips.name(k).partition("@")[0] for k in range(len(clips))} == {
        rf"caf\udce9/caf\udce9{k}.mkv" for k in range(2)
    } | {rf"caf\udce9/caf\udce9{k}_*.png" for k in range(3)}
    assert clips.read(len(clips) - 1).shape == (8, 32, 32, 3)
    assert json.loads(json.dumps(clips.facts()))["videos_used"] == 5
    report = ClipSpec(frames=4, interval=1, size=32, images=0).check(folder, tmp_path / "c.json")
    assert len(ClipDataset(report, ClipSpec(frames=4, interval=1, size=32, images=0)).videos) == 4
