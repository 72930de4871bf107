"""The exact optical flow that procedurally rendered videos carry beside them, in `NAME.flow.safetensors`.

The file holds the tensor `flow`, float16 (T-1, 2, H, W): pixels (right, down) from frame k to frame k+1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medsora.data.checking.check import SourceReport
from medsora.data.reading.decoding import UnreadableVideo
from medsora.errors import BadInput


def flow_path(video: Path) -> Path:
    """Return where the exact flow of `video` lies."""
    return video.with_suffix(".flow.safetensors")


def check_flow_files(videos: Sequence[SourceReport], *, interval: int | None, size: tuple[int, int]) -> None:
    """Raise `BadInput` with one sentence unless every video has an exact flow that fits its clips."""
    if interval != 1:
        raise BadInput(
            f"exact flow leads from each frame to the next, not over {interval or 'several'} frames; set "
            "data.interval=1."
        )
    for video in videos:
        path, scan = flow_path(video.source.path), video.scan
        if any(video.margins):
            raise BadInput(
                f"exact flow cannot be cropped, but {video.source.name} is {video.crop_words}; "
                "set data.crop=none."
            )
        if (scan.height, scan.width) != size:
            raise BadInput(
                f"exact flow cannot be resized: {video.source.name} has {scan.height}x{scan.width} pixels "
                f"(height x width), the clips {size[0]}x{size[1]}; set data.size to the video's."
            )
        expected = [scan.frames - 1, 2, scan.height, scan.width]
        try:
            with safe_open(path, framework="pt") as file:
                shape = file.get_slice("flow").get_shape()
        except FileNotFoundError:
            raise BadInput(
                f"{video.source.name} has no exact flow {path.name} beside it; only the phantom has, take "
                "another flow.estimator for other videos."
            ) from None
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{path} cannot be read as exact flow ({error}).") from error
        if shape != expected:
            raise BadInput(f"{path} holds flow of shape {shape} where its video needs {expected}.")


def read_flow(video: Path, start: int, count: int) -> Tensor:
    """Return the flow of `count` frame pairs from frame `start` on: float32 (count, 2, H, W) in pixels.

    Raises `UnreadableVideo` or `OSError` if the file is gone or damaged since it was checked.
    """
    path = flow_path(video)
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice("flow")[start : start + count].to(torch.float32)
    except SafetensorError as error:
        raise UnreadableVideo(path, f"does not read as exact flow ({error})") from error
