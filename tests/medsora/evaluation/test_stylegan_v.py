"""medsora.evaluation.stylegan_v: which frames the published protocol compares, how they are prepared, and the
distance; the networks are stand-ins, whose weights are not at hand.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from medsora.data.reading.video_io import write_video
from medsora.errors import BadInput
from medsora.evaluation import evaluate, stylegan_v
from medsora.evaluation.features.feature_store import Extractor
from medsora.evaluation.metrics import inception, registry
from medsora.evaluation.report.results import Results
from medsora.sampling.synthetic import synthetic_tags
from tests.support.drifting_clips import drifting_clip

REAL_FRAMES, FAKE_FRAMES = (9, 6, 4, 3), (5, 4, 7)
OPTIONS = {"protocol": "stylegan-v", "frames": 4, "size": 16}
seen: dict[str, list[np.ndarray]] = {}


class StandIn(Extractor):
    """A network's place: it keeps every clip that it is shown and returns mean colours."""

    def __init__(self, weights: dict, device: str = "cpu") -> None:
        self.identity = {"name": self.name, "version": 1}

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        seen.setdefault(self.name, []).extend(clips)
        features = np.zeros((*clips.shape[: 2 if self.by_frame else 1], self.width), np.float32)
        features[..., :3] = clips.mean((2, 3) if self.by_frame else (1, 2, 3))
        features[..., 8:11] = features[..., :3] / 20  # logits
        return features if self.by_frame else features[:, None]


class Video(StandIn):
    name, width, by_frame = "i3d", 16, False


class Frame(StandIn):
    name, width, by_frame = "inception", 16, True

    def rows(self, frames: int) -> int:
        return frames


