"""Train and held-out: by video, by patient, never both, and stable."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from medsora.data.split import split_by_csv, split_by_video
from medsora.errors import BadInput

NAMES = [f"p{number // 4}/video{number}.mp4" for number in range(40)]


def held_out(split: dict[str, str]) -> set[str]:
    return {name for name, side in split.items() if side == "held-out"}


def test_the_requested_part_is_held_out() -> None:
    split = split_by_video(NAMES, 0.1, seed=0)
    assert split.keys() == set(NAMES)
    assert set(split.values()) == {"train", "held-out"}
    assert len(held_out(split)) == 4
    assert split == split_by_video(list(reversed(NAMES)), 0.1, seed=0)
    assert held_out(split) != held_out(split_by_video(NAMES, 0.1, seed=1))


def test_at_least_one_is_held_out_and_at_least_one_trained_on() -> None:
    assert len(held_out(split_by_video(NAMES[:2], 0.01, 0))) == 1
    assert len(held_out(split_by_video(NAMES[:3], 0.99, 0))) == 2
    assert held_out(split_by_video(NAMES[:1], 0.5, 0)) == set()
    assert held_out(split_by_video(NAMES, 0.0, 0)) == set()
    with pytest.raises(BadInput, match="less than 1"):
        split_by_video(NAMES, 1.0, 0)


def test_a_video_that_joins_moves_few_others() -> None:
    before, after = split_by_video(NAMES, 0.1, 0), split_by_video([*NAMES, "new.mp4"], 0.1, 0)
    assert len(held_out(before) ^ held_out(after)) <= 2


def test_a_csv_may_set_the_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "split.csv"
    table.write_text(
        "\ufeffFile, Split\np0/video0.mp4,train\nvideo1.mp4,TEST\nvideo2,val\n", encoding="utf-8"
    )
    with caplog.at_level(logging.WARNING):
        split = split_by_csv(table, NAMES[:4], 0.1, 0)
    assert split == {NAMES[0]: "train", NAMES[1]: "held-out", NAMES[2]: "held-out"}
    assert "left out 1 videos" in caplog.text


def test_patients_never_straddle(tmp_path: Path) -> None:
    table = tmp_path / "split.csv"
    table.write_text("file,patient\n" + "".join(f"{name},{name[:2]}\n" for name in NAMES))
    split = split_by_csv(table, NAMES, 0.2, 0)
    sides = {patient: {split[name] for name in NAMES if name.startswith(patient)} for patient in ("p0", "p5")}
    assert all(len(side) == 1 for side in sides.values())
    assert len({name.split("/")[0] for name in held_out(split)}) == 2
    assert len(held_out(split)) == 8


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("file,split\nother.mp4,train\n", "line 2: the file 'other.mp4' is not in the data folder"),
        ("name,split\na,train\n", "needs the columns 'file' and"),
        ("file\nvideo1.mp4\n", "needs the columns"),
        ("", "needs the columns"),
        ("file,split\n", "lists no files"),
        ("file,split\nvideo1.mp4,maybe\n", "must be train or held-out"),
        ("file,split\nvideo1.mp4,train\np0/video1.mp4,test\n", "both in train and in held-out"),
        (
            "file,patient,split\nvideo1.mp4,x,train\nvideo2.mp4,x,test\n",
            "'x' is both in train and in held-out",
        ),
        ("file,patient\nvideo1.mp4,x\nvideo1,y\n", "listed for two patients"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused_with_one_sentence(
    tmp_path: Path, content: str, sentence: str
) -> None:
    table = tmp_path / "split.csv"
    table.write_text(content)
    with pytest.raises(BadInput, match=sentence):
        split_by_csv(table, NAMES, 0.1, 0)


def test_a_missing_csv_and_a_bad_video_in_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no split file"):
        split_by_csv(tmp_path / "absent.csv", NAMES, 0.1, 0)
    table = tmp_path / "split.csv"
    table.write_text("file,split\nvideo0.mp4,train\nbroken.mp4,test\n")
    assert split_by_csv(table, NAMES[:1], 0.1, 0, known=["broken.mp4"]) == {NAMES[0]: "train"}
