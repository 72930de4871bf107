"""medsora.data.labels, medsora.data.video_table: labels of videos: from folders, from a CSV; what is missing
or contradicts itself is one sentence.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from medsora.data.labels import Labels, read_labels
from medsora.errors import BadInput

VIDEOS = ["lower/polyp/a.avi", "upper/polyp/b.avi", "neither/c"]


def test_a_folder_is_a_label_wherever_it_lies() -> None:
    labels = read_labels("folders", "root", VIDEOS)
    assert labels.names == ("neither", "polyp")
    assert [labels.number(video) for video in VIDEOS] == [1, 1, 0]
    with pytest.raises(BadInput, match=r"'x.avi' lies in no sub-folder"):
        read_labels("folders", "root", [*VIDEOS, "x.avi"])


def test_a_folder_named_after_a_side_of_the_split_is_no_label() -> None:
    videos = ["polyp/train/a.avi", "polyp/test/b.avi", "Train/ulcer/val/c"]
    assert read_labels("folders", "root", videos).names == ("polyp", "ulcer")
    with pytest.raises(BadInput, match=r"'train/a.avi' lies in no sub-folder"):
        read_labels("folders", "root", ["train/a.avi"])


def test_a_resumed_run_keeps_the_rows_of_its_labels() -> None:
    labels = read_labels("folders", "root", VIDEOS, trained=["polyp", "gone", "neither"])
    assert labels.names == ("polyp", "gone", "neither")
    assert [labels.number(video) for video in VIDEOS] == [0, 0, 2]
    with pytest.raises(
        BadInput, match=r"trained with the labels adenoma, polyp, but root now has .* neither;"
    ):
        read_labels("folders", "root", VIDEOS, trained=["adenoma", "polyp"])


def test_labels_that_people_take_for_one_are_named() -> None:
    words = ["Polyp", "polyp", "polyp\u200b", "caf\u00e9", "cafe\u0301", "normal"]
    labels = read_labels("folders", "root", [f"{word}/{k}.avi" for k, word in enumerate([*words, "normal"])])
    (note,) = labels.notes
    assert note.startswith("labels that differ only in case or invisible characters: ")
    assert r"; cafe\u0301, caf\xe9; each is a class of its own" in note
    assert ": Polyp, polyp, polyp" in note
    assert "normal" not in note
    assert labels.counts().startswith("Polyp (1), ")
    assert "normal (2)" in labels.counts()
    assert Labels(("a", "b")).counts() == "a, b"
    assert read_labels("folders", "root", VIDEOS).notes == ()


def test_labels_in_another_encoding_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,label\na,Entz\u00fcndung\nb,normal\n", encoding="cp1252")
    labels = read_labels(str(path), tmp_path, VIDEOS)
    assert labels.names == (r"Entz\udcfcndung", "normal")
    assert labels.notes == (
        rf"{path} is not UTF-8 (in Excel: save as CSV UTF-8); a label reads Entz\udcfcndung",
    )
    path.write_text(path.read_text(encoding="cp1252"), encoding="utf-8")
    assert read_labels(str(path), tmp_path, VIDEOS).notes == ()


def test_none_is_none() -> None:
    assert read_labels("none", "root", VIDEOS) == Labels()
    assert Labels().number("a") == 0


@pytest.mark.parametrize("beside_the_videos", [True, False])
def test_a_csv_error_lists_its_contents(tmp_path: Path, monkeypatch, beside_the_videos: bool) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    monkeypatch.chdir(tmp_path)
    table = "file,label\na,ulcer\nupper\\polyp\\b.avi,\nbroken.avi,ulcer\n"
    (root if beside_the_videos else tmp_path).joinpath("l.csv").write_text(table)
    labels = read_labels("l.csv", root, VIDEOS, known=["broken.avi"])
    assert labels.names == ("ulcer",)
    assert [labels.number(video) for video in VIDEOS] == [0, 1, 1]  # 1: no label, empty or not listed


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("file,label\nmissing.avi,x\n", r"line 2: the file 'missing.avi' is not in the data folder"),
        ("file,label\na.avi,x\na,y\n", "line 3: 'a' is labelled both 'x' and 'y'"),
        ("file,kind\na.avi,x\n", "needs the columns 'file' and 'label'"),
        ("file,label\na.avi,\n", "gives no video a label"),
        ("file;label\na.avi;x\n", "labels.csv: the columns are separated by ';': save it with commas"),
        ("a.avi;x\n", "separated by ';'"),
        ("file\tlabel\na.avi\tx\n", "separated by tabs: save it with commas"),
        ("file,label\n,\n , \n", "lists no files"),
        ("file,label\na,polyp, flat\n", "line 2: it has more values than columns; put a value that contains"),
        ("upper/polyp/b.avi,polyp\na,polyp,flat\n", "line 2: it has more values than columns"),
        ("file,label,Label\na,polyp,ulcer\n", "has several columns 'label': rename or remove all but one"),
        ('file,label\na,"polyp\nb,ulcer\n', "a value extends over several lines; close its quotation mark"),
    ],
)
def test_a_csv_that_cannot_be_used(tmp_path: Path, table: str, sentence: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(table)
    with pytest.raises(BadInput, match=sentence):
        read_labels(str(path), tmp_path, VIDEOS)
    path.write_text(table, encoding="utf-16")
    with pytest.raises(BadInput, match="most likely UTF-16: save it as UTF-8"):
        read_labels(str(path), tmp_path, VIDEOS)
    with pytest.raises(BadInput, match="there is no label file"):
        read_labels(str(tmp_path / "other.csv"), tmp_path, VIDEOS)


def test_a_csv_may_have_spaces_before_quotes_and_commas_at_the_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    rows = '"a" , "polyp, flat", "two\nlines",\nb,ulcer,,,,\nneither/c, "ulcer" ,,\n'
    path.write_text(f' "file" , "label",note,\n{rows}')
    labels = read_labels(str(path), tmp_path, VIDEOS)
    assert labels.names == ("polyp, flat", "ulcer")
    assert [labels.number(video) for video in VIDEOS] == [0, 1, 1]


def test_a_csv_may_have_blank_rows_and_names_in_another_unicode_form(tmp_path: Path) -> None:
    composed, apart, path = "caf\u00e9", "cafe\u0301", tmp_path / "labels.csv"
    for in_table, video in ((composed, apart), (apart, composed)):
        for named in (f"{in_table}/b.avi", "b", f"x/{in_table}.avi"):
            rows = f",\n{named},polyp\n , \n\n"
            path.write_text(f"file,label\n{rows}", encoding="utf-8")
            videos = [f"{video}/b.avi", f"x/{video}.avi"]
            (found,) = read_labels(str(path), tmp_path, videos).of_video
            assert found == videos[named.startswith("x")]
    path.write_text(f"file,label\n{composed},a\n{apart},b\n", encoding="utf-8")  # both are there
    labels = read_labels(str(path), tmp_path, [f"{apart}.avi", f"{composed}.avi"])
    assert labels.of_video == {f"{apart}.avi": 1, f"{composed}.avi": 0}
