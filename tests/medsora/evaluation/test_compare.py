"""medsora.evaluation.compare, medsora.evaluation.report.comparison: several generated sets in one table:
equal counts, paired differences, ranks, files, bad input.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsora.data.phantom import write_phantom
from medsora.data.reading.video_io import write_video
from medsora.errors import BadInput
from medsora.evaluation import evaluate
from medsora.evaluation.bootstrap import bootstrap, differences, rank_ranges
from medsora.evaluation.command import main
from medsora.evaluation.compare import compare, name_folders
from medsora.evaluation.conditional.fresh_phantom import HELD_OUT_SEED
from medsora.evaluation.features.clip_set import REFERENCES, Pick, choose_clips
from medsora.evaluation.features.feature_store import Features, FeatureStore
from medsora.evaluation.metrics.measure import FrechetMeasure
from medsora.evaluation.metrics.pixel import PixelExtractor
from medsora.evaluation.report.comparison import CSV_COLUMNS, Comparison, Ranking
from medsora.sampling.synthetic import MANIFEST, TRAINED_ON_KEY
from tests.support.drifting_clips import drifting_clip, write_clips

OPTIONS = {"frames": 4, "size": 32, "metrics": "pixel", "bootstrap": 60}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Twelve real videos; two sets like them, of unequal number; one of noise. Their names need escaping."""
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for number in range(10):
        noise = random.integers(0, 256, size=(4, 32, 32, 3), dtype=np.uint8)
        write_video(folder / "noise" / f"clip-{number}.mkv", noise, 10, lossless=True)
    return {
        "real": write_clips(folder / "real", range(12), frames=4),
        "one_&": write_clips(folder / "one", range(20, 34), frames=4),
        "two": write_clips(folder / "two", range(40, 51), frames=4),
        "noise|%": folder / "noise",
    }


def test_real_clips_of_one_label_alone(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.name for path in folders["real"].glob("*.mkv"))
    rows = [f"{name},{'polyp' if number < 5 else 'neither'}" for number, name in enumerate(names[:-1])]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    command = ["--real", str(folders["real"]), "--fake", *map(str, (folders["one_&"], folders["two"]))]
    shape = ["--frames", "4", "--size", "32", "--labels", str(tmp_path / "labels.csv"), "--dry-run"]
    for label, count in (("polyp", 5), ("neither", 6)):
        main([*command, *shape, "--label", label])
        assert f"real: {count} of {count} clips" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"has the label 'ulcer'; .*labels\.csv names neither, polyp\."):
        main([*command, *shape, "--label", "ulcer"])
    with pytest.raises(BadInput, match="there is no label"):
        main([*command, *shape])
    alone = evaluate(
        folders["real"], folders["two"], out=tmp_path, label="polyp", labels=str(tmp_path / "labels.csv"),
        **OPTIONS | {"bootstrap": 0},
    )  # fmt: skip
    assert alone is not None
    assert alone.protocol["label of real clips"] == "polyp"
    assert [side["clips_used"] for side in alone.sets.values()] == [5, 11]


