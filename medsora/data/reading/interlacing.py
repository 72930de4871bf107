"""Interlaced frames, woven of two fields of different moments: found, and turned into whole ones by bwdif."""

from __future__ import annotations

from contextlib import suppress

import av
import numpy as np

INFORMATIVE_FRAMES = 100  # frames with motion that are inspected; still frames are not informative
MIN_INFORMATIVE_FRAMES = 8  # minimum; with fewer, frames count as progressive
MIN_INTERLACED_PART = 0.9  # share of the telling frames
MOVING = 8  # minimum change of a moving pixel, in grey levels
COMBED = 0.7  # roughness over that of every other row; real and phantom frames stay below 0.67
ANIMATIONS = {"gif", "apng"}  # never interlaced, but dithered, which can look so

_PARITY = {"top": "tff", "bottom": "bff", None: "auto"}  # auto: as the frame is flagged


def _graph(frame: av.VideoFrame, filter_name: str, arguments: str) -> av.filter.Graph:
    """Return a graph of one filter for frames like `frame`. Raises `av.FFmpegError` if it cannot be built."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = (
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000:"
        f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
    )
    nodes = graph.add("buffer", source), graph.add(filter_name, arguments), graph.add("buffersink")
    graph.link_nodes(*nodes).configure()
    return graph


def _pulled(graph: av.filter.Graph) -> av.VideoFrame | None:
    """Return the frame that waits at the end of `graph`, or None; no push leaves more than one."""
    with suppress(av.BlockingIOError, av.EOFError):
        return graph.vpull()
    return None


def _like(frame: av.VideoFrame) -> tuple:
    return frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range


def _is_combed(grey: np.ndarray, before: np.ndarray) -> bool:
    """Return whether rows (h, w) are rough where they changed since `before`.

    The second difference of neighbouring rows is compared with that of every other row: it is about half of
    that in whole frames, and as large or larger in frames woven of two moments.
    """
    moving = (np.abs(grey - before) > MOVING)[2:-2]
    middle = 2 * grey[2:-2]
    rows = np.abs(middle - grey[1:-3] - grey[3:-1])[moving].sum(dtype=np.int64)
    every_other = np.abs(middle - grey[:-4] - grey[4:])[moving].sum(dtype=np.int64)
    return bool(rows > COMBED * every_other)


class Deinterlacer:
    """bwdif with one frame out for each frame in, a function of that frame and its two neighbours alone.

    So a frame comes out the same wherever decoding began.
    """

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._kind: tuple = ()
        self._pushed: list[av.VideoFrame] = []

    def __call__(
        self,
        previous: av.VideoFrame | None,
        frame: av.VideoFrame,
        following: av.VideoFrame | None,
        field_order: str | None = None,
    ) -> av.VideoFrame:
        """Return `frame` deinterlaced; a neighbour is missing at a video's ends and where the format changes.

        `field_order` ("top" or "bottom" field first) is that of a frame that is not flagged. Raises
        `av.FFmpegError`.
        """
        kind = (*_like(frame), field_order)
        three = [
            frame if other is None or _like(other) != _like(frame) else other
            for other in (previous, frame, following)
        ]
        if kind != self._kind:
            self._graph = _graph(frame, "bwdif", f"mode=send_frame:deint=all:parity={_PARITY[field_order]}")
            self._kind, self._pushed = kind, []
        known = [id(other) for other in self._pushed] == [id(other) for other in three[:2]]
        for other in three[2:] if known else three:
            self._graph.vpush(other)
            result = _pulled(self._graph)
        self._pushed = three[1:]
        return result


class FieldOrderDetector:
    """Judges with FFmpeg's idet whether frames that are not flagged are interlaced all the same.

    idet takes some vertical motion for two fields; so only frames count that are combed where they move.
    """

    def __init__(self, codec: str) -> None:
        self._graph: av.filter.Graph | None = None
        self._kind: tuple = ()
        self._judged: av.VideoFrame | None = None  # the last one
        self._counts = {"tff": 0, "bff": 0, "progressive": 0}
        self._finished = codec in ANIMATIONS

    def add(self, frame: av.VideoFrame) -> None:
        """Inspect the next frame, until enough frames were informative."""
        if self._finished or frame.interlaced_frame:
            return
        try:
            if self._graph is None:
                self._graph, self._kind = _graph(frame, "idet", ""), _like(frame)
            if _like(frame) != self._kind:
                return
            self._graph.vpush(frame)
            self._note(_pulled(self._graph))
        except Exception:  # too small, an unsupported pixel format, or damage
            self._finished = True

    def field_order(self) -> str | None:
        """Return "top" or "bottom", the field that comes first, or None if the frames are not interlaced."""
        if self._graph is not None and not self._finished:
            with suppress(Exception):
                self._graph.vpush(None)
                self._note(_pulled(self._graph))
        top, bottom, progressive = self._counts.values()
        telling = top + bottom + progressive
        if telling < MIN_INFORMATIVE_FRAMES or top + bottom < MIN_INTERLACED_PART * telling:
            return None
        return "top" if top >= bottom else "bottom"

    def _note(self, judged: av.VideoFrame | None) -> None:
        before, self._judged = self._judged, judged or self._judged
        if judged is None or before is None:
            return
        verdict = judged.metadata["lavfi.idet.multiple.current_frame"]
        if verdict in ("tff", "bff") and not _is_combed(_grey(judged), _grey(before)):
            verdict = "progressive"
        if verdict in self._counts:
            self._counts[verdict] += 1
        whole = self._counts["progressive"] > round((1 - MIN_INTERLACED_PART) * INFORMATIVE_FRAMES)
        self._finished = whole or sum(self._counts.values()) >= INFORMATIVE_FRAMES


def _grey(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="gray").astype(np.int16)
