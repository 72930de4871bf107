"""The exact optical flow that procedurally rendered videos carry beside them, in `NAME.flow.safetensors`.

The file holds the tensor `flow`, float16 (T-1, 2, H, W): pixels (right, down) from frame k to frame k+1, and
`valid`, bool (T-1, H, W), and a digest of both (`sealed_tensors`), which files of earlier versions lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medsora.data.checking.check import SourceReport
from medsora.data.reading.decoding import UnreadableVideo
from medsora.errors import BadInput
from medsora.runtime.digests import Damaged, check_tensors, parse_tensors, sealed_tensors
from medsora.runtime.files import write_bytes


def flow_path(video: Path) -> Path:
    """Return where the exact flow of `video` lies."""
    return video.with_suffix(".flow.safetensors")


def write_flow(video: Path, flow: np.ndarray, valid: np.ndarray) -> None:
    """Write the exact flow of `video`: `flow` (T-1, 2, H, W), pixels, and where it is `valid` (T-1, H, W).

    Raises `OSError` if the place cannot be written.
    """
    tensors = {"flow": flow.astype(np.float16), "valid": valid}
    write_bytes(flow_path(video), sealed_tensors(safetensors.numpy.save(tensors)))


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

    The file is compared with its digest once in each process, and again where it was written to. Raises
    `UnreadableVideo` or `OSError` if it is gone or damaged since it was checked.
    """
    path = flow_path(video)
    try:
        status = path.stat()
        _check_digest(path, (status.st_ino, status.st_size, status.st_mtime_ns))
        with safe_open(path, framework="pt") as file:
            return file.get_slice("flow")[start : start + count].to(torch.float32)
    except (SafetensorError, Damaged) as error:
        remedy = "if it is a phantom's, delete it and phantom.json to render both again"
        raise UnreadableVideo(path, f"does not read as exact flow ({error}); {remedy}") from error


@lru_cache(maxsize=2**16)
def _check_digest(path: Path, identity: tuple[int, int, int]) -> None:
    content = np.fromfile(path, np.uint8)
    start, about, header = parse_tensors(content)
    check_tensors(about, header, content[start:])
