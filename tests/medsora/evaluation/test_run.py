"""medsora.evaluation.run, medsora.evaluation.bootstrap, medsora.evaluation.features.clip_set,
medsora.evaluation.features.extraction, medsora.evaluation.features.feature_store,
medsora.evaluation.report.degenerate, medsora.evaluation.report.paper_tables,
medsora.evaluation.report.plots, medsora.evaluation.report.results, medsora.evaluation.report.warnings: one
evaluation from two folders to files: the protocol, the cache, the notes, bad input.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsora.data.reading.video_io import read_frames, write_video
from medsora.errors import BadInput
from medsora.evaluation import evaluate
from medsora.evaluation.bootstrap import between_halves, bootstrap, replicate_weights, spread
from medsora.evaluation.features.clip_set import choose_clips
from medsora.evaluation.features.feature_store import Features, FeatureStore
from medsora.evaluation.metrics.measure import FrechetMeasure
from medsora.evaluation.metrics.pixel import PixelExtractor
from medsora.evaluation.report import plots
from medsora.evaluation.report.paper_tables import TABLE_2, paper_tables
from medsora.evaluation.report.results import Distance, Results
from tests.support.drifting_clips import bordered, drifting_clip, write_clips
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S

OPTIONS = {"frames": 4, "size": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Five real and four generated clips of eight frames, two clips of four frames each."""
    folder = tmp_path_factory.mktemp("clips")
    return write_clips(folder / "real", range(5)), write_clips(folder / "fake", range(10, 14))


@pytest.fixture
def run(
    tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Results]:
    """`run(**changes)`: evaluate in tmp_path, where the caches lie as well."""
    monkeypatch.chdir(tmp_path)

    def go(real: Path = folders[0], fake: Path = folders[1], **changes: object) -> Results:
        given = {**OPTIONS, "metrics": "motion,pixel", "out": tmp_path / "results", **changes}
        results = evaluate(real, fake, **given)
        assert results is not None
        return results

    return go


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    write = FeatureStore.write

    def counted(self: FeatureStore, indices: list[int], clips: np.ndarray) -> None:
        calls.extend([self.extractor.identity["name"]] * len(indices))
        write(self, indices, clips)

    monkeypatch.setattr(FeatureStore, "write", counted)
    return calls


# What is written


def test_files_figures_and_protocol(run: Callable[..., Results], tmp_path: Path) -> None:
    results = run(bootstrap=6, corpus="kvasir_capsule")
    out = tmp_path / "results"
    assert {path.name for path in out.iterdir()} == {
        "results.json",
        "results.md",
        "contact-sheet.png",
        "distances.png",
        "motion.png",
    }
    written = json.loads((out / "results.json").read_text())
    assert written["sets"]["real"]["clips_available"] == written["sets"]["real"]["clips_used"] == 10
    assert written["sets"]["generated"]["clips_used"] == 8
    assert written["sets"]["real"]["codecs"] == {"ffv1": 5}
    assert len(written["sets"]["real"]["content_sha256"]) == 64
    protocol = written["protocol"]
    assert protocol["name"] == "medsora"
    assert protocol["seed"] == 0
    assert protocol["size"] == [32, 32]
    assert "antialiasing" in protocol["resize"]
    assert protocol["extractors"]["motion"]["flow"].startswith("OpenCV DIS")
    assert {"torch", "scipy", "opencv-python-headless"} <= protocol["versions"].keys()
    distance = written["distances"]["untrained_pyramid_distance"]
    assert distance["real_halves"] > 0
    assert distance["spread"]["low"] <= distance["value"] <= distance["spread"]["high"]
    score = written["scores"]["flow_magnitude"]
    assert score["generated_spread"]["low"] <= score["generated"] <= score["generated_spread"]["high"]
    page = (out / "results.md").read_text()
    assert page == results.markdown()
    assert "paper" not in page  # it measured neither motion nor pixels
    assert "Intervals: 6 re-samplings of single clips (real) and single clips (generated)." in page
    few = "only 10 real clips where 2048 and 8 generated clips where 2048 were requested"
    assert any(few in warning for warning in results.warnings)
    assert any("already apart by untrained" in warning for warning in results.warnings)
    assert any("--bootstrap 6 is too few re-samplings" in warning for warning in results.warnings)


