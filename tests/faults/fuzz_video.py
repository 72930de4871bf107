"""Mutated video files and pictures against the check of a folder and the reader of clips."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from medsora.data.checking.scan import CHECK_FAILS, scan_source
from medsora.data.reading.decoding import UnreadableVideo, VideoReader
from medsora.data.reading.find import Source
from medsora.data.reading.frame_folder import read_image
from medsora.data.reading.video_io import read_frames
from tests.faults.guarded import report, try_all
from tests.faults.mutate import mutate_boxes, mutate_bytes, mutate_packets
from tests.support.video_files import encode, encode_named, moving_frames

VIDEOS = (
    "h264_b_frames.mp4",
    "hevc.mp4",
    "h264.ts",
    "mpeg4.avi",
    "mjpeg.avi",
    "vp9.webm",
    "wmv2.wmv",
    "palette.gif",
    "ffv1.mkv",
    "h264.flv",
)
PICTURES = ("frame.png", "frame.jpg", "frame.bmp", "frame.tiff", "frame.webp")
FRAMES, HEIGHT, WIDTH = 24, 48, 64
LARGE, LARGE_SIDE, LARGE_FRAMES = "large.mp4", 2048, 4  # with as many reference frames as there can be


def fuzz_video(inputs: int, seed: int) -> int:
    """Try `inputs` mutated files; print what came of them; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="medsora-fuzz-") as folder:
        originals = write_originals(Path(folder) / "originals")
        tally = try_all(inputs, lambda number: attempt(number, seed, originals, Path(folder)))
    return report(tally, "opened", "damaged video files and pictures")


def write_originals(folder: Path) -> list[Path]:
    """Write one small file of each kind."""
    frames = moving_frames(FRAMES, HEIGHT, WIDTH)
    videos = [encode_named(folder, name, frames) for name in VIDEOS]
    for name in PICTURES:
        Image.fromarray(frames[0]).save(folder / name)
    still = np.zeros((LARGE_FRAMES, LARGE_SIDE, LARGE_SIDE, 3), np.uint8)
    options = {"preset": "ultrafast", "x264-params": "ref=16:bframes=0:log-level=none"}
    videos.append(encode(folder / LARGE, still, "libx264", "yuv444p", options))
    return videos + [folder / name for name in PICTURES]


def attempt(number: int, seed: int, originals: list[Path], folder: Path) -> str:
    """Check and read the mutated file `number`; return how far that came."""
    draw = random.Random(f"{seed}/{number}")
    original = draw.choice(originals)
    content = original.read_bytes()
    by_structure = {".mp4": mutate_boxes, ".avi": mutate_boxes, ".ts": mutate_packets}
    mutate = by_structure.get(original.suffix, mutate_bytes) if draw.random() < 0.5 else mutate_bytes
    mutated = mutate(content, draw)
    path = folder / f"mutated-{os.getpid()}{original.suffix}"
    path.write_bytes(mutated)
    if original.name in PICTURES:
        assert read_image(path).dtype == np.uint8
        return "opened: the picture decodes"
    scan = scan_source(Source(path, path.name))
    assert not (scan.problem or "").startswith(CHECK_FAILS), scan.problem
    if scan.problem:
        try:
            VideoReader(path).__exit__(None, None, None)
        except UnreadableVideo:
            return "refused: does not open"
        return "opened, but no frame decodes"
    for start, stop in scan.runs()[:2]:
        count = min(stop - start, 9)
        found = {"seek_points": scan.seek_points, "intact": not scan.broken}
        try:
            clip = read_frames(path, start, count, 1, 32, **found, time_limit=20)
        except UnreadableVideo:
            return "opened: a clip is refused when it is read"
        assert clip.shape[1:] == (32, 32, 3)
    return "opened: damage found, the rest is read" if scan.remarks else "opened: read to the end"
