"""medsora.data.phantom.corpus, medsora.data.phantom.render, medsora.data.phantom.scene,
medsora.data.phantom.camera, medsora.data.phantom.wall, medsora.data.phantom.forceps,
medsora.data.phantom.looks: the phantom: the same
seed the same clip, its flow exact, its pictures those of an endoscope.
"""

import csv
import errno
import itertools
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

from medsora.config.choices import PHANTOM_LOOKS
from medsora.config.load import load_config
from medsora.data.labels import read_labels
from medsora.data.phantom import KINDS, clip_seed, corpus, render_clip, variant_suffix, write_phantom
from medsora.data.phantom.corpus import phantom_recipe
from medsora.data.phantom.render import MAX_POLYP, choose_labels
from medsora.data.phantom.scene import Scene
from medsora.data.phantom.wall import Wall
from medsora.data.reading.video_io import read_frames
from medsora.errors import BadInput
from medsora.training.open_clips import clip_folder
from tests.support.paths import CONFIGS

CONFIG = CONFIGS / "phantom.yaml"


@pytest.fixture(scope="module")
def clips():
    """Eight clips of seven 64x64 frames, of all kinds."""
    made = [render_clip(seed, 7, 64) for seed in range(8)]
    assert {clip.kind for clip in made} == set(KINDS)
    return made


