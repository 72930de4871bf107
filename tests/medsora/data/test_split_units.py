"""medsora.data.split: folders named train, val and test, patients, copies, and what a resumed run keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsora.config.load import config_from_dict
from medsora.data.split import draw_split, read_groups, split_by_video
from medsora.errors import BadInput

NAMES = [f"p{number // 4}/video{number}.mp4" for number in range(40)]
FOLDERS = ["train/a.mp4", "train/b.mp4", "val/c.mp4", "Test/deep/d.mp4"]


def held_out(sides: dict[str, str]) -> set[str]:
    return {name for name, side in sides.items() if side == "held-out"}


def test_without_folders_patients_and_copies_it_is_the_split_by_video() -> None:
    split = draw_split(NAMES, 0.1, 3)
    assert split.sides == split_by_video(NAMES, 0.1, 3)
    assert split.notes == ()


@pytest.mark.parametrize("holdout", [0, 0.5])
def test_folders_named_train_val_and_test_are_obeyed(holdout: float) -> None:
    split = draw_split([*FOLDERS, "other/e.mp4", "f.mp4"], holdout, 0)
    assert split.sides == dict(zip(FOLDERS, ["train", "train", "held-out", "held-out"], strict=True))
    assert split.notes == (
        "folders named train, val or test decide the split: 2 videos (Test/deep/d.mp4, val/c.mp4) held out",
        "left out 2 videos (f.mp4, other/e.mp4): outside the folders named train, val or test",
    )


def test_a_test_folder_alone_is_held_out_and_a_train_folder_alone_is_divided() -> None:
    split = draw_split(["a.mp4", "b.mp4", "c.mp4", "test/d.mp4", "e/test"], 0.9, 0)
    assert held_out(split.sides) == {"test/d.mp4", "e/test"}
    videos = [f"train/{number}.mp4" for number in range(10)]
    split = draw_split([*videos, "x.mp4"], 0.2, 0)
    assert split.sides == split_by_video(videos, 0.2, 0)


def test_a_csv_overrules_folders(tmp_path: Path) -> None:
    table = tmp_path / "split.csv"
    table.write_text("file,split\ntrain/a.mp4,test\nval/c.mp4,train\n")
    split = draw_split(FOLDERS, 0.1, 0, split_csv=table)
    assert split.sides == {"train/a.mp4": "held-out", "val/c.mp4": "train"}
    assert split.notes == (f"left out 2 videos (Test/deep/d.mp4, train/b.mp4): {table} does not list them",)


@pytest.mark.parametrize("group", ["folder", r"(p\d)/", "patients.csv"])
def test_a_patient_s_videos_stay_on_one_side(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("patients.csv").write_text("file,patient\n" + "".join(f"{n},{n[:2]}\n" for n in NAMES))
    split = draw_split(NAMES, 0.2, 0, group=group)
    assert split.sides.keys() == set(NAMES)
    assert len(held_out(split.sides)) == 8
    assert len({name[:2] for name in held_out(split.sides)}) == 2
    by_csv = draw_split(NAMES, 0.2, 0, split_csv="patients.csv")
    assert by_csv.sides == split.sides


def test_what_a_group_does_not_name_stands_alone() -> None:
    names = ["a1.mp4", "a2.mp4", "other.mp4", "x/b.mp4"]
    assert read_groups(r"([ab])\d", names) == {"a1.mp4": "a", "a2.mp4": "a"}
    assert read_groups("folder", names) == {"x/b.mp4": "x"}
    assert len(draw_split(names, 0.5, 0, group=r"([ab])\d").sides) == 4
    with pytest.raises(BadInput, match=r"data.group is \(z\), but that matches no video's path, such as 'a1"):
        read_groups("(z)", names)


def test_a_video_of_two_patients_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("file,patient\nvideo0,Anna\np0/video0.mp4,\nvideo0.mp4,Ben\n")
    with pytest.raises(BadInput, match=r"line 4: 'video0.mp4' is listed for two patients"):
        draw_split(NAMES, 0.2, 0, group=str(table))


def test_the_notes_name_what_a_group_misses_and_groups_that_look_alike(tmp_path: Path) -> None:
    names = ["Anna_1.mp4", "anna_2.mp4", "Ben_3.mp4", "x.mp4", "y.mp4"]
    missed = "data.group: 3 groups in 5 videos; 2 videos (x.mp4, y.mp4) without a group stand alone"
    alike = (
        "groups that differ only in case or invisible characters: Anna, anna; each is a patient of its own"
    )
    for kept in ({}, dict.fromkeys(names, "train")):
        first, second = draw_split(names, 0.5, 0, group="(.*)_", kept=kept).notes
        assert (first, second.partition(":")[0]) == (missed, alike.partition(":")[0])
        assert second.startswith(alike)
    assert draw_split(names[:3], 0.5, 0, group="([A-z])").notes[0] == "data.group: 3 groups in 3 videos"
    table = tmp_path / "patients.csv"
    table.write_text("file,patient\nAnna_1,Zo\u00eb\nanna_2,Zoe\u0308\nBen_3,\nx,X\n", encoding="utf-8")
    by_group = draw_split(names, 0.5, 0, group=str(table)).notes
    assert "2 videos (Ben_3.mp4, y.mp4) without a group stand alone" in by_group[0]
    assert r": Zoe\u0308, Zo\xeb; each is" in by_group[1]
    note, alike = draw_split(names, 0.5, 0, split_csv=table).notes
    assert note.startswith("left out 1 video (y.mp4)")
    assert r"Zo\xeb" in alike


@pytest.mark.parametrize(
    ("pattern", "sentence"), [("p1", "with 0 groups"), ("(a)(b)", "with 2 groups"), ("(", "is no pattern")]
)
def test_a_group_that_is_no_pattern_is_refused(pattern: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        config_from_dict({"data": {"group": pattern}}, "c")


def test_held_out_wins_over_a_training_copy_with_a_note() -> None:
    split = draw_split(FOLDERS, 0.1, 0, copies=[("train/b.mp4", "val/c.mp4")])
    assert held_out(split.sides) == {"train/b.mp4", "val/c.mp4", "Test/deep/d.mp4"}
    assert split.notes[-1].startswith("held out 1 video (train/b.mp4) that would be trained on")


def test_copies_and_patients_make_one_unit() -> None:
    copies = [("p0/video0.mp4", "p5/video20.mp4"), ("p5/video21.mp4", "p7/video28.mp4")]
    for seed in range(10):
        sides = draw_split(NAMES, 0.3, seed, group="folder", copies=copies).sides
        assert len({sides[name] for name in NAMES if name[:2] in ("p0", "p5", "p7")}) == 1


def test_a_resumed_run_keeps_its_sides() -> None:
    kept = split_by_video(NAMES, 0.1, 0)
    held, trained = sorted(held_out(kept)), sorted(set(NAMES) - held_out(kept))
    left = [name for name in NAMES if name not in (held[0], trained[0])]
    new = [f"new{number}.mp4" for number in range(30)]
    copies = [(held[1], new[0]), (trained[1], new[1]), (held[0], new[2])]
    sides = draw_split([*left, *new], 0.5, 0, kept=kept, copies=copies).sides
    assert {name: sides[name] for name in left} == {name: kept[name] for name in left}
    assert held_out(sides) - set(held) == {new[0], new[2]}  # copies of held-out videos, of a missing one too


@pytest.mark.parametrize(
    ("names", "copies"),
    [
        (["test/a.mp4", "train/b.mp4"], []),  # by its name
        (["test/moved.mp4", "train/b.mp4"], [("test/moved.mp4", "test/a.mp4")]),  # by its content
    ],
)
def test_a_trained_video_that_would_be_held_out_is_refused(names: list[str], copies: list) -> None:
    kept = {"test/a.mp4": "train", "train/b.mp4": "train"}
    with pytest.raises(BadInput, match=f"'{names[0]}' would be held out now, but the run was trained on it"):
        draw_split(names, 0.1, 0, kept=kept, copies=copies)
    assert held_out(draw_split(names, 0.1, 0, kept=kept, copies=copies, by_folder=False).sides) == set()
