"""Digests of what a cached value depends on: files' contents and the windows cut from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from medsora.data.clips import ClipDataset
from medsora.data.exact_flow import flow_path


def clips_digest(clips: ClipDataset) -> str:
    """Return a SHA-256 over every source's content and over which clips are cut from it, and how."""
    digest = hashlib.sha256()
    geometry = [clips.spec.clip_frames, clips.spec.interval, list(clips.spec.size)]
    if clips.spec.rate is not None:
        geometry += [clips.spec.rate, [video.scan.fps for video in clips.videos]]
    windows = [[video, window.start] for video, window in clips.windows]
    digest.update(json.dumps([geometry, windows]).encode())
    margins = [list(video.margins) for video in clips.sources]
    if any(map(any, margins)):
        digest.update(json.dumps(margins).encode())
    applied = [list(video.scan.applied) for video in clips.sources]
    if any(applied):
        digest.update(json.dumps(applied).encode())
    for video in clips.sources:
        source = video.source
        whole = source.recording is None or source.recording.plain  # with the other files of the folder
        digest.update(source.name.encode("utf-8", "surrogateescape"))
        digest.update(_content_digest(source.path, None if whole else source.pictures))
    return digest.hexdigest()


def flow_digest(clips: ClipDataset) -> str:
    """Return a SHA-256 over the content of the exact flow beside every source."""
    digest = hashlib.sha256()
    for video in clips.videos:
        digest.update(_content_digest(flow_path(video.source.path)))
    return digest.hexdigest()


def _content_digest(path: Path, pictures: Sequence[str] | None = None) -> bytes:
    if path.is_dir():
        digest = hashlib.sha256()
        for picture in sorted(path.iterdir()) if pictures is None else (path / name for name in pictures):
            if picture.is_file():
                digest.update(picture.name.encode("utf-8", "surrogateescape") + _content_digest(picture))
        return digest.digest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