@pytest.fixture(scope="module")
def written(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """The comparison of the three sets, and the folder with its files."""
    out = tmp_path_factory.mktemp("compared")
    real, *_ = folders.values()
    fakes = {name: folder for name, folder in folders.items() if name != "real"}
    comparison = compare(real, fakes, out=out, cache=out / "cache", **OPTIONS)
    assert comparison is not None
    return comparison, out


def test_every_set_is_scored_on_equally_many_clips_as_alone(
    written: tuple[Comparison, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    comparison, out = written
    used = {name: results.sets["generated"]["clips_used"] for name, results in comparison.results.items()}
    assert used == {"one_&": 10, "two": 10, "noise|%": 10}
    assert any("scored on 10 clips, all that noise|% has" in warning for warning in comparison.warnings)
    alone = evaluate(
        folders["real"], folders["one_&"], out=tmp_path, cache=out / "cache", clips=(2048, 10), **OPTIONS
    )
    assert alone is not None
    assert alone.metrics() == comparison.results["one_&"].metrics()


def test_ranks_tell_noise_from_the_others_and_not_these_from_each_other(
    written: tuple[Comparison, Path],
) -> None:
    ranking = written[0].rankings["untrained_pyramid_distance"]
    assert [ranking.rank(name) for name in ranking.values] == ["1–2", "1–2", "3"]
    assert ranking.ties("one_&") == ["two"]
    assert ranking.ties("noise|%") == []
    assert "flow_magnitude" not in written[0].rankings
    assert "sharpness" not in written[0].rankings  # neither more nor less is better
    assert "sharpness_distance" in written[0].rankings


def test_files(written: tuple[Comparison, Path]) -> None:
    comparison, out = written
    page = (out / "comparison.md").read_text()
    assert "| noise\\|% |" in page
    assert "| one_& |" in page
    assert page == comparison.markdown()
    for warning in comparison.warnings:
        assert page.count(warning) == 1
        assert warning not in comparison.markdown(notes=False)
    rows = list(csv.DictReader((out / "comparison.csv").open()))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert len(rows) == 3 * 5  # three distances, two metrics of each set alone
    pyramid = {row["set"]: row for row in rows if row["figure"] == "untrained_pyramid_distance"}
    assert (pyramid["noise|%"]["rank_best"], pyramid["noise|%"]["rank_worst"]) == ("3", "3")
    assert pyramid["two"]["not_distinguishable_from"] == "one_&"
    assert float(pyramid["two"]["low"]) <= float(pyramid["two"]["value"]) <= float(pyramid["two"]["high"])
    table = (out / "comparison.tex").read_text()
    assert r"one\_\& & \textbf{" in table
    body = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {3}
    data = json.loads((out / "comparison.json").read_text())
    assert data["figures"]["untrained_pyramid_distance"]["sets"]["noise|%"]["rank"] == [3, 3]
    assert len(data["figures"]["untrained_pyramid_distance"]["differences"]) == 3
    assert data["figures"]["sharpness"]["differences"] == []
    report = (out / "report.html").read_text()
    assert "one_&amp;" in report
    assert "data:image/png" in report
    assert report.count("images legible") == 1  # the sheet; pixel alone draws no motion
    height = Image.open(out / "contact-sheet.png").height
    assert height == 4 * (128 + 2 + 20)  # a row for each set and the real one


@pytest.mark.parametrize(("seed", "reference"), [(HELD_OUT_SEED, REFERENCES[2]), (7, REFERENCES[1])])
def test_phantom_clips_are_not_called_real(
    folders: dict[str, Path], tmp_path: Path, seed: int, reference: str
) -> None:
    write_phantom(tmp_path / "phantom", 3, 4, 32, seed)
    options = {**OPTIONS, "bootstrap": 0, "metrics": "pixel,motion", "cache": tmp_path / "cache"}
    fakes = {"one": folders["one_&"], "two": folders["two"]}
    both = compare(tmp_path / "phantom", fakes, out=tmp_path / "both", **options)
    alone = evaluate(tmp_path / "phantom", fakes["one"], out=tmp_path / "alone", **options)
    pages = [both.markdown(), both.latex(), (tmp_path / "both/report.html").read_text(), alone.markdown()]
    for page in pages:
        assert reference in page
        assert not re.search(r"\breal\b", re.sub(r"data:[^\"]*", "", page))
    assert "two halves of " + reference in pages[0]
    assert "as " + reference in pages[0]
    assert r"flow magnitude, Wasserstein-1, px/frame $\downarrow$" in pages[1]


def test_a_second_run_extracts_only_what_is_new(
    written: tuple[Comparison, Path],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real set's features, and those of sets compared before, are found again by content."""
    extracted = []
    write = FeatureStore.write

    def counted(self: FeatureStore, indices: list[int], clips: np.ndarray) -> None:
        extracted.extend(indices)
        write(self, indices, clips)

    monkeypatch.setattr(FeatureStore, "write", counted)
    options = OPTIONS | {"out": tmp_path, "cache": written[1] / "cache", "clips": (2048, 10)}
    fakes = {"a": folders["one_&"], "b": folders["two"]}
    first = compare(folders["real"], fakes, **options)
    assert extracted == []
    write_clips(tmp_path / "new", range(60, 62), frames=4)
    compare(folders["real"], fakes | {"c": tmp_path / "new"}, **options | {"bootstrap": 0})
    assert len(extracted) == 2 * 2 * (
        1 + 2
    )  # a smaller count chooses other clips: 2 of each set, 2 extractors
    assert first is not None
    assert list(first.results) == ["a", "b"]


def test_without_resampling_nothing_is_ranked(
    written: tuple[Comparison, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    fakes = {"one": folders["one_&"], "two": folders["two"]}
    options = OPTIONS | {"bootstrap": 0, "clips": (2048, 10)}
    comparison = compare(folders["real"], fakes, out=tmp_path, cache=written[1] / "cache", **options)
    assert comparison is not None
    assert "not tested" in comparison.markdown()
    assert "(1" not in comparison.markdown().partition("## All metrics")[0].partition("## Overview")[2]
    assert "textbf" not in comparison.latex()


# What a difference and a rank mean


def samples(shifts: list[float], seed: int = 0) -> list[Features]:
    """Sets of 40 clips whose first three features are normal around each shift."""
    random = np.random.default_rng(seed)
    width = PixelExtractor.width
    return [Features.of(random.normal(shift, 1, size=(40, 1, width)).astype(np.float32)) for shift in shifts]


def test_pairing_by_the_real_clips_sees_what_overlapping_intervals_hide() -> None:
    """The real set's own chance is common to both: their difference varies less than independent draws'."""
    measure = FrechetMeasure("d", "distance", PixelExtractor(), slice(1))
    real, one, two = samples([0, 2.0, 2.6])
    real = Features.of(real.values[:8])  # few real clips: most of the chance is theirs
    paired = bootstrap(measure, real, [one, two], 100, seed=0)
    alone = [bootstrap(measure, real, [one], 100, seed=0)[0], bootstrap(measure, real, [two], 100, seed=1)[0]]
    assert paired[0]["d"] == alone[0]["d"]  # a set's own interval does not depend on the others
    values = [measure.compare(real, fake)["d"] for fake in (one, two)]
    spreads = [np.subtract(*(np.array(rows["d"]) for rows in rows_of)).std() for rows_of in (paired, alone)]
    assert spreads[0] < 0.7 * spreads[1]
    found = differences(values, [rows["d"] for rows in paired])[0, 1]
    assert found.value == values[0] - values[1]
    assert found.low < found.value < found.high


def test_sets_that_do_not_differ_are_rarely_distinguished() -> None:
    """All fifteen pairs of six equal sets are clear together in at most about 5 % of the trials."""
    random = np.random.default_rng(0)
    clear = 0
    for _ in range(60):
        clips = random.normal(size=(6, 50))
        draws = clips[:, random.integers(50, size=(200, 50))].mean(-1)
        found = differences(clips.mean(-1), draws)
        assert len(found) == 15
        clear += any(difference.is_clear for difference in found.values())
    assert clear <= 9


def test_undefined_figures_are_not_ranked() -> None:
    ranking = Ranking("lower", {"a": 1.0, "b": float("nan"), "c": 5.0}, {})
    assert ranking.rank("b") == "–"
    assert ranking.rank("a") == "not tested"
    assert differences([1.0, float("nan")], [[1.0, 1.1], [float("nan")] * 2]) == {}
    pairs = differences([1.0, float("nan"), 5.0], [[1.0, 1.1], [2.0, 2.0], [5.0, 5.2]])
    assert set(pairs) == {(0, 2)}
    assert Ranking("higher", ranking.values, {("a", "c"): pairs[0, 2]}).ranges() == {
        "a": (2, 2),
        "b": None,
        "c": (1, 1),
    }


def test_rank_ranges_when_neighbours_are_alike_and_ends_are_not() -> None:
    """One and two, two and three cannot be told apart, one and three can."""
    assert rank_ranges({(0, 2): -1.0}, [True] * 3) == [(1, 2), (1, 3), (2, 3)]


def test_whole_videos_are_drawn() -> None:
    """Ten videos of four equal clips each are ten clips' worth of chance, not forty's."""
    measure = FrechetMeasure("d", "distance", PixelExtractor(), slice(1))
    real, fake = samples([0, 1.0])
    repeated = Features.of(np.repeat(fake.values[:10], 4, axis=0))
    videos = [None, np.repeat(np.arange(10), 4)]
    of_clips, of_videos = (
        np.std(bootstrap(measure, real, [repeated], 100, 0, given)[0]["d"]) for given in (None, videos)
    )
    assert of_videos > 1.25 * of_clips  # the real side's chance is in both


@pytest.mark.parametrize("pick", [Pick.DRAWN, Pick.FIRST, Pick.RANDOM, Pick.EVERY])
def test_fewer_clips_are_those_that_a_smaller_count_chooses(folders: dict[str, Path], pick: Pick) -> None:
    given = {"frames": 2, "size": 32, "interval": 1, "seed": 3, "pick": pick}
    every, few = (choose_clips(folders["one_&"], count=count, **given) for count in (None, 5))
    assert len(every) > len(few) == 5
    assert every.reduced_to(5).clips == few.clips
    assert every.reduced_to(5).available == few.available


# Names and bad input


def test_folders_are_named_by_what_distinguishes_them(tmp_path: Path) -> None:
    given = ["runs/a/samples", "runs/b/samples", "peers", "real"]
    assert list(name_folders(given)) == ["a/samples", "b/samples", "peers", "real (generated)"]
    assert name_folders(["x", "y"], ["X", "Y"]) == {"X": Path("x"), "Y": Path("y")}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fake", "one", "two", "--names", "A"], "1 names for 2 folders"),
        (["--fake", "one", "two", "--names", "A", "A"], "must be printable, differ"),
        (["--fake", "one", "two", "--names", "A", "real"], "must be printable, differ"),
        (["--fake", "one", "two", "--names", "A", "\x1b[2J"], "must be printable, differ"),
        (["--fake", "one", "./one"], "given twice"),
        (["--fake", "one", "none"], "there is no folder none"),
        (["--fake", "one", "two", "--bootstrap", "5"], "ranks need at least 40"),
        (["--fake", "one", "two", "--memorised", "real"], "audits one model"),
        (["--fake", "one", "--names", "A"], "belong to a comparison"),
        (["--fake", "one", "--dry-run"], "belong to a comparison"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["real"].parent)
    with pytest.raises(BadInput, match=sentence) as caught:
        main(["--real", "real", *arguments])
    assert "\n" not in str(caught.value)


def test_a_dry_run_names_the_clips_and_extracts_nothing(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "--real",
        folders["real"],
        "--fake",
        folders["one_&"],
        folders["two"],
        "--dry-run",
        "--frames",
        "4",
    ]
    main([*map(str, given), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")])
    shown = capsys.readouterr().out
    assert f"one: 11 of 14 clips from {folders['one_&']}" in shown
    assert "scored on 11 clips, all that two has" in shown
    assert "200 re-samplings" in shown
    assert list(tmp_path.iterdir()) == []


def test_sets_whose_models_were_trained_at_other_speeds_need_a_word(
    tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """All are compared with the same real clips, so these can be read in one way only."""
    for name, interval in (("slow", 1), ("fast", 2), ("peer", None)):
        for number in range(2):
            write_video(tmp_path / name / f"{number}.mkv", drifting_clip(number, 4), 10, lossless=True)
        if interval:
            (tmp_path / name / MANIFEST).write_text(json.dumps({TRAINED_ON_KEY: {"interval": interval}}))

    def plan(*names: str, **options: int) -> None:
        fakes = {name: tmp_path / name for name in names}
        compare(folders["real"], fakes, dry_run=True, frames=4, metrics="pixel", **options)

    with pytest.raises(BadInput, match=r"interval 1, .*interval 2, .*give --interval"):
        plan("slow", "fast")
    plan("slow", "fast", interval=1)
    assert "clips of --real read with interval 1" in capsys.readouterr().out
    plan("slow", "peer")
    assert "peer: the clips do not name" in capsys.readouterr().out