def warp_back(image, flow):
    """Fetch for every pixel of frame k its colour in frame k+1."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    return cv2.remap(image.astype(np.float32), x + flow[0], y + flow[1], cv2.INTER_LINEAR)


def even_light(image, trusted):
    """Divide by the local brightness: the lamp moves with the camera, so brightness belongs to no surface."""

    def blur(channel):
        return cv2.GaussianBlur(channel, (0, 0), 4)

    weight = trusted.astype(np.float32)
    local = blur(image.mean(-1) * weight) / np.maximum(blur(weight), 1e-3)
    return image / np.maximum(local, 8)[..., None]


def photometric_errors(clip):
    """Per pair, the median difference to frame k of frame k+1 warped back, and of frame k+1 as it is."""
    for now, then, flow, valid in zip(clip.video, clip.video[1:], clip.flow, clip.valid, strict=False):
        now, then, warped = now.astype(np.float32), then.astype(np.float32), warp_back(then, flow)
        matt = valid & (now.max(-1) < 215) & (warped.max(-1) < 215) & (now.max(-1) > 25)
        reference, still, moved = (even_light(image, matt) for image in (now, then, warped))
        yield np.median(np.abs(moved - reference)[matt]), np.median(np.abs(still - reference)[matt])


def test_same_seed_same_clip_and_a_longer_one_begins_with_it(clips):
    for clip in clips[:3]:
        longer = render_clip(clip.seed, 9, 64)
        np.testing.assert_array_equal(longer.video[:7], clip.video)
        np.testing.assert_array_equal(longer.flow[:6], clip.flow)
        np.testing.assert_array_equal(longer.valid[:6], clip.valid)
    assert np.abs(clips[0].video.astype(int) - clips[1].video).mean() > 10


def test_flow_warps_the_next_frame_back(clips):
    errors = np.array([pair for clip in clips for pair in photometric_errors(clip)])
    warped, unwarped = errors.mean(axis=0)
    assert warped < 0.016
    assert warped < 0.4 * unwarped


def test_swapped_or_mirrored_flow_would_be_noticed(clips):
    """The bound above is one that only the right flow keeps."""
    for wrong in (lambda flow: flow[:, ::-1], lambda flow: -flow, lambda flow: 0.5 * flow):
        errors = []
        for clip in clips[:4]:
            broken = type(clip)(**{**vars(clip), "flow": np.ascontiguousarray(wrong(clip.flow))})
            errors += [moved for moved, _ in photometric_errors(broken)]
        assert np.mean(errors) > 0.018


def test_flow_agrees_with_dis(clips):
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    estimator.setFinestScale(0)
    errors, lengths = [], []
    for clip in clips:
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.video]
        for (now, then), flow, valid in zip(itertools.pairwise(grey), clip.flow, clip.valid, strict=True):
            estimated = estimator.calc(now, then, None).transpose(2, 0, 1)
            errors.append(np.hypot(*(estimated - flow))[valid].mean())
            lengths.append(np.hypot(*flow)[valid].mean())
    assert np.mean(errors) < 0.75
    assert np.mean(errors) < 0.4 * np.mean(lengths)


def test_flow_of_the_instrument_is_its_own():
    """The forceps move by themselves: their flow tracks their coils, the wall's does not."""
    moved, stayed, disagreement = [], [], []
    for seed in range(4):
        clip = render_clip(seed, 6, 128, polyp=False, instrument=True)
        scene = Scene(seed, polyp=False, instrument=True)
        without = render_clip(seed, 6, 128, polyp=False, instrument=False)
        assert scene.forceps is not None
        for k in range(5):
            own = (clip.flow[k] != without.flow[k]).any(axis=0)
            inner = cv2.erode((own & clip.valid[k]).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            assert 0.01 < own.mean() < 0.3
            now, then = clip.video[k].astype(np.float32), clip.video[k + 1]
            moved.append(np.abs(warp_back(then, clip.flow[k]) - now)[inner].mean())
            stayed.append(np.abs(then - now)[inner].mean())
            disagreement.append(np.abs(warp_back(then, without.flow[k]) - now)[inner].mean())
    assert np.mean(moved) < 0.5 * np.mean(stayed)
    assert np.mean(moved) < 0.5 * np.mean(disagreement)


def test_hidden_and_leaving_surfaces_are_not_valid(clips):
    for clip in clips:
        assert 0.5 < clip.valid.mean() < 1
        y, x = np.mgrid[:64, :64]
        to_x, to_y = x + clip.flow[:, 0], y + clip.flow[:, 1]
        inside = (to_x >= 0) & (to_x <= 63) & (to_y >= 0) & (to_y <= 63)
        assert not (clip.valid & ~inside).any()
    # What the forceps are about to cover is inside the picture, yet not valid.
    clip = next(clip for clip in clips if clip.instrument)
    lonely = render_clip(clip.seed, 7, 64, polyp=False, instrument=False)
    wall = (clip.flow == lonely.flow).all(axis=1)
    assert (wall & lonely.valid & ~clip.valid).sum() > 20


def test_looks_like_an_endoscope(clips):
    for clip in clips:
        video = clip.video.astype(np.float32)
        lit = video.max(-1) > 0
        red, green, blue = (video[..., channel][lit].mean() for channel in range(3))
        assert red > 1.2 * green
        assert red > 1.2 * blue
        brightness = cv2.GaussianBlur(video[0].mean(-1), (0, 0), 3)[10:-10, 10:-10]
        row, column = np.unravel_index(brightness.argmin(), brightness.shape)
        assert max(abs(row - 21.5), abs(column - 21.5)) < 0.6 * 32  # the lumen: dark, in the central 60 %
        assert brightness.min() < 0.45 * np.median(video.mean(-1)[lit])
        assert (video.min(-1) > 140).any()  # wet: white highlights
        assert (video.min(-1) > 200).mean() < 0.1  # yet not washed out


def test_moves_as_much_as_real_clips_do(clips):
    speeds = [np.hypot(clip.flow[:, 0], clip.flow[:, 1])[clip.valid].mean() for clip in clips]
    assert 1 < np.mean(speeds) < 3
    assert min(speeds) > 0.7
    assert max(speeds) < 4.5
    assert max(speeds) > 1.4 * min(speeds)
    directions = {Scene(seed, polyp=False, instrument=False).path.speed > 0 for seed in range(12)}
    assert directions == {True, False}  # insertion and withdrawal


def test_camera_stays_inside_the_tube():
    for seed in range(5):
        scene = Scene(seed, polyp=True, instrument=False)
        at = [scene.path.pose(scene.line, frame).position for frame in range(49)]
        # Nothing nearer than this in any direction: the lens never touches the wall.
        directions = np.random.default_rng(0).standard_normal((40, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        for position in at:
            around = (position + 0.1 * directions).astype(np.float32)
            offset = np.stack(scene.line.at(around[:, 2]), axis=1) - around[:, :2]
            angle = np.arctan2(-offset[:, 1], -offset[:, 0])
            assert (np.hypot(*offset.T) < scene.wall.radius(around[:, 2], angle)).all()


def test_a_polyp_can_be_seen():
    for seed in range(6):
        with_polyp = render_clip(seed, 2, 48, polyp=True, instrument=False).video[0].astype(int)
        without = render_clip(seed, 2, 48, polyp=False, instrument=False).video[0]
        assert (np.abs(with_polyp - without).max(-1) > 25).mean() > 0.005


@pytest.mark.parametrize(("frames", "size"), [(1, 64), (2, 32), (3, (48, 80)), (2, 128)])
def test_any_size_and_length(frames, size):
    height, width = (size, size) if isinstance(size, int) else size
    clip = render_clip(5, frames, size)
    assert clip.video.shape == (frames, height, width, 3)
    assert clip.video.dtype == np.uint8
    assert clip.flow.shape == (frames - 1, 2, height, width)
    assert clip.flow.dtype == np.float32
    assert clip.valid.shape == (frames - 1, height, width)
    assert np.isfinite(clip.flow).all()


def test_flow_grows_with_the_picture():
    small, large = render_clip(3, 2, 48), render_clip(3, 2, 96)
    halved = cv2.resize(large.flow[0].transpose(1, 2, 0), (48, 48), interpolation=cv2.INTER_AREA) / 2
    difference = np.hypot(*(halved.transpose(2, 0, 1) - small.flow[0]))
    assert np.median(difference) < 0.05


def test_labels_exclude_each_other_and_each_has_its_share():
    drawn = [choose_labels(seed, None, None) for seed in range(600)]
    for pair in ((True, False), (False, True), (False, False)):
        assert 150 < drawn.count(pair) < 250
    assert choose_labels(1, True, None) == (True, False)
    assert choose_labels(1, None, True) == (False, True)
    assert {choose_labels(seed, False, None) for seed in range(20)} == {(False, True), (False, False)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 0, "frames": 0}, "frame"),
        ({"seed": 0, "size": 4}, "pixels"),
        ({"seed": 0, "polyp": True, "instrument": True}, "not both"),
    ],
)
def test_bad_requests_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        render_clip(**arguments)