def test_the_paper_s_rows_are_the_paper_s() -> None:
    metrics = {"fvd": 123.4, "inception_score": 3.5, "frame_consistency": 0.91, "flow_magnitude": 2.0}
    page = paper_tables({"ours": metrics}, "cholectriplet", published=False)
    assert all(len(row) == 12 for row in TABLE_2.values())
    assert "| Method | FVD↓ | IS↑ |" in page
    assert "| MedSora-L | 400.60 | 3.98 |\n| ours | 123.40 | 3.50 |" in page
    assert "| MedSora-B | 94.19 |\n| ours | 91.00 |" in page
    assert "Colonoscopic" not in page


def test_the_paper_s_tables_appear_only_where_corpus_and_metric_match() -> None:
    def tables(metrics: dict[str, float], corpus: str | None, published: bool = True) -> str:
        return paper_tables({"ours": metrics}, corpus, published=published)

    assert tables({"fvd": 1.0, "frame_consistency": 0.9}, None) == ""
    assert tables({"flow_magnitude": 1.0, "sharpness": 2.0}, "colonoscopic") == ""
    only = tables({"fid": 9.0}, "colonoscopic")
    assert "| MedSora-L | 13.42 |\n| ours | 9.00 |" in only
    assert "| Endora | 13.41 |\n| ours | 9.00 |" in only
    assert "Table 3" not in only
    assert "| Endora | 72.25 | 2.54 |\n" in tables({"fvd": 1.0, "inception_score": 2.0}, "kvasir_capsule")
    assert "Endora's" not in tables({"fid": 9.0}, "colonoscopic", published=False)


def test_comparison_with_the_paper_names_every_difference() -> None:
    sides = {"real": 100, "generated": 2048}
    results = Results(
        {"name": "medsora", "frames": 8, "size": [128, 128], "seed": 0},
        {
            name: {"folder": name, "clips_used": n, "clips_available": n, "borders_cut_off": {}}
            for name, n in sides.items()
        },
        {"fid": Distance("FID", "", 9.0)},
    )
    assert "paper" not in results.markdown()
    results.corpus = "colonoscopic"
    wanted = (
        "Not the paper's protocol (real clips 100 instead of 2048, frames 8 instead of 16): do not compare"
    )
    assert wanted in results.markdown()
    results.sets["real"]["borders_cut_off"] = {"a.mp4": "cropped by top 4 pixels"}
    assert "frames cropped first" in results.markdown()


# Reproducible, whatever the batch


def test_batch_size_and_a_second_run_change_nothing(run: Callable[..., Results]) -> None:
    first = run(batch_size=4).metrics()
    again = run(batch_size=3, cache="elsewhere").metrics()
    assert all(first[key] == pytest.approx(again[key], rel=1e-6, nan_ok=True) for key in first)