def read(seed: int, frames: int) -> np.ndarray:
    return drifting_clip(seed, frames=frames, size=24)[:, :, 2:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Frames of 24x22 pixels; the last real video is too short for a clip."""
    folder = tmp_path_factory.mktemp("clips")
    for side, lengths, seed in (("real", REAL_FRAMES, 0), ("fake", FAKE_FRAMES, 50)):
        for number, frames in enumerate(lengths):
            clip = np.ascontiguousarray(read(seed + number, frames))
            tags = synthetic_tags("a test", {"interval": 3} if side == "fake" else {})
            write_video(folder / side / f"{number}.mkv", clip, 8, lossless=True, metadata=tags)
    return folder / "real", folder / "fake"


@pytest.fixture
def run(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Results]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "I3DExtractor", Video)
    monkeypatch.setattr(inception, "InceptionExtractor", Frame)
    for name, value in {"FID_COLUMNS": slice(8), "LOGIT_COLUMNS": slice(8, 16), "SPLITS": 2}.items():
        monkeypatch.setattr(inception, name, value)
    seen.clear()
    return lambda **changes: evaluate(*folders, **{**OPTIONS, **changes})


def prepared(frames: np.ndarray, size: int = 16) -> np.ndarray:
    """Lanczos to a short side of `size`, the middle, JPEG of quality 75: 24x22 -> 17x16 -> 16x16."""
    done = []
    for frame in frames:
        picture = Image.fromarray(np.ascontiguousarray(frame)).resize((16, 17), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        picture.crop((0, 0, size, size)).save(file, "JPEG", quality=75)
        done.append(np.asarray(Image.open(file)))
    return np.stack(done)


def test_the_frames_that_are_compared(run: Callable[..., Results]) -> None:
    """One window of each long enough real video, frames 0 to 3 of each generated one; all single frames."""
    results = run()
    clips, frames = seen["i3d"], np.concatenate(seen["inception"])
    real = [prepared(read(seed, n)) for seed, n in enumerate(REAL_FRAMES)]
    fake = [prepared(read(50 + seed, n)) for seed, n in enumerate(FAKE_FRAMES)]
    assert len(clips) == 3 + 3
    for clip, video in zip(clips[:3], real[:3], strict=True):
        assert any(np.array_equal(clip, video[start : start + 4]) for start in range(len(video) - 3))
    assert np.array_equal(np.stack(clips[3:]), np.stack([video[:4] for video in fake]))
    assert np.array_equal(frames, np.concatenate([*real, *fake]))
    sets = results.sets
    assert (sets["real"]["clips_used"], sets["generated"]["clips_used"]) == (3, 3)
    assert (sets["real frames"]["clips_used"], sets["generated frames"]["clips_used"]) == (22, 16)


def test_windows_are_random_and_seeded(run: Callable[..., Results]) -> None:
    chosen = set()
    for seed in (0, 0, 1, 2, 3):
        seen.clear()
        run(metrics="fvd", seed=seed, cache=f"cache-{len(chosen)}-{seed}")
        assert "inception" not in seen
        chosen.add(np.stack(seen["i3d"][:3]).tobytes())
    assert len(chosen) > 1
    assert len(chosen) < 5  # the same seed, the same windows


def test_counts_are_limited_in_order_of_names(
    run: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stylegan_v, "MAX_CLIPS", 2)
    monkeypatch.setattr(stylegan_v, "MAX_GENERATED_FRAMES", 7)
    sets = run().sets
    assert np.array_equal(seen["i3d"][3], prepared(read(51, 4)))  # the second of two generated clips
    assert len(seen["i3d"]) == 4
    assert [sets[name]["clips_used"] for name in ("real frames", "generated frames")] == [22, 7]


def test_distances_divide_covariances_by_n(run: Callable[..., Results]) -> None:
    metrics = run().metrics()
    expected = {}
    for key, items, count in (("fvd", seen["i3d"], 3), ("fid", np.concatenate(seen["inception"]), 22)):
        means = np.array([item.reshape(-1, 3).mean(0) for item in items])
        one, two = means[:count], means[count:]
        if key == "fvd":  # the stand-in's logits are features too
            one, two = (np.concatenate([part, part / 20], 1) for part in (one, two))
        first, second = (np.cov(part.T, bias=True) for part in (one, two))
        root = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
        shift = np.square(one.mean(0) - two.mean(0)).sum()
        expected[key] = shift + np.trace(first + second) - 2 * root
    assert metrics["fvd"] == pytest.approx(expected["fvd"], rel=1e-4)
    assert metrics["fid"] == pytest.approx(expected["fid"], rel=1e-4)


def test_results_name_the_protocol_and_what_it_does(run: Callable[..., Results], tmp_path: Path) -> None:
    results = run(corpus="colonoscopic")
    written = json.loads((tmp_path / "results" / "results.json").read_text())
    protocol = written["protocol"]
    assert (protocol["name"], protocol["covariance"]) == ("stylegan-v", "divided by n")
    assert protocol["metrics"] == ["fvd", "fid", "is"]
    assert "Lanczos" in protocol["resize"]
    assert "whole frames" in protocol["crop"]
    page = results.markdown()
    assert "Protocol: stylegan-v" in page
    assert "Endora's Table 1: Colonoscopic" in page
    assert "generated clips 3 instead of 2048, frames 4 instead of 16" in page
    assert "generated frames 16 instead of 50000" in page
    about_interval = [warning for warning in results.warnings if "trained with" in warning]
    assert len(about_interval) == 1
    assert "trained with interval 3" in about_interval[0]
    assert "the protocol stylegan-v demands it" in about_interval[0]
    assert any("over 16 generated frames" in warning for warning in results.warnings)
    assert any("--real holds videos generated by MedSora" in warning for warning in results.warnings)


def test_frames_of_few_videos_are_not_independent(run: Callable[..., Results]) -> None:
    """FVD has one clip per video, FID all frames of each."""
    about = [w for w in run(metrics="fid", bootstrap=3).warnings if "too few videos to re-sample" in w]
    assert len(about) == 1
    assert "(real 4, generated 3; 10 are needed)" in about[0]


def test_a_metric_without_distances_is_enough(run: Callable[..., Results], tmp_path: Path) -> None:
    results = run(metrics="is")
    assert set(results.metrics()) == {"inception_score"}
    assert not (tmp_path / "results" / "distances.png").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metrics": "fvd,motion"}, "has fvd, fid and is, not motion"),
        ({"clips": 100}, "no choice of clips; leave --clips out"),
        ({"interval": 3}, "no choice of interval"),
        ({"crop": "auto"}, "no choice of crop"),
        ({"memorised": "train"}, "no choice of memorised"),
        ({"protocol": "ours"}, "must be one of medsora, stylegan-v"),
    ],
)
def test_options_that_the_protocol_fixes_are_refused(
    run: Callable[..., Results], changes: dict, sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        run(**changes)


@pytest.mark.parametrize(("metric", "name"), [("fvd", "fvd"), ("fid", "inception"), ("is", "inception")])
def test_without_weights_it_names_both_ways(
    metric: str, name: str, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(BadInput, match=f"--weights {name}=FILE, or start this once where there is a network"):
        evaluate(*folders, **OPTIONS, metrics=metric)