def test_folder_holds_exact_videos_flow_and_labels(tmp_path):
    folder = tmp_path / "phantom"
    seen = []
    write_phantom(folder, 3, 3, 32, seed=7, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(KINDS)
    assert [(row["polyp"], row["instrument"]) for row in rows] == [("1", "0"), ("0", "1"), ("0", "0")]
    for index, row in enumerate(rows):
        kind = row["label"]
        clip = render_clip(clip_seed(7, index), 3, 32, polyp=kind == "polyp", instrument=kind == "instrument")
        np.testing.assert_array_equal(read_frames(folder / row["file"]), clip.video)
        beside = load_file((folder / row["file"]).with_suffix(".flow.safetensors"))
        assert beside["flow"].dtype == np.float16
        np.testing.assert_array_equal(beside["flow"], clip.flow.astype(np.float16))
        np.testing.assert_array_equal(beside["valid"], clip.valid)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_polyp_mask_is_where_the_polyp_shows_and_moves_with_the_flow(clips):
    errors = []  # pixels that differ if the next mask is fetched by the flow, by its opposite; of the polyp
    for clip in clips:
        assert clip.polyp_mask.shape == clip.video.shape[:3]
        if not clip.polyp:
            assert not clip.polyp_mask.any()
            continue
        bare = render_clip(clip.seed, 1, 64, polyp=False, instrument=False).video[0].astype(int)
        changed, mask = np.abs(clip.video[0] - bare).max(-1) > 25, clip.polyp_mask[0]
        assert 0.005 < mask.mean() < 0.5
        assert changed[mask].mean() > 2 * changed[~mask].mean()
        for now, then, valid, flow in zip(
            clip.polyp_mask, clip.polyp_mask[1:], clip.valid, clip.flow, strict=False
        ):
            fetched = [warp_back(then, flow * sign)[valid] > 0.5 for sign in (1, -1)]
            errors.append([(each != now[valid]).sum() for each in fetched] + [now[valid].sum()])
    right, opposite, polyp = np.sum(errors, axis=0)
    assert right < 0.2 * polyp
    assert right < 0.4 * opposite


def test_folder_of_masks_holds_frames_and_exact_masks(tmp_path):
    write_phantom(tmp_path, 2, 2, 32, seed=7, masks=True)
    for index in range(2):
        clip = render_clip(clip_seed(7, index), 2, 32, polyp=True, instrument=False)
        for k in range(2):
            name = f"phantom-{index:05d}-{k:03d}.png"
            picture, mask = (cv2.imread(tmp_path / part / name, -1) for part in ("images", "masks"))
            np.testing.assert_array_equal(picture[..., ::-1], clip.video[k])
            np.testing.assert_array_equal(mask, clip.polyp_mask[k] * 255)
    changed = (tmp_path / "images" / name).stat().st_mtime_ns
    write_phantom(tmp_path, 2, 2, 32, seed=7, masks=True)
    assert (tmp_path / "images" / name).stat().st_mtime_ns == changed
    with pytest.raises(ValueError, match="another folder"):
        write_phantom(tmp_path, 2, 2, 32, seed=7)


def test_an_interrupted_folder_is_gone_on_with(tmp_path):
    folder = tmp_path / "phantom"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(folder, 2, 2, 16, seed=1, progress=stop)
    assert not (folder / "phantom.json").exists()
    first = (folder / "phantom-00000.mkv").stat().st_mtime_ns
    (folder / "phantom-00001.mkv").write_bytes(b"half a video")  # its flow is missing: it is made again
    write_phantom(folder, 2, 2, 16, seed=1)
    assert (folder / "phantom-00000.mkv").stat().st_mtime_ns == first
    assert read_frames(folder / "phantom-00001.mkv").shape == (2, 16, 16, 3)
    assert json.loads((folder / "phantom.json").read_text())["videos"] == 2

    write_phantom(folder, 2, 2, 16, seed=1, progress=stop)  # whole: nothing to do
    with pytest.raises(ValueError, match="another folder"):
        write_phantom(folder, 2, 2, 16, seed=2)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("labels.csv", "polyp,1", "pomyp,1"),
        ("phantom.json", '"seed": 1', '"seed": 3'),
        ("phantom.json", "{", "["),
    ],
)
def test_a_flipped_bit_in_labels_or_recipe_is_refused(tmp_path, name, old, new):
    write_phantom(tmp_path, 3, 2, 16, seed=1)
    videos = [f"phantom-0000{k}.mkv" for k in range(3)]
    labels, text = read_labels("labels.csv", tmp_path, videos), (tmp_path / name).read_text()
    assert labels.names == tuple(sorted(KINDS))
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput, match=f"{name} is damaged"):
        read_labels("labels.csv", tmp_path, videos)
    for used in (phantom_recipe, lambda folder: write_phantom(folder, 3, 2, 16, seed=1)):
        if name == "phantom.json":
            with pytest.raises(BadInput, match=f"{name} is damaged"):
                used(tmp_path)

    changed = (tmp_path / videos[0]).stat().st_mtime_ns
    for written in ("labels.csv", "phantom.json"):  # as the message says
        (tmp_path / written).unlink()
    write_phantom(tmp_path, 3, 2, 16, seed=1)
    assert read_labels("labels.csv", tmp_path, videos) == labels
    assert (tmp_path / videos[0]).stat().st_mtime_ns == changed


