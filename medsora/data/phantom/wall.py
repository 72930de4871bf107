"""The tube's wall, unrolled: relief and colour as images over (distance along the tube, angle around it).

Lengths are in units of the tube's mean radius. The images repeat along the tube every `LENGTH`, which is
farther than the light reaches, so no two copies are ever seen at once.
"""

from __future__ import annotations

import cv2
import numpy as np

LENGTH = 14.0
TEXELS = 48  # texels per unit length along the tube
ROWS, COLUMNS = round(LENGTH * TEXELS), round(2 * np.pi * TEXELS)
MIN_RADIUS = 0.42  # minimum radius at a fold, so that the camera always fits through

_ALONG = (np.arange(ROWS, dtype=np.float32) / TEXELS)[:, None]
_AROUND = (np.arange(COLUMNS, dtype=np.float32) * (2 * np.pi / COLUMNS))[None, :]


class Wall:
    """Relief, its slopes and the colours of one clip's wall.

    Args:
        rng: source of everything that varies between clips.
        polyp_at: where along the tube a polyp sits, or None.
        polyp_size: how wide it is, times the usual; it grows wider sooner than tall.
    """

    def __init__(self, rng: np.random.Generator, polyp_at: float | None, polyp_size: float = 1.0) -> None:
        haustra = _folds(rng)
        bulges = 0.07 * _smooth_noise(rng, 10, 5)
        polyp_angle = rng.uniform(0, 2 * np.pi)
        across, height = polyp_size * rng.uniform(0.34, 0.48), polyp_size**0.3 * rng.uniform(0.3, 0.42)
        dome = np.zeros((ROWS, COLUMNS), np.float32)
        if polyp_at is not None:
            near = _distance(polyp_at, polyp_angle)
            haustra = haustra * (1 - 0.85 * np.exp(-((near / 1.0) ** 2)))
            in_front = _distance(polyp_at - 0.8, polyp_angle)
            haustra = haustra * (1 - 0.75 * np.exp(-((in_front / 0.8) ** 2)))
            dome = np.clip(1 - (near / across) ** 2, 0, None) ** 0.65
        radius = 1 + bulges - haustra - height * dome
        radius = cv2.GaussianBlur(np.pad(radius, 8, mode="wrap"), (0, 0), 0.023 * TEXELS)[8:-8, 8:-8]
        radius = MIN_RADIUS + _soft_positive(radius - MIN_RADIUS, 0.04)
        # What light sees is rougher than what hides: fine wet bumps bend the normal, not the silhouette.
        grain = radius + 0.006 * _smooth_noise(rng, 98, 44) + 0.016 * _smooth_noise(rng, 36, 16)
        grain = np.pad(grain, 1, mode="wrap")
        slope_along = (grain[2:, 1:-1] - grain[:-2, 1:-1]) * (TEXELS / 2)
        slope_around = (grain[1:-1, 2:] - grain[1:-1, :-2]) * (COLUMNS / (4 * np.pi))
        colour = _mucosa(rng, haustra, dome)
        self._radius = _pad_end(radius)
        self._shading = _pad_end(np.dstack([slope_along, slope_around]))
        self._colour = _pad_end(np.dstack([colour, np.clip(dome * 3, 0, 1)]))

    def radius(self, along: np.ndarray, around: np.ndarray) -> np.ndarray:
        """Radius of the wall at (distance along, angle in radians), both `(n,)`."""
        return _sample(self._radius, along, around)

    def slopes(self, along: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of the (finely bumped) radius along the tube and by angle."""
        slopes = _sample(self._shading, along, around)
        return slopes[:, 0], slopes[:, 1]

    def colour(self, along: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Albedo `(n, 3)` in [0, 1] and how far each point belongs to the polyp, `(n,)` in [0, 1]."""
        texture = _sample(self._colour, along, around)
        return texture[:, :3], texture[:, 3]


def _smooth_noise(rng: np.random.Generator, cells_along: int, cells_around: int) -> np.ndarray:
    """Band-limited noise of unit scale over the unrolled wall, seamless in both directions."""
    cells = rng.standard_normal((cells_along, cells_around)).astype(np.float32)
    margin = 2
    cells = np.pad(cells, margin, mode="wrap")
    step_along, step_around = ROWS / cells_along, COLUMNS / cells_around
    rows = (np.arange(ROWS, dtype=np.float32) / step_along + margin)[:, None]
    columns = (np.arange(COLUMNS, dtype=np.float32) / step_around + margin)[None, :]
    rows, columns = np.broadcast_arrays(rows, columns)
    return cv2.remap(cells, columns.copy(), rows.copy(), cv2.INTER_CUBIC)


def _folds(rng: np.random.Generator) -> np.ndarray:
    """Height of the haustral folds above the wall: rings, three-lobed rings or crescents."""
    lobes = rng.choice([1, 2, 3], p=[0.2, 0.2, 0.6])  # 3: the triangular lumen of the transverse colon
    evenness = rng.uniform(0.45, 0.7)
    spacing, height = rng.uniform(0.9, 1.35), rng.uniform(0.3, 0.5)
    folds = round(LENGTH / spacing)
    centres = (np.arange(folds) + rng.uniform(-0.22, 0.22, folds)) * (LENGTH / folds)
    turn = rng.uniform(0, 2 * np.pi)
    relief = np.zeros((ROWS, COLUMNS), np.float32)
    around_crest = np.arange(-2 * TEXELS, 2 * TEXELS)
    for centre in centres:
        phase = turn + float(rng.normal(0, 0.35))
        lean = 0.16 * np.cos(_AROUND - rng.uniform(0, 2 * np.pi)) + 0.05 * np.cos(3 * (_AROUND - phase))
        rows = round(centre * TEXELS) + around_crest
        away = (rows / TEXELS - centre).astype(np.float32)[:, None] - lean
        crest = np.exp(-(np.sqrt(away**2 + 0.08**2) - 0.08) / rng.uniform(0.1, 0.16))
        lobed = evenness + (1 - evenness) * np.cos(lobes * (_AROUND - phase))
        relief[rows % ROWS] += (height * rng.uniform(0.75, 1.15)) * crest * np.clip(lobed, 0.05, None)
    return relief


def _mucosa(rng: np.random.Generator, haustra: np.ndarray, dome: np.ndarray) -> np.ndarray:
    """Albedo of the wall: pink to orange, blotched, paler on the folds, vessels, the polyp redder."""
    pink, orange = np.array([0.90, 0.52, 0.47]), np.array([0.93, 0.57, 0.38])
    base = pink + rng.uniform(0, 1) * (orange - pink)
    base = base * rng.uniform(0.92, 1.05, 3)
    colour = np.broadcast_to(base, (ROWS, COLUMNS, 3)).astype(np.float32)
    blotches = 0.6 * _smooth_noise(rng, 18, 8) + 0.4 * _smooth_noise(rng, 45, 20)
    colour = colour * np.exp(blotches[..., None] * np.array([0.03, 0.09, 0.09], np.float32))
    paler = np.clip(haustra * 1.5, 0, 1)[..., None]
    colour = colour + paler * np.array([0.04, 0.07, 0.06], np.float32)
    vessels = _vessels(rng)[..., None] * (1 - 0.8 * dome[..., None]) * rng.uniform(0.5, 0.9)
    colour = colour * np.exp(-vessels * np.array([0.28, 0.8, 0.62], np.float32))
    lumps = 1 + 0.12 * _smooth_noise(rng, 80, 36)[..., None]
    redder = np.array([0.95, 0.58, 0.62], np.float32) * lumps
    colour = colour * (1 + np.clip(dome * 2.5, 0, 1)[..., None] * (redder - 1))
    return np.clip(colour, 0.02, 1).astype(np.float32)


def _vessels(rng: np.random.Generator) -> np.ndarray:
    """Branching submucosal vessels as darkness in [0, 1]: random walks that fork and get thinner."""
    margin = round(2.5 * TEXELS)  # room for branches that grow over the edge; it is folded back at the end
    size = np.array([COLUMNS, ROWS])
    canvas = np.zeros((ROWS + 2 * margin, COLUMNS + 2 * margin), np.uint8)
    branches = [
        (margin + rng.uniform(0, size), rng.uniform(0, 2 * np.pi), rng.uniform(0.047, 0.07), 0)
        for _ in range(38)
    ]
    while branches:
        start, heading, width, depth = branches.pop()
        steps = 12 if depth == 0 else 8
        headings = heading + np.cumsum(rng.normal(0, 0.22, steps))
        path = start + 0.14 * TEXELS * np.cumsum(
            np.stack([np.cos(headings), np.sin(headings)], axis=1), axis=0
        )
        path = np.clip(np.vstack([start, path]), 4, size + 2 * margin - 4)
        points = np.round(path * 16).astype(np.int32)[:, None]
        cv2.polylines(canvas, [points], False, 255, max(1, round(width * TEXELS)), cv2.LINE_AA, shift=4)
        if depth < 3:
            for at in rng.integers(3, steps, 2):
                side = rng.choice([-1, 1]) * rng.uniform(0.5, 1.0)
                branches.append((path[at], headings[at] + side, width * 0.66, depth + 1))
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.02 * TEXELS)
    rows, columns = ((np.arange(side + 2 * margin) - margin) % side for side in (ROWS, COLUMNS))
    wrapped = np.zeros((ROWS, COLUMNS), np.uint8)
    np.maximum.at(wrapped, (rows[:, None], columns[None, :]), canvas)
    return wrapped.astype(np.float32) / 255