def test_real_features_are_extracted_once(
    run: Callable[..., Results], tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found again by content: another place and other names are the same clips, other pixels are not."""
    first = run()
    calls = count_reads(monkeypatch)
    moved = tmp_path / "moved"
    shutil.copytree(folders[0], moved / "deeper")
    assert run(real=moved).metrics() == first.metrics()
    assert len(calls) == 3 * 8  # three extractors, the generated clips alone
    calls.clear()
    write_video(moved / "deeper" / "clip-0.mkv", drifting_clip(77), 10, lossless=True)
    run(real=moved)
    assert len(calls) == 3 * (8 + 10)


def test_a_damaged_store_is_made_again(run: Callable[..., Results], monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()
    calls = count_reads(monkeypatch)
    for damage in (lambda content: content[:200], lambda content: content[:-1] + bytes([content[-1] ^ 1])):
        for path in Path("runs/cache/features").glob("pixel-*.npy"):
            path.write_bytes(damage(path.read_bytes()))
        calls.clear()
        assert run().metrics() == first.metrics()
        assert calls.count("pixel") == 10 + 8


def test_each_clip_counts_once_and_a_seed_decides(folders: tuple[Path, Path]) -> None:
    chosen = {"frames": 4, "size": 32, "interval": 1, "count": 6}
    sets = [choose_clips(folders[0], seed=seed, **chosen) for seed in (0, 0, 1)]
    names = [[clips.name(i) for i in range(len(clips))] for clips in sets]
    assert names[0] == names[1] != names[2]
    assert len(set(names[0])) == 6
    assert sets[0].digest() == sets[1].digest() != sets[2].digest()
    assert sets[0].available == 10


def test_reading_ahead_keeps_order_and_batches(folders: tuple[Path, Path]) -> None:
    clips = choose_clips(folders[0], frames=4, size=32, interval=1, count=None, seed=0)
    batches = list(clips.read_ahead(range(1, 8), 3))
    assert [indices for indices, _ in batches] == [[1, 2, 3], [4, 5, 6], [7]]
    assert np.array_equal(batches[2][1][0], clips.read(7))


def test_each_side_has_a_limit_of_its_own(run: Callable[..., Results]) -> None:
    both = run(metrics="pixel", clips=9)
    assert [side["clips_used"] for side in both.sets.values()] == [9, 8]
    assert "8 generated clips" in both.markdown()
    assert "against 9 of 10 real clips" in both.markdown()
    apart = run(metrics="pixel", clips=(10, 3))
    assert [side["clips_used"] for side in apart.sets.values()] == [10, 3]
    assert apart.protocol["clips_asked"] == {"real": 10, "generated": 3}
    assert not any("requested" in warning for warning in apart.warnings)
    assert "3 of 8 generated clips" in apart.markdown()
    assert "only 8 generated clips where 20" in " ".join(run(metrics="pixel", clips=(4, 20)).warnings)


# Black borders


def test_borders_are_cut_off_as_in_training(
    run: Callable[..., Results], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for path in folders[0].iterdir():
        write_video(tmp_path / "bordered" / path.name, bordered(read_frames(path)), 10, lossless=True)
    plain = run(metrics="pixel")
    cut = run(metrics="pixel", real=tmp_path / "bordered")
    assert cut.metrics() == plain.metrics()
    assert "as in training" in cut.protocol["crop"]
    assert cut.sets["real"]["borders_cut_off"]["clip-0.mkv"].startswith("cropped by top 4, bottom 6")
    assert cut.sets["generated"]["borders_cut_off"] == {}
    assert any("cut off 5 real and 0 generated videos" in warning for warning in cut.warnings)
    whole = run(metrics="pixel", real=tmp_path / "bordered", crop="none")
    assert whole.distances["untrained_pyramid_distance"].value > (
        2 * cut.distances["untrained_pyramid_distance"].value
    )
    assert "whole frames" in whole.protocol["crop"]


def test_fixed_parts_are_cut_off_real_clips_alone(run: Callable[..., Results]) -> None:
    plain, cut = run(metrics="pixel"), run(metrics="pixel", crop=[0.25, 0, 0, 0.5])
    assert cut.sets["real"]["borders_cut_off"]["clip-0.mkv"] == "cropped by top 8, right 16 pixels"
    assert cut.sets["generated"] == plain.sets["generated"]
    assert cut.sets["real"]["content_sha256"] != plain.sets["real"]["content_sha256"]
    assert "(top 0.25, right 0.5)" in cut.protocol["crop"]
    assert not any("black borders" in warning for warning in cut.warnings)


def test_the_crop_changes_what_is_cached_only_where_there_are_borders(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "bordered" / "a.mkv", bordered(drifting_clip(0)), 10, lossless=True)
    chosen = {"frames": 4, "size": 32, "interval": 1, "count": None, "seed": 0}
    for folder, same in ((folders[0], True), (tmp_path / "bordered", False)):
        auto, none = (choose_clips(folder, crop=crop, **chosen) for crop in ("auto", "none"))
        assert (auto.digest() == none.digest()) == same
        assert np.array_equal(auto.read(0), none.read(0)) == same


# Re-sampling


def test_intervals_cover_the_value_and_bias_is_what_resampling_adds() -> None:
    random = np.random.default_rng(0)
    measure = FrechetMeasure("d", "distance", PixelExtractor(), slice(3))
    one = Features.of(random.normal(size=(30, 1, PixelExtractor.width)).astype(np.float32))
    two = Features.of(random.normal(0.5, 1, size=(30, 1, PixelExtractor.width)).astype(np.float32))
    value = measure.compare(one, two)["d"]
    found = spread(value, bootstrap(measure, one, [two], 60, seed=0)[0]["d"], least=0.0)
    assert found is not None
    assert found.low < value < found.high
    assert found.bias > 0  # repeated clips make a Fréchet distance larger
    assert spread(float("nan"), [1.0]) is None
    assert spread(1.0, [float("nan")]) is None
    assert spread(1.0, [1.1]) is None  # an interval without width would claim to be exact


def test_replicates_are_seeded_and_draw_as_many_as_there_are() -> None:
    first, second = (list(replicate_weights(20, 4, seed=3, side=1)) for _ in range(2))
    assert all(weights.sum() == 20 for weights in first)
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    assert not np.array_equal(first[0], first[1])


def test_whole_videos_are_drawn_where_there_are_enough(
    run: Callable[..., Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(
        "medsora.evaluation.run.bootstrap", lambda *given: drawn.append(given[5]) or bootstrap(*given)
    )
    many = write_clips(tmp_path / "many", range(10))
    results = run(real=many, metrics="pixel", bootstrap=20)
    (of_real, of_fake) = drawn[0]
    assert sorted(set(of_real)) == list(range(10))
    assert of_fake is None
    assert any("too few videos to re-sample (generated 4" in warning for warning in results.warnings)
    assert [side["bootstrap_draws"] for side in results.sets.values()] == ["whole videos", "single clips"]
    assert "re-samplings of whole videos (real) and single clips (generated)" in results.markdown()


def test_halves_need_four_clips() -> None:
    measure = FrechetMeasure("d", "distance", PixelExtractor(), slice(2))
    values = np.random.default_rng(0).normal(size=(4, 1, PixelExtractor.width)).astype(np.float32)
    assert between_halves(measure, Features.of(values[:3]), 0) == {}
    assert between_halves(measure, Features.of(values), 0)["d"] > 0


def test_an_undefined_distance_is_not_drawn_as_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda path, figure: figures.append(figure))
    unknown, known = Distance("direction", "degrees", math.nan), Distance("speed", "px", 1.0, 2.0)
    plots.draw_distances(Path("distances.png"), {"one": unknown, "two": known}, "real")
    figures[0].draw_without_rendering()
    first, second = ([label.get_text() for label in axes.get_xticklabels()] for axes in figures[0].axes)
    assert first == ["two halves of\nreal\n(undefined)", "generated\n(undefined)"]
    assert second == ["two halves of\nreal", "generated"]


# Bad input and what deserves a note


def test_same_folder_is_reported(run: Callable[..., Results], folders: tuple[Path, Path]) -> None:
    results = run(fake=folders[0])
    assert "are the same" in results.warnings[0]
    assert results.metrics()["untrained_pyramid_distance"] == pytest.approx(0, abs=1e-6)


def test_shared_files_are_reported(
    run: Callable[..., Results], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[1], tmp_path / "mixed")
    shutil.copy(folders[0] / "clip-0.mkv", tmp_path / "mixed" / "another-name.mkv")
    assert "1 file is byte for byte on both sides" in run(fake=tmp_path / "mixed").warnings[0]


def write_all(folder: Path, clips: list[np.ndarray]) -> Path:
    for number, clip in enumerate(clips):
        write_video(folder / f"{number}.mkv", clip, 10, lossless=True)
    return folder


@pytest.mark.parametrize("metrics", ["pixel", "motion"])
def test_sets_that_mean_nothing_are_reported_once(
    run: Callable[..., Results],
    tmp_path: Path,
    metrics: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever is measured: black, flat and repeated clips, and real clips in other files."""
    grey = np.full((4, 32, 32, 3), 90, np.uint8)
    moving = [drifting_clip(seed, frames=4) for seed in range(4)]
    real = [*(drifting_clip(seed, frames=4) for seed in range(20, 23)), np.full_like(grey, 3)]
    sets = {
        "all 3 generated clips are black.": [np.full_like(grey, level) for level in (0, 1, 9)],
        "all 2 generated clips are of one colour or without any detail.": [grey, grey + 20],
        "1 of 3 generated clips is black.": [*moving[:2], grey * 0],
        "all 3 generated clips are the same clip.": [moving[0]] * 3,
        "2 of 4 generated clips repeat another one pixel for pixel.": [moving[0]] * 3 + moving[1:2],
        "all 3 generated clips are real clips, pixel for pixel": real[:3],
        "1 of 2 generated clips is a real clip, pixel for pixel": [moving[0], real[1]],
    }
    write_all(tmp_path / "real", real)
    for number, (sentence, clips) in enumerate(sets.items()):
        fake = tmp_path / f"fake-{number}"
        for index, clip in enumerate(clips):
            tags = {"comment": f"{number}"}  # other bytes than the real file's
            write_video(fake / f"{index}.mkv", clip, 12, lossless=True, metadata=tags)
        results = run(real=tmp_path / "real", fake=fake, metrics=metrics)
        warnings = [
            w for w in results.warnings if "generated clips " in w and "requested" not in w and "DIS" not in w
        ]
        assert len(warnings) == 1
        assert warnings[0].startswith(sentence)
        assert results.warnings.count("1 of 4 real clips is black.") == 1
        assert capsys.readouterr().err.count(sentence) == 1


def test_reencoded_real_clips_among_the_generated_are_named(
    run: Callable[..., Results], tmp_path: Path
) -> None:
    real = write_all(tmp_path / "real", [drifting_clip(seed, frames=8) for seed in range(3)])
    for name, clip in (("a", drifting_clip(1, frames=8)), ("b", drifting_clip(30, frames=8))):
        write_video(tmp_path / "fake" / f"{name}.mp4", bordered(clip), 10)
    warnings = [w for w in run(real=real, fake=tmp_path / "fake").warnings if "re-encoded" in w]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "1 generated file shows what a real one shows, re-encoded (the first: a.mp4"
    )