def test_folders_of_earlier_versions_have_no_digests(tmp_path):
    write_phantom(tmp_path, 3, 2, 16, seed=1)
    recipe = json.loads((tmp_path / "phantom.json").read_text())
    old = {key: value for key, value in recipe.items() if key not in ("crc32", "labels_sha256")}
    (tmp_path / "phantom.json").write_text(json.dumps(old))
    (tmp_path / "labels.csv").write_text("file,label\nphantom-00000.mkv,mine\n")
    assert read_labels("labels.csv", tmp_path, ["phantom-00000.mkv"]).names == ("mine",)
    assert phantom_recipe(tmp_path)["seed"] == 1
    write_phantom(tmp_path, 3, 2, 16, seed=1, progress=lambda done, total: pytest.fail("rendered twice"))


def test_processes_write_what_one_process_writes(tmp_path):
    write_phantom(tmp_path / "one", 2, 2, 16, seed=3)
    write_phantom(tmp_path / "two", 2, 2, 16, seed=3, workers=2)
    for name in ("phantom-00000", "phantom-00001"):
        one, two = (read_frames(tmp_path / folder / f"{name}.mkv") for folder in ("one", "two"))
        np.testing.assert_array_equal(one, two)
        flows = [
            load_file(tmp_path / folder / f"{name}.flow.safetensors")["flow"] for folder in ("one", "two")
        ]
        np.testing.assert_array_equal(*flows)


