"""medsora.downstream.reconstruct, medsora.downstream.reconstruct_clip, medsora.downstream.reconstruct_scores,
medsora.downstream.reconstruct_report: from folders of clips to cameras, their errors, tables and exports.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from medsora.data.phantom.camera import Lens
from medsora.data.phantom.scene import Scene
from medsora.data.phantom.truth import Truth
from medsora.data.reading.video_io import write_video
from medsora.downstream import reconstruct
from medsora.downstream.command import main
from medsora.downstream.reconstruct import run_job, write_job
from medsora.downstream.reconstruct_clip import Geometry, Job
from medsora.downstream.reconstruct_report import POINTS, REGISTERED, REPROJECTION, TRACK, mean_over_clips
from medsora.downstream.reconstruct_scores import (
    DEPTH,
    FLAT,
    FOCAL,
    POSITION,
    ROTATION,
    STILL,
    STRAIGHT,
    align,
    depth_error,
    errors_against,
    poses_bounds,
    position_error,
    rotation_error,
)
from medsora.errors import BadInput
from medsora.runtime.extras import missing_package

JOB = Job("simple-pinhole", None, features=512, memory_bytes=4 << 30, cpu_seconds=120, export=True)


def turn(axis: list[float], degrees: float) -> np.ndarray:
    """A rotation matrix."""
    return cv2.Rodrigues(np.radians(degrees) * np.array(axis) / np.linalg.norm(axis))[0]


def geometry(frames: list[int], rotations: np.ndarray, centres: np.ndarray, **changes: object) -> Geometry:
    """A reconstruction at 64 pixels in which every frame sees the same two points."""
    n = len(frames)
    values = {
        "frames": np.array(frames),
        "rotations": np.asarray(rotations, float),
        "centres": np.asarray(centres, float),
        "camera": np.array([32.0, 32.0, 24.0]),
        "size": np.array([48, 64]),
        "points": np.array([[0.0, 0, 5], [1, 0, 9]]),
        "errors": np.array([0.5, 1.5]),
        "seen_in": np.repeat(np.arange(n), 2),
        "seen": np.tile([0, 1], n),
        "pixels": np.full((2 * n, 2), 10.0),
    }
    return Geometry(**(values | changes))


def test_alignment_recovers_a_known_similarity() -> None:
    random = np.random.default_rng(0)
    points, rotation = random.normal(size=(7, 3)), turn([1, 2, -1], 140)
    scale, found, translation = align(points, 2.5 * points @ rotation.T + [3, -1, 4])
    assert scale == pytest.approx(2.5)
    np.testing.assert_allclose(found, rotation, atol=1e-12)
    np.testing.assert_allclose(translation, [3, -1, 4], atol=1e-12)
    scale, found, _ = align(points, points * [1, 1, -1])
    assert np.linalg.det(found) == pytest.approx(1)  # a mirrored scene is no rigid motion of the true one
    assert scale < 1
    assert align(np.ones((4, 3)), points[:4])[0] == 0


def test_errors_of_hand_made_poses_and_depths() -> None:
    true = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    assert position_error(true @ turn([1, 1, 0], 70).T * 0.1 + 5, true) == pytest.approx(0, abs=1e-9)
    zigzag = true + np.array([[0, 1, 0], [0, -1, 0], [0, -1, 0], [0, 1, 0]])
    assert position_error(true, zigzag) == pytest.approx(100 / (1 + 2 * np.sqrt(5)))
    still = np.stack([np.eye(3)] * 4)
    shaken = np.stack([turn([0, 1, 0], degrees) for degrees in (6, -6, 6, -6)])
    assert rotation_error(turn([3, 1, 2], 100) @ shaken, shaken) == pytest.approx(0, abs=1e-5)
    assert rotation_error(still, shaken) == pytest.approx(6)
    depths = np.array([1.0, 2, 3, 4, 5])
    assert depth_error(0.01 * depths, depths) == pytest.approx(0)
    assert depth_error(depths * [1.1, 0.9, 1, 1.2, 0.8], depths) == pytest.approx(10)


def test_poses_bounds_of_a_known_camera() -> None:
    quarter = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # it looks along the world's x
    rows = poses_bounds(geometry([0, 2], [np.eye(3), quarter], [[0, 0, 1], [-3, 0, 0]]))
    assert rows.shape == (2, 17)
    matrix = rows[0, :15].reshape(3, 5)
    np.testing.assert_array_equal(matrix[:, 0], [0, 1, 0])  # down
    np.testing.assert_array_equal(matrix[:, 1], [1, 0, 0])  # right
    np.testing.assert_array_equal(matrix[:, 2], [0, 0, -1])  # backwards
    np.testing.assert_array_equal(matrix[:, 3], [0, 0, 1])
    np.testing.assert_array_equal(matrix[:, 4], [48, 64, 32])  # height, width, focal length
    np.testing.assert_allclose(rows[0, 15:], [4.004, 7.996])
    matrix = rows[1, :15].reshape(3, 5)
    np.testing.assert_array_equal(matrix[:, 1], [0, 0, -1])
    np.testing.assert_array_equal(matrix[:, 2], [-1, 0, 0])
    np.testing.assert_allclose(rows[1, 15:], [3.001, 3.999])
    unseen = geometry([0, 2], [np.eye(3)] * 2, np.zeros((2, 3)), seen_in=np.array([0, 0, 0, 0]))
    np.testing.assert_array_equal(poses_bounds(unseen)[1, 15:], poses_bounds(unseen)[0, 15:])


@pytest.fixture(scope="module")
def truth() -> Truth:
    """A phantom clip with an instrument, 32 pixels wide."""
    return Truth(Scene(3, polyp=False, instrument=True), Lens(32, 32, 0.43))


def test_the_truth_in_other_units_has_no_error(truth: Truth) -> None:
    numbers, spin = [0, 2, 4, 6, 8], turn([1, -2, 3], 77)
    rotations, positions = truth.poses([numbers[k] for k in (0, 1, 3, 4)])
    y, x = np.mgrid[4:32:3, 4:32:3]
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    points, seen_in, seen = [], [], []
    for row, frame in enumerate((0, 2, 6, 8)):
        depth = np.nan_to_num(truth.depth(frame, pixels), nan=77.0)  # the instrument, where it is not
        rays = np.column_stack([(pixels - 15.5) / truth.lens.focal, np.ones(len(pixels))])
        points.append((rays * depth[:, None]) @ rotations[row].T + positions[row])
        seen_in += [row] * len(pixels)
        seen += range(len(seen), len(seen) + len(pixels))
    found = errors_against(
        truth,
        numbers,
        geometry(
            [0, 1, 3, 4],
            spin @ rotations,
            0.2 * positions @ spin.T + 1,
            camera=np.array([truth.lens.focal * 4 * 1.1, 64, 64]),
            size=np.array([128, 128]),
            points=0.2 * np.concatenate(points) @ spin.T + 1,
            seen_in=np.array(seen_in),
            seen=np.array(seen),
            pixels=np.tile((pixels + 0.5) * 4, (4, 1)),
        ),
    )
    for name in (POSITION, ROTATION, DEPTH):
        assert found[name] == pytest.approx(0, abs=1e-3), name
    assert found[FOCAL] == pytest.approx(110)
    assert found[STRAIGHT] > 0.5
    assert found[STILL] > 1
    assert found[FLAT] > 10


def test_two_frames_are_too_few_for_the_truth(truth: Truth) -> None:
    assert errors_against(truth, [0, 1], geometry([0, 1], [np.eye(3)] * 2, np.eye(3)[:2])) == {}


def test_means_over_clips() -> None:
    found = mean_over_clips([None, 1.0, 3.0, 2.0], side=0)
    assert found.value == 2
    assert 1 <= found.low < 2 < found.high <= 3
    assert mean_over_clips([None], side=0) is None
    assert mean_over_clips([4.0], side=1).cell() == "4.00"
    assert found.minus(found).cell() == "0.00 (0.00 … 0.00)"


def clip(seed: int, frames: int = 6) -> np.ndarray:
    """Noise in a square, black around it; a brighter one from the seed 12."""
    video = np.zeros((frames, 32, 32, 3), np.uint8)
    video[:, 8:, 8:] = np.random.default_rng(seed).integers(
        50 if seed != 12 else 200, 250, (frames, 24, 24, 3)
    )
    return video


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders of clips, and COLMAP's place taken: it registers all frames but the last.

    It fails on the brightest clip.
    """
    monkeypatch.chdir(tmp_path)
    for name, first in (("real", 0), ("generated", 10)):
        for k in range(3):
            write_video(tmp_path / name / f"v{k}.mkv", clip(first + k), 10, lossless=True)

    def stand_in(folder: Path, job: Job, threads: int) -> tuple[str, bool] | None:
        images = sorted((folder / "images").glob("*.png"))
        ran.append(len(images))
        if cv2.imread(str(images[0])).mean() > 100:
            return reconstruct.failing
        n = len(images) - 1
        found = geometry(list(range(n)), [np.eye(3)] * n, np.arange(3 * n).reshape(n, 3))
        np.savez(folder / "geometry.npz", **vars(found))
        if job.export:
            np.savez(folder / "export.npz", **vars(found))
            (folder / "export" / "sparse").mkdir(parents=True)
        return None

    ran: list[int] = []
    monkeypatch.setattr(reconstruct, "run_job", stand_in)
    monkeypatch.setattr(reconstruct, "version", lambda name: "4.2.1")
    monkeypatch.setattr(reconstruct, "ran", ran, raising=False)
    at_limit = ("not done after 120 CPU seconds", True)
    monkeypatch.setattr(reconstruct, "failing", at_limit, raising=False)
    return tmp_path