def test_mirrored_and_reordered_clips_are_no_copies(run: Callable[..., Results], tmp_path: Path) -> None:
    """Their colours and sharpness are the same to the last bit, their pixels are not."""
    clips = [drifting_clip(seed, frames=4) for seed in range(2)]
    changed = [np.ascontiguousarray(clips[0][::-1]), clips[1][[1, 0, 3, 2]]]
    results = run(real=write_all(tmp_path / "real", clips), fake=write_all(tmp_path / "fake", changed))
    assert not any("pixel for pixel" in warning for warning in results.warnings)
    assert results.metrics()["colour_distance"] == 0


def test_generated_clips_that_jump_are_scored(run: Callable[..., Results], tmp_path: Path) -> None:
    """A recording is parted at a cut, and its parts may be too short; a jump of the model's is its fault."""
    for seed in range(4):
        frames = np.concatenate([drifting_clip(10 + seed), drifting_clip(20 + seed)])
        for side, file in (("real", frames), ("fake", frames[:, :, ::-1])):
            write_video(tmp_path / side / f"{seed}.mkv", np.ascontiguousarray(file), 10, lossless=True)
    write_clips(tmp_path / "real", range(30, 33), frames=16)
    results = run(real=tmp_path / "real", fake=tmp_path / "fake", frames=16)
    assert results.sets["real"]["clips_used"] == 3
    assert "1 hard cut (at frame 8)" in results.sets["real"]["left_out"]["0.mkv"]
    assert results.sets["generated"]["clips_used"] == 4
    assert results.sets["generated"]["left_out"] == {}