def _distance(along: float, around: float) -> np.ndarray:
    """Distance on the unrolled wall to one point, in units of the mean radius."""
    return np.hypot(_periodic(_ALONG - along, LENGTH), _periodic(_AROUND - around, 2 * np.pi))


def _periodic(difference: np.ndarray, period: float) -> np.ndarray:
    """The difference's representative in [-period / 2, period / 2)."""
    return (difference + period / 2) % period - period / 2


def _soft_positive(x: np.ndarray, softness: float) -> np.ndarray:
    """A smooth max(x, 0)."""
    return (x + np.sqrt(x**2 + softness**2)) / 2


def _pad_end(image: np.ndarray) -> np.ndarray:
    """One wrapped row and column at the end, so that interpolation needs no wrapping of its own."""
    margins = ((0, 1), (0, 1), (0, 0))[: image.ndim]
    return np.ascontiguousarray(np.pad(image, margins, mode="wrap"), dtype=np.float32)


def _sample(image: np.ndarray, along: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Bilinear, periodic look-up at `(n,)` positions; OpenCV wants its maps as images of limited width."""
    n, width = len(along), 256
    rows = -(-n // width)
    y, x = np.zeros((2, rows * width), np.float32)
    turns = along * np.float32(1 / LENGTH)
    y[:n] = (turns - np.floor(turns)) * ROWS
    turns = around * np.float32(1 / (2 * np.pi))
    x[:n] = (turns - np.floor(turns)) * COLUMNS
    values = cv2.remap(image, x.reshape(rows, width), y.reshape(rows, width), cv2.INTER_LINEAR)
    return values.reshape(rows * width, *image.shape[2:])[:n]
