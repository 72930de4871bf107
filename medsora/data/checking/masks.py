"""Whether pictures are segmentation masks, by their content: a few flat colours, or black and white alone."""

from __future__ import annotations

import numpy as np

MAX_COLOURS = 32  # distinct colours in all pictures together; one frame of a camera has thousands
SAMPLED_PX = 2**16  # pixels of each picture that are counted
NEAR_EXTREME = 12  # grey levels by which JPEG changes black and white
MIN_EXTREME = 0.97  # share of each picture that is black or white; edges are between
MIN_WHITE = 0.001  # share of white in at least one picture; dark frames have less


class MaskFinder:
    """Takes some pictures of one recording; of those called masks, black and white may be blurred by JPEG."""

    def __init__(self, *, called_masks: bool) -> None:
        self._called_masks = called_masks
        self._colours: set[int] | None = set()  # None: too many
        self._extreme, self._white = 1.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Take a picture, (h, w) or (h, w, 3)."""
        if self._colours is None and not self._called_masks:
            return
        stride = max(1, int((values.shape[0] * values.shape[1] / SAMPLED_PX) ** 0.5))
        picked = values[::stride, ::stride]
        if self._colours is not None:
            codes = picked if picked.ndim == 2 else picked.astype(np.int64) @ np.array([2**32, 2**16, 1])
            self._colours.update(np.unique(codes).tolist())
            if len(self._colours) > MAX_COLOURS:
                self._colours = None
        if self._called_masks and values.dtype == np.uint8:
            white = picked >= 255 - NEAR_EXTREME
            extreme = (white | (picked <= NEAR_EXTREME)).reshape(*picked.shape[:2], -1).all(axis=2)
            self._extreme = min(self._extreme, float(extreme.mean()))
            self._white = max(self._white, float(white.mean()))

    def words(self) -> str | None:
        """Return why the pictures are masks; None if they are not, or all are of one and the same colour."""
        if self._colours is not None and len(self._colours) > 1:
            return f"masks: its pictures hold {len(self._colours)} colours in all"
        if self._called_masks and self._extreme >= MIN_EXTREME and self._white >= MIN_WHITE:
            return "masks: its pictures are called so and hold little but black and white"
        return None