def test_dis_is_named_with_how_far_it_is_from_raft(run: Callable[..., Results]) -> None:
    results = run()
    assert sum("DIS differs from RAFT's by up to 2.6 times" in warning for warning in results.warnings) == 1
    assert "Optical flow: OpenCV DIS" in results.markdown()
    assert not any("DIS" in warning for warning in run(metrics="pixel").warnings)


def test_raft_at_hand_is_named_and_needs_no_note(
    run: Callable[..., Results], folders: tuple[Path, Path], raft_small_weights: Path
) -> None:
    results = run(fake=folders[1], weights={"raft_small": raft_small_weights}, metrics="motion", clips=2)
    assert "Optical flow: raft_small." in results.markdown()
    assert len(results.protocol["extractors"]["motion"]["weights_sha256"]) == 64
    assert not any("DIS" in warning for warning in results.warnings)


def test_weights_that_no_metric_reads_are_reported(run: Callable[..., Results], tmp_path: Path) -> None:
    """By default nothing reads FVD's."""
    warnings = run(metrics=None, weights={"fvd": tmp_path / "rgb_imagenet.pt"}).warnings
    (about,) = [warning for warning in warnings if "were given" in warning]
    assert about.startswith("the weights fvd were given, but no metric of motion, pixel reads them")
    assert not any("were given" in warning for warning in run(metrics="pixel").warnings)