def test_two_processes_fill_one_folder_without_harm(tmp_path):
    folder = tmp_path / "phantom"
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=write_phantom, args=(folder, 3, 2, 16, 5)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0, 0]
    assert len(list(folder.glob("phantom-*.mkv"))) == 3
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_who_waits_for_the_folder_renders_nothing_twice(tmp_path, monkeypatch):
    folder = tmp_path / "phantom"

    def filled_by_another(fd, operation):
        monkeypatch.setattr(corpus.fcntl, "lockf", lambda fd, operation: None)
        write_phantom(folder, 2, 2, 16, seed=1)

    monkeypatch.setattr(corpus.fcntl, "lockf", filled_by_another)
    write_phantom(folder, 2, 2, 16, seed=1, progress=lambda done, total: pytest.fail("rendered twice"))
    assert (folder / "phantom.json").is_file()


def test_a_script_without_a_main_guard_is_warned_instead_of_waiting_for_itself(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from medsora.data.phantom import write_phantom\n"
        f"write_phantom({str(tmp_path / 'clips')!r}, 2, 2, 16, seed=0, workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=3600)
    assert done.returncode != 0
    assert "__main__" in done.stderr


def test_what_was_begun_may_be_done_while_it_is_looked_at(tmp_path, monkeypatch):
    folder = tmp_path / "phantom"
    write_phantom(folder, 2, 2, 16, seed=1)
    (folder / ".phantom.begun.json").write_text((folder / "phantom.json").read_text())
    read_bytes = Path.read_bytes

    def gone_when_it_is_read(path):
        if path.name == ".phantom.begun.json":
            path.unlink()
        elif path.exists() and not (folder / ".phantom.lock").exists():
            raise FileNotFoundError(errno.ENOENT, "gone", path)  # it was not there yet
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", gone_when_it_is_read)
    write_phantom(folder, 2, 2, 16, seed=1, progress=lambda done, total: pytest.fail("rendered twice"))


def test_larger_polyps_cover_more_and_change_nothing_else(tmp_path):
    along, around = (grid.ravel() for grid in np.mgrid[3:7:0.02, -np.pi : np.pi : 0.02].astype(np.float32))
    usual, large = (Wall(np.random.default_rng(1), 5.0, size) for size in (1.0, 1.8))
    areas = [(wall.colour(along, around)[1] > 0).mean() for wall in (usual, large)]
    assert areas[1] == pytest.approx(1.8**2 * areas[0], rel=0.1)
    clips = {
        (polyp, size): render_clip(1, 2, 32, polyp=polyp, instrument=False, polyp_size=size).video
        for polyp in (True, False)
        for size in (1.0, 1.8)
    }
    np.testing.assert_array_equal(clips[False, 1.0], clips[False, 1.8])
    assert (clips[True, 1.0] != clips[True, 1.8]).any()
    write_phantom(tmp_path / "usual", 1, 2, 16, seed=1)
    done = tmp_path / "usual" / "phantom.json"
    recipe, later = json.loads(done.read_text()), ("polyp_size", "crc32")
    done.write_text(json.dumps({key: value for key, value in recipe.items() if key not in later}))
    write_phantom(tmp_path / "usual", 1, 2, 16, seed=1)  # as versions wrote it that knew one size alone
    with pytest.raises(ValueError, match="polyp_size"):
        write_phantom(tmp_path / "usual", 1, 2, 16, seed=1, polyp_size=1.5)
    assert load_config(CONFIG, [f"phantom.polyp_size={MAX_POLYP}"]).phantom.polyp_size == MAX_POLYP
    with pytest.raises(BadInput, match="polyp_size"):
        load_config(CONFIG, [f"phantom.polyp_size={MAX_POLYP + 0.1}"])


@pytest.mark.parametrize("name", ["videos", "frames", "size", "workers", "polyp_size"])
def test_bad_corpus_numbers_are_refused(tmp_path, name):
    numbers = {"videos": 1, "frames": 2, "size": 16, "workers": 1, name: 0}
    with pytest.raises(ValueError, match=name):
        write_phantom(tmp_path / "phantom", seed=0, **numbers)


def test_another_look_shows_the_same_scene_in_other_colours_through_another_mask():
    usual = render_clip(1, 3, 48, polyp=True, instrument=False)
    other = render_clip(1, 3, 48, polyp=True, instrument=False, look="narrow-band")
    red, green = (usual.video[..., k].mean() for k in range(2))
    assert red > 1.3 * green
    red, green = (other.video[..., k].mean() for k in range(2))
    assert 0.75 * red < green < 1.1 * red
    assert other.video[..., 2].mean() < 0.75 * green, "mucosa is olive, not grey"
    assert not other.video[:, 24, :3].any(), "the mask's left rim"
    assert other.video[:, 24, 24].any()
    # A narrower view magnifies: the scene's centre moves faster across the pixels.
    centre = (slice(None), slice(None), slice(18, 30), slice(18, 30))
    speed = [np.hypot(*clip.flow[centre].transpose(1, 0, 2, 3)).mean() for clip in (usual, other)]
    assert 1.2 < speed[1] / speed[0] < 1.6
    with pytest.raises(ValueError, match="white-light, narrow-band"):
        render_clip(1, 1, 16, look="infrared")


def test_looks_are_never_mixed_in_a_folder(tmp_path):
    write_phantom(tmp_path / "usual", 1, 2, 16, seed=1)
    write_phantom(tmp_path / "other", 1, 2, 16, seed=1, look="narrow-band")
    write_phantom(tmp_path / "other", 1, 2, 16, seed=1, look="narrow-band")
    videos = [read_frames(tmp_path / name / "phantom-00000.mkv") for name in ("usual", "other")]
    assert not np.array_equal(*videos)
    for name, look in (("usual", "narrow-band"), ("other", "white-light")):
        with pytest.raises(ValueError, match="another folder"):
            write_phantom(tmp_path / name, 1, 2, 16, seed=1, look=look)
    assert variant_suffix(1, "white-light") == ""
    assert variant_suffix(1.8, "white-light") == "-polyps1.8"
    assert variant_suffix(1.8, "narrow-band") == "-polyps1.8-narrow-band"


def test_the_look_of_a_config_is_what_is_rendered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["phantom.videos=1", "phantom.frames=2", "data.size=16"]
    usual, other = (
        clip_folder(load_config(CONFIG, [*small, f"phantom.look={look}"])) for look in PHANTOM_LOOKS
    )
    assert usual != other
    assert not np.array_equal(*(read_frames(folder / "phantom-00000.mkv") for folder in (usual, other)))
    with pytest.raises(BadInput, match="white-light"):
        load_config(CONFIG, ["phantom.look=infrared"])
