"""Contact sheets: rows of frames side by side, each row under its label, as one picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medsora.runtime.files import written_beside

SHEET_NAME = "contact-sheet.png"  # beside sampled videos
# Files that MedSora's commands draw beside clips: sheets and plots, never frames of a clip.
DRAWN = re.compile(
    r"((contact-|latest-)?sheet|sheet-.+|samples|distances|motion|nearest-training-clips|worst-and-best"
    r"|step-\d{7,}|stage-[12]|loss|held_out|alignment|gradient_norm|lr|speed-samples_per_s)\.png"
)
_BACKGROUND, _INK = (24, 24, 27), (228, 228, 231)
_FONT_SIZE, _LABEL_HEIGHT, _GAP = 13, 20, 2


def is_drawn(name: str) -> bool:
    """Return whether a file of this name is a picture that MedSora's commands draw beside clips."""
    return DRAWN.fullmatch(name) is not None


def contact_sheet(
    rows: Sequence[tuple[str, np.ndarray]], *, columns: int = 8, scale: int | None = None
) -> np.ndarray:
    """Return one picture, uint8 (H, W, 3), with a labelled row for each (label, frames).

    `frames` is uint8 (F, h, w, 3); `columns` of them, evenly spaced from the first to the last, are shown, or
    all if there are fewer. `scale` enlarges by whole pixels (default: until frames are about 128 high).
    Raises `ValueError` without rows or on frames of another kind.
    """
    if not rows or columns < 1 or (scale is not None and scale < 1):
        raise ValueError("a contact sheet needs at least one row, one column and a scale of at least 1.")
    strips = [_strip(label, frames, columns, scale) for label, frames in rows]
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), _BACKGROUND)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return np.asarray(sheet)


def save_image(path: str | Path, image: np.ndarray) -> None:
    """Write a uint8 (H, W, 3) picture as PNG or JPEG, by its ending; atomically."""
    with written_beside(Path(path)) as beside:
        Image.fromarray(image).save(beside)


def _strip(label: str, frames: np.ndarray, columns: int, scale: int | None) -> Image.Image:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"the row '{label}' must be uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}.")
    count, height = frames.shape[:2]
    shown = frames[np.linspace(0, count - 1, min(columns, count)).round().astype(int)]
    scale = scale or max(1, round(128 / height))
    pad = [(0, 0), (0, 0), (0, _GAP), (0, 0)]
    large = np.pad(shown.repeat(scale, axis=1).repeat(scale, axis=2), pad)
    line = large.transpose(1, 0, 2, 3).reshape(height * scale, -1, 3)[:, :-_GAP]

    font = ImageFont.load_default(_FONT_SIZE)
    strip_width = max(line.shape[1], int(font.getlength(label)) + 8)
    strip = Image.new("RGB", (strip_width, _LABEL_HEIGHT + line.shape[0] + _GAP), _BACKGROUND)
    ImageDraw.Draw(strip).text((4, 2), label, fill=_INK, font=font)
    strip.paste(Image.fromarray(line), (0, _LABEL_HEIGHT))
    return strip