def test_corrupt_and_short_files_are_left_out_and_reported(
    run: Callable[..., Results], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(folders[1], mixed)
    (mixed / "broken.mp4").write_bytes(b"\0" * 500)
    write_video(mixed / "short.mkv", drifting_clip(0, frames=2), 10, lossless=True)
    write_video(mixed / "longer.mkv", drifting_clip(1, frames=13), 10, lossless=True)
    results = run(fake=mixed)
    assert results.sets["generated"]["clips_used"] == 8 + 3
    assert set(results.sets["generated"]["left_out"]) == {"broken.mp4", "short.mkv"}
    assert any("left out of" in warning and "1 more" in warning for warning in results.warnings)


def test_unequal_compression_and_size_are_reported(run: Callable[..., Results], tmp_path: Path) -> None:
    for seed in range(2):
        write_video(tmp_path / "small" / f"{seed}.mp4", drifting_clip(seed, size=16), 10)
    warnings = " ".join(run(fake=tmp_path / "small").warnings)
    assert "the generated files are compressed with loss and the real ones without" in warnings
    assert "generated frames are enlarged to 32x32 pixels" in warnings


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"frames": 9}, "too short: 8 frames in a row, a clip spans 9"),
        ({"frames": 2}, "at least 3 frames, not 2"),
        ({"fake": Path("nowhere")}, "there is no folder nowhere"),
        ({"clips": 1}, "clips must be at least 2"),
        ({"clips": (9, 1)}, "clips must be at least 2, not 1"),
        ({"clips": (9, 9, 9)}, "one for the real and one for the generated side"),
        ({"crop": "black"}, "the crop is 'black' but must be auto, none, or four parts"),
        ({"crop": [0.5, 0.5, 0, 0]}, "the crop is .* but must be auto, none, or four parts"),
        ({"corpus": "colon"}, "must be one of colonoscopic"),
        ({"metrics": "fvd", "weights": {"fvd": "nothing.pt"}}, "nothing.pt does not exist"),
        ({"size": 8}, "at least 16 pixels"),
        ({"flow": "farneback"}, "flow must be one of auto, raft_large, raft_small, dis"),
        ({"size": 0}, "both sides must be at least 1 pixel"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"bootstrap": -1}, "bootstrap must be at least 0, not -1"),
        ({"weights": {"raft-small": "it.pth"}}, "weights cannot name 'raft-small'; there are fvd"),
    ],
)
def test_bad_input_is_one_sentence(run: Callable[..., Results], changes: dict, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        run(**changes)
    assert "\n" not in str(caught.value)


def test_folders_without_videos_or_with_one_clip(run: Callable[..., Results], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no videos"):
        run(fake=tmp_path / "empty")
    with pytest.raises(BadInput, match="1 clip of 4 frames, but a distribution needs two"):
        run(fake=write_clips(tmp_path / "one", range(1), frames=4))


def test_results_that_cannot_be_written(run: Callable[..., Results], tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(BadInput, match="a-file"):
        run(out=tmp_path / "a-file")


# Several processes


def test_two_runs_at_once_do_not_touch_each_other(folders: tuple[Path, Path], tmp_path: Path) -> None:
    clips = choose_clips(folders[0], frames=4, size=32, interval=1, count=2, seed=0)
    first, second = (FeatureStore(tmp_path, "same", PixelExtractor(), 2, 4) for _ in range(2))
    batch = np.stack([clips.read(0), clips.read(1)])
    first.begin()
    second.begin()
    first.write([0, 1], batch)
    first.finish()
    second.write([0], batch[:1])
    assert second.is_complete()  # the first one's file
    assert np.array_equal(second.read().values, PixelExtractor()(batch))


def test_an_interrupted_extraction_goes_on_where_it_was(
    run: Callable[..., Results], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the fifth batch of two: the clips before it are not shown to the extractors again."""
    straight = run(out="straight", cache="straight-cache", batch_size=2).metrics()
    write, batches = FeatureStore.write, iter(range(100))

    def write_until_asked(self: FeatureStore, indices: list[int], clips: np.ndarray) -> None:
        if next(batches) == 12:  # three extractors: four batches of real clips are done
            raise KeyboardInterrupt
        write(self, indices, clips)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write", write_until_asked)
        with pytest.raises(KeyboardInterrupt):
            run(cache="cache", batch_size=2)
    calls = count_reads(monkeypatch)
    assert run(cache="cache", batch_size=2).metrics() == straight
    assert len(calls) == 3 * (2 + 8)  # two of ten real clips, eight generated ones
    assert "features of 8 of 10 real clips are there from an interrupted run" in capsys.readouterr().err
    assert not [path for path in Path("cache").iterdir() if path.suffix in (".done", ".partial")]


def test_two_processes_give_the_figures_of_one(
    run: Callable[..., Results], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    alone = run().metrics()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "evaluate.py"), "--real", str(folders[0]), "--fake", str(folders[1])]
    command += ["--frames", "4", "--size", "32", "--out", "together", "--cache", "together-cache"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("# Evaluation") == 1
    written = json.loads((tmp_path / "together" / "results.json").read_text())
    for key, distance in written["distances"].items():
        assert distance["value"] == pytest.approx(alone[key], rel=1e-6)