WORDS = ["reconstruct", "real=real", "generated=generated", "--frames", "5", "--size", "64", "--out", "out"]


def test_from_end_to_end_and_resumed(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*WORDS, "--dry-run"])
    assert "6 of 6 clips to reconstruct, into out: ready" in capsys.readouterr().out
    assert not (folders / "out").exists()
    main(WORDS)
    page = (folders / "out" / "results.md").read_text()
    assert "| real | 3 | 3 | 0 | 80.0 (80.0 … 80.0) | 2.00 (2.00 … 2.00) |" in page
    assert "| generated | 3 | 2 | 1 | 80.0 (80.0 … 80.0) |" in page
    assert "| generated − real | – | – | – | 0.00 (0.00 … 0.00) |" in page
    assert "- given up: generated: v2.mkv: not done after 120 CPU seconds" in page
    assert "truth" not in page
    results = json.loads((folders / "out" / "results.json").read_text())
    record = results["folders"]["real"][0]
    expected = {REGISTERED: 80.0, POINTS: 2, REPROJECTION: 1.0, TRACK: 4.0, "focal": 32 / 48}
    assert {name: record[name] for name in expected} == expected
    assert reconstruct.ran == [5] * 6

    kept = folders / "out" / "clips.jsonl"
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:3]) + lines[3][:40])  # stopped while the fourth was written
    main([*WORDS, "--dry-run"])
    assert "3 of 6 clips" in capsys.readouterr().out
    main(WORDS)
    assert reconstruct.ran == [5] * 9
    assert kept.read_text() == "".join(lines)
    main([*WORDS, "--time-limit", "500"])  # what was given up is tried again
    assert reconstruct.ran == [5] * 10
    main([*WORDS, "--focal", "0.5", "--dry-run"])
    assert "6 of 6 clips" in capsys.readouterr().out


