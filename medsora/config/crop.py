"""Cropping of frames before all else: black borders, fixed margins, or none."""

from __future__ import annotations

from typing import Any

from medsora.errors import BadInput

Crop = str | tuple[float, float, float, float]  # "auto", "none", or parts at the top, bottom, left and right
MAX_PART = 0.95  # maximum share of a side that is cropped


def checked_crop(crop: Any, name: str) -> Crop:
    """Return `crop` if it is one; else raise `BadInput` with a sentence about `name`."""
    if crop in ("auto", "none"):
        return crop
    parts = tuple(crop) if isinstance(crop, list | tuple) else ()
    numbers = len(parts) == 4 and all(isinstance(part, int | float) and 0 <= part < 1 for part in parts)
    if not numbers or max(parts[0] + parts[1], parts[2] + parts[3]) >= MAX_PART:
        raise BadInput(
            f"{name} is {crop!r} but must be auto, none, or four parts of the frame to cut off, "
            "[top, bottom, left, right], such as [0.1, 0.1, 0.25, 0]."
        )
    return parts


def crop_of_text(text: str) -> Any:
    """Return what a command line names by "auto", "none" or "0.1,0.1,0.25,0"; `checked_crop` checks it."""
    try:
        return [float(part) for part in text.strip("[]").split(",")]
    except ValueError:
        return text


def crop_of_generated(crop: Crop) -> Crop:
    """Return the crop of generated clips for real clips' `crop`: fixed margins were never in them."""
    return crop if isinstance(crop, str) else "none"


def crop_in_words(crop: Crop) -> str:
    """Return the description of a crop for an evaluation's protocol."""
    if crop == "auto":
        return "every video's own black borders are cut off first, as in training with data.crop: auto"
    if crop == "none":
        return "whole frames, as in training with data.crop: none"
    sides = zip(("top", "bottom", "left", "right"), crop, strict=True)
    parts = ", ".join(f"{side} {part:.4g}" for side, part in sides if part) or "nothing"
    return f"fixed parts of real frames are cut off first ({parts}), as in training with the same data.crop"
