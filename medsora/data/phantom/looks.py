"""Looks of an endoscope: the colours of its light, its mask and its field of view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsora.config.choices import PHANTOM_LOOKS


@dataclass(frozen=True)
class Look:
    """An endoscope; the rows of `colours` mix the scene's RGB into the display's, None changes nothing."""

    focal: float  # in units of the picture's shorter side
    masks: dict[str, float]  # how often each is drawn: "none", "octagon", "circle" or "keyhole"
    colours: tuple[tuple[float, float, float], ...] | None = None
    version: int = 1  # raised when the look draws other pictures from the same seed

    def show(self, display: np.ndarray) -> np.ndarray:
        """Return the display colours (n, 3) in [0, 1] of the scene's colours under white light."""
        if self.colours is None:
            return display
        return np.clip(display @ np.array(self.colours, np.float32).T, 0, 1)


# Narrow-band imaging lights with blue and green alone: green becomes the display's red, blue its green and
# blue; mucosa turns olive to brown, vessels dark and cyan, glare stays white.
_LOOKS = (
    Look(focal=0.43, masks={"none": 0.5, "octagon": 0.35, "circle": 0.15}),  # 98 degrees across
    Look(
        focal=0.6,  # 80 degrees across
        masks={"keyhole": 1.0},
        colours=((-0.1, 1.98, 0.0), (0.0, 0.84, 0.74), (0.0, 0.34, 0.62)),
        version=2,
    ),
)
LOOKS = dict(zip(PHANTOM_LOOKS, _LOOKS, strict=True))
DEFAULT_LOOK = _LOOKS[0]


def find_look(name: str) -> Look:
    """Return the look of that name; raises `ValueError`, which lists them, for another."""
    if name not in LOOKS:
        raise ValueError(f"phantom: the look {name!r} is unknown: expected one of {', '.join(LOOKS)}.")
    return LOOKS[name]
