"""medsora.data.reading.decoding: colours come out as coded: by the tags, else by the number of rows."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, ColorTrc

from medsora.data.checking.scan import scan_source
from medsora.data.reading.find import Source
from medsora.data.reading.video_io import read_frames

BARS = np.zeros((48, 64, 3), np.uint8)
BARS[:, :32], BARS[:, 32:] = (200, 40, 40), (190, 120, 90)  # mucosa-like reds


def coded(
    path: Path,
    matrix: Colorspace,
    value_range: ColorRange,
    *,
    tagged: bool,
    rows: int = 48,
    transfer: ColorTrc | None = None,
) -> Path:
    frame = BARS.repeat(rows // 48, 0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.options = rows, 64, "yuv420p", {"crf": "4"}
        if tagged:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, value_range
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        for _ in range(4):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=matrix, dst_color_range=value_range
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def worst(path: Path) -> int:
    frame = read_frames(path, 1, 1)[0].astype(int)
    middle = len(frame) // 2
    return max(
        np.abs(frame[middle, x] - colour).max() for x, colour in ((8, (200, 40, 40)), (56, (190, 120, 90)))
    )


@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709, Colorspace.BT2020])
@pytest.mark.parametrize("value_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("rows", [48, 720])
def test_tags_are_followed(tmp_path: Path, matrix: Colorspace, value_range: ColorRange, rows: int) -> None:
    path = coded(tmp_path / "a.mp4", matrix, value_range, tagged=True, rows=rows)
    assert worst(path) <= 4
    assert scan_source(Source(path, path.name)).applied == ()


@pytest.mark.parametrize(
    ("rows", "matrix"), [(48, Colorspace.ITU601), (576, Colorspace.ITU601), (720, Colorspace.ITU709)]
)
def test_untagged_colours_are_guessed_as_players_guess(tmp_path: Path, rows: int, matrix: Colorspace) -> None:
    path = coded(tmp_path / "a.mp4", matrix, ColorRange.MPEG, tagged=False, rows=rows)
    assert worst(path) <= 4
    applied = ("colours read as BT.709",) if rows == 720 else ()
    assert scan_source(Source(path, path.name)).applied == applied


def test_limited_grey_is_stretched(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "gray"
        stream.codec_context.color_range = ColorRange.MPEG
        for _ in range(3):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64), 235, np.uint8), format="gray")
            picture.color_range = ColorRange.MPEG
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert (read_frames(tmp_path / "a.mkv") == 255).all()


@pytest.mark.parametrize(("transfer", "name"), [(ColorTrc.SMPTE2084, "PQ"), (ColorTrc.ARIB_STD_B67, "HLG")])
def test_high_dynamic_range_is_refused(tmp_path: Path, transfer: ColorTrc, name: str) -> None:
    path = coded(tmp_path / "a.mp4", Colorspace.BT2020, ColorRange.MPEG, tagged=True, transfer=transfer)
    problem = scan_source(Source(path, path.name)).problem
    assert problem.startswith(f"high dynamic range ({name})")
