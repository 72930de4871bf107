"""medsora.training.open_clips, medsora.data.clips: what a changed folder does to a run that is resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medsora.config.schema import Config
from medsora.data.reading.video_io import read_frames
from medsora.errors import BadInput
from medsora.runtime.digests import unsealed
from medsora.training.dry_run.report import Findings, count_clips
from medsora.training.open_clips import denoiser_clip_spec
from medsora.training.stage1.build import build_vae_stage
from medsora.training.stage2.build import build_denoiser_stage
from medsora.training.stage2.stage import Stage2
from tests.support import tiny_training as tiny
from tests.support.video_files import encode, moving_frames


@pytest.fixture
def config(clips: Path, vae_folder: Path, tmp_path: Path) -> Config:
    """A config of a copy of the clips, one or two of five held out, that trains for one step."""
    shutil.copytree(clips, tmp_path / "videos")
    changes = {"vae__path": str(vae_folder), "train_dit__max_steps": 1, "train_vae__max_steps": 1}
    changes |= {"data__root": str(tmp_path / "videos"), "data__holdout": 0.4, "alignment__weight": 0.0}
    return tiny.tiny_config(tmp_path, clips, **changes, train_dit__eval_every=100)


def sides(stage: Stage2) -> tuple[set[str], set[str]]:
    return tuple({v.source.name for v in part.clips.videos} for part in (stage.samples, stage.held_out))


def messages(config: Config) -> str:
    return (config.dit_dir / "messages.txt").read_text()


def dry_run_notes(config: Config, capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    count_clips(Findings(), config, denoiser_clip_spec(config), config.dit_dir)
    return capsys.readouterr().out


def test_a_resumed_run_keeps_its_sides_and_reports_what_changed(
    config: Config, capsys: pytest.CaptureFixture
) -> None:
    tiny.train("dit", config)
    videos, trained, held_out = Path(config.data.root), *sides(build_denoiser_stage(config))
    assert (len(trained), len(held_out)) == (3, 2)
    assert "has changed" not in messages(config) + dry_run_notes(config, capsys)
    gone, renamed = min(held_out), max(held_out)
    (videos / gone).unlink()
    (videos / renamed).rename(videos / "renamed.mkv")
    shutil.copy(videos / min(trained), videos / "copy.mkv")
    frames = np.pad(read_frames(videos / min(trained)), [(0, 0), (0, 0), (8, 24), (0, 0)])
    encode(videos / "bordered.mkv", frames, "ffv1", "bgr0")
    planned, new = dry_run_notes(config, capsys), {"bordered.mkv", "copy.mkv"}
    assert "has changed" not in messages(config)
    for _ in range(2):
        assert sides(build_denoiser_stage(config)) == (trained | new, {"renamed.mkv"})
    first, second = [line for line in messages(config).splitlines() if "has changed" in line]
    assert first[first.index("the folder") :] in planned
    assert (
        f"2 videos ({gone}, {renamed}) missing; 2 videos (bordered.mkv, copy.mkv) new and trained on" in first
    )
    assert "1 video (renamed.mkv) new and held out. Earlier videos keep their side" in first
    assert second.endswith(
        f"2 videos ({gone}, {renamed}) missing. Earlier videos keep their side of the split."
    )
    shutil.copy(videos / min(trained), videos / "renamed.mkv")
    build_denoiser_stage(config)
    assert "1 video (renamed.mkv) with other frames" in messages(config)


def test_what_is_printed_of_the_clips_is_kept_with_the_run(config: Config, tmp_path: Path, capsys) -> None:
    (Path(config.data.root) / "empty.mp4").touch()
    config.data.labels = str(tmp_path / "some.csv")
    Path(config.data.labels).write_text("file,label\nphantom-00000,polyp\n")
    for _ in range(2):
        capsys.readouterr()
        build_denoiser_stage(config).run._lock.close()
        texts = capsys.readouterr().err, messages(config)
        for words in ("left out empty.mp4: ", f"no label in {config.data.labels}: "):
            assert [text.count(words) for text in texts] == [1, 1]


def test_labels_that_changed_are_reported_and_runs_without_stored_ones_go_on(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = sorted(path.name for path in Path(config.data.root).glob("*.mkv"))
    table = tmp_path / "labels.csv"

    def label(*words: str) -> None:
        rows = [f"{name},{word}\n" for name, word in zip(names, words, strict=True)]
        table.write_text("file,label\n" + "".join(rows))

    config.data.labels = str(table)
    label("normal", "Polyp", "Polyp", "normal", "")
    run = tiny.train("dit", config)
    label("normal", "normal", "", "normal", "Polyp")
    planned = dry_run_notes(config, capsys)
    for _ in range(2):
        build_denoiser_stage(config).run._lock.close()
    (line,) = [line for line in messages(config).splitlines() if "has changed" in line]
    assert f"began: 3 videos ({', '.join(names[i] for i in (1, 2, 4))}) with other labels. Earlier" in line
    assert line[line.index("the folder") :] in planned
    stored = unsealed(json.loads((run / "videos.json").read_text()))
    words = [stored["videos"][name].pop() for name in names]  # earlier versions wrote none
    assert words == ["normal", "normal", "", "normal", "Polyp"]
    (run / "videos.json").write_text(json.dumps(stored))
    label("Polyp", "normal", "", "normal", "Polyp")
    build_denoiser_stage(config)
    assert messages(config).count("has changed") == 1


def test_a_trained_video_that_moves_to_a_test_folder_is_refused(config: Config) -> None:
    tiny.train("dit", config)
    videos, trained, _ = Path(config.data.root), *sides(build_denoiser_stage(config))
    (videos / "test").mkdir()
    (videos / min(trained)).rename(videos / "test" / "other.mkv")
    with pytest.raises(BadInput, match=r"'test/other.mkv' would be held out now, but the run was trained on"):
        build_denoiser_stage(config)


def test_a_run_of_an_earlier_version_goes_on_with_its_split_and_stores_it(config: Config) -> None:
    videos = Path(config.data.root)
    (videos / "test").mkdir()
    for name in ("phantom-00000.mkv", "phantom-00001.mkv", "phantom-00002.mkv"):
        (videos / name).rename(videos / "test" / name)
    run = tiny.train("dit", config)
    assert sides(build_denoiser_stage(config))[1] == {f"test/phantom-0000{number}.mkv" for number in range(3)}
    (run / "videos.json").unlink()
    before = sides(build_denoiser_stage(config))
    assert [len(names) for names in before] == [3, 2]
    assert any(name.startswith("test/") for name in before[0])
    stored = json.loads((run / "videos.json").read_text())
    assert {name for name, video in stored["videos"].items() if video[0] == "held-out"} == before[1]
    assert sides(build_denoiser_stage(config)) == before
    text = (run / "videos.json").read_text()
    for damage in ("{}", text.replace("held-out", "train", 1)):
        (run / "videos.json").write_text(damage)
        with pytest.raises(BadInput, match=r"videos\.json, the list of the run's videos, is damaged"):
            build_denoiser_stage(config)


def test_both_stages_draw_the_same_split(config: Config) -> None:
    """From all videos: those of 16 frames serve stage 1 alone, which has no use for a frame more."""
    videos = Path(config.data.root)
    for path in sorted(videos.glob("*.mkv"))[:3]:
        frames = read_frames(path, 0, 16, 1, tiny.SIZE)
        path.unlink()
        encode(path, frames, "ffv1", "bgr0")
    config.run.seed = 1
    first, second = build_vae_stage(config), build_denoiser_stage(config)
    trained, held_out = ({v.source.name for v in c.videos} for c in (first.clips, first.held_out))
    assert (len(trained), len(held_out)) == (3, 2)
    assert sides(second)[0] <= trained
    assert not sides(second)[0] & held_out


def test_held_out_videos_that_the_vae_was_trained_on_are_named(
    config: Config, capsys: pytest.CaptureFixture
) -> None:
    config.vae.path = None
    tiny.train("vae", config)
    _, same = sides(build_denoiser_stage(config))
    assert "held out here" not in capsys.readouterr().err
    trained = {path.name for path in Path(config.data.root).glob("*.mkv")} - same
    table = Path(config.data.root, "split.csv")
    rows = [f"{name},{'test' if name in (min(trained), min(same)) else 'train'}\n" for name in trained | same]
    table.write_text("file,split\n" + "".join(rows))
    config.data.split_csv, run = str(table), config.vae_dir
    for number, place in enumerate((run, run.parent, run / "final")):
        config.vae.path, config.run.name = str(place), f"other {number}"
        build_denoiser_stage(config)
        note = f"the VAE of {place} was trained on 1 video ({min(trained)}), held out here"
        assert note in messages(config)
    encode(Path(config.data.root, min(trained)), moving_frames(20, 32, 32), "ffv1", "bgr0")
    capsys.readouterr()
    config.run.name = "another"
    build_denoiser_stage(config)
    assert "held out here" not in capsys.readouterr().err