def test_clips_are_spread_over_the_folder(folders: Path) -> None:
    main([*WORDS, "--max-clips", "2"])
    found = json.loads((folders / "out" / "results.json").read_text())["folders"]
    assert [record["clip"] for record in found["real"]] == ["v0.mkv", "v2.mkv"]


def test_what_failed_by_no_limit_is_tried_again(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "failing", ("COLMAP failed (1): ImportError: libGL.so.1", False))
    main(WORDS)
    main(WORDS)
    assert reconstruct.ran == [5] * 7
    monkeypatch.setattr(reconstruct.cv2, "imwrite", lambda *_: False)  # a full disk
    with pytest.raises(BadInput, match="cannot be written: make room"):
        main(WORDS)


def test_an_export_of_other_frames_is_replaced(folders: Path) -> None:
    for frames in ("5", "4", "5"):
        main([*WORDS, "--export", "--frames", frames])
        images = np.load(folders / "out" / "clips" / "real" / "v1.mkv" / "poses_bounds.npy")
        assert len(images) == int(frames) - 1


def test_exports_are_made_up_for(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(WORDS)
    main([*WORDS, "--export"])
    assert len(reconstruct.ran) == 6 + 5
    place = folders / "out" / "clips" / "real" / "v1.mkv"
    assert np.load(place / "poses_bounds.npy").shape == (4, 17)
    assert (place / "sparse").is_dir()
    main([*WORDS, "--export", "--dry-run"])
    assert "0 of 6 clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--frames", "2"], "must be 3 to 100"),
        (["--interval", "1", "0"], "--interval is 0"),
        (["--interval", "1", "2", "3"], "3 numbers for 2 folders"),
        (["--interval", "1", "3"], "generated gives no usable clip of 5 frames at interval 3"),
        (["--focal", "99"], "must be 0.1 to 10"),
        (["--time-limit", "0"], "--time-limit is 0"),
    ],
)
def test_bad_numbers_are_one_sentence(folders: Path, change: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as error:
        main([*WORDS, *change])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "clips",
    [["real", "real=generated"], ["a/b=real"], ["a="], ["=real"], ["..=real"], ["a|b=real"], ["gone"]],
)
def test_bad_folders_are_one_sentence(folders: Path, clips: list[str]) -> None:
    with pytest.raises(BadInput, match=r"a plain name of its own|there is no folder gone"):
        main(["reconstruct", *clips, "--out", "out"])


def test_a_file_of_other_things_is_refused(folders: Path) -> None:
    (folders / "out").mkdir()
    (folders / "out" / "clips.jsonl").write_text("[1]\n")
    with pytest.raises(BadInput, match=r"clips\.jsonl holds no results"):
        main(WORDS)


def test_a_place_that_cannot_be_written_is_one_sentence(folders: Path) -> None:
    (folders / "out").write_text("")
    with pytest.raises(BadInput, match=r"out/clips\.jsonl"):
        main(WORDS)


def test_without_pycolmap_the_extra_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(reconstruct, "version", missing)
    with pytest.raises(ModuleNotFoundError) as error:
        main(WORDS)
    assert "pip install 'medsora[reconstruct]'" in missing_package(error.value)


def test_no_features_on_the_endoscopes_mask(tmp_path: Path) -> None:
    write_job(tmp_path, clip(0), JOB)
    mask = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_GRAYSCALE)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), columns.min()) == (9, 9)  # one pixel off the rim
    assert (rows.max(), columns.max()) == (31, 31)  # the picture's own edge is none
    assert set(np.unique(mask)) == {0, 255}
    first = cv2.imread(str(tmp_path / "images" / "0000.png"))
    np.testing.assert_array_equal(first[..., ::-1], clip(0)[0])


@pytest.mark.parametrize(
    ("body", "reason", "at_limit"),
    [
        ("while True: pass", "not done after 1 CPU seconds", True),
        ("held = b'1' * (3 << 30)", "more than 2 GiB of memory", True),
        ("raise RuntimeError('no such camera')", "COLMAP failed (1): RuntimeError: no such camera", False),
        ("import os; os.abort()", "COLMAP failed (-6): no message", False),
    ],
)
def test_a_clip_that_cannot_be_done_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str, at_limit: bool
) -> None:
    (tmp_path / "pycolmap.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = Job("simple-pinhole", None, features=512, memory_bytes=2 << 30, cpu_seconds=1, export=False)
    write_job(tmp_path / "job", clip(0), job)
    assert run_job(tmp_path / "job", job, threads=1) == (reason, at_limit)


def relief(frames: int = 6, size: int = 160) -> np.ndarray:
    """A camera that moves right in even steps, before a wall and a nearer half-wall, twice as near."""
    random, shift = np.random.default_rng(0), 5
    wall, nearer = (
        cv2.GaussianBlur(random.integers(0, 256, (size, 3 * size), dtype=np.uint8), (0, 0), 1.3) for _ in "12"
    )
    video = np.empty((frames, size, size, 3), np.uint8)
    for k in range(frames):
        video[k] = wall[:, k * shift : k * shift + size, None]
        video[k, size // 2 :] = nearer[size // 2 :, 2 * k * shift : 2 * k * shift + size, None]
    return cv2.convertScaleAbs(video, alpha=3.0, beta=-250).reshape(video.shape)


@pytest.mark.skipif(find_spec("pycolmap") is None, reason="pycolmap is not installed (extra reconstruct)")
@pytest.mark.parametrize("camera", ["simple-pinhole", "simple-radial"])
def test_colmap_finds_cameras_and_depths_of_a_known_scene(tmp_path: Path, camera: str) -> None:
    write_job(tmp_path, relief(), Job(camera, 1.0, 512, 4 << 30, 120, True))
    assert run_job(tmp_path, JOB, 1) is None
    found = Geometry.read(tmp_path / "geometry.npz")
    np.testing.assert_array_equal(found.frames, np.arange(6))
    steady = np.arange(6)[:, None] * [1.0, 0, 0]
    assert position_error(found.centres, steady) < 1
    assert rotation_error(found.rotations, np.stack([np.eye(3)] * 6)) < 0.5
    nearer = found.pixels[:, 1] > 80
    ratio = np.median(found.depths[~nearer]) / np.median(found.depths[nearer])
    assert ratio == pytest.approx(2, rel=0.02)
    assert found.camera[0] == pytest.approx(160, rel=1e-3)
    exported = Geometry.read(tmp_path / "export.npz")
    assert len(exported.camera) == (3 if camera == "simple-pinhole" else 4)  # then fx, fy, cx, cy
    assert sorted(path.name for path in (tmp_path / "export" / "images").iterdir())[-1] == "0005.png"
    assert (tmp_path / "export" / "sparse" / "0" / "cameras.bin").is_file()
