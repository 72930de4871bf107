"""The pictures of an evaluation: a contact sheet, how both sets move, every distance beside its floor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from medsora.data.sheet import contact_sheet, save_image
from medsora.evaluation.features.clip_set import ClipSet
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.motion import DIRECTIONS, SPEEDS, MotionMeasure
from medsora.evaluation.report.results import Distance
from medsora.html_report import save_figure

SHEET_CLIPS, SHEET_FRAMES = 6, 8
ROW_CLIPS, ROW_FRAMES = 3, 3  # per set in a comparison's sheet
MIN_STILL_SHARE = 0.005  # share of pixels below the first drawn speed from which the legend names them
TAB10 = [f"C{number}" for number in range(10)]  # C0 is the real set's blue
COLOURS = {"real": "#4c78a8", "generated": "#e4572e"}


def write_sheet(path: Path, real: ClipSet, fake: ClipSet) -> None:
    """Write evenly picked clips of both sides, one row each, as one picture."""
    rows = []
    for name, clips in ((real.reference, real), ("generated", fake)):
        picks = np.linspace(0, len(clips) - 1, min(SHEET_CLIPS, len(clips))).round().astype(int)
        rows += [(f"{name}: {clips.name(i)}", clips.read(i)) for i in picks]
    save_image(path, contact_sheet(rows, columns=SHEET_FRAMES))


def write_comparison_sheet(path: Path, sets: Mapping[str, ClipSet]) -> None:
    """Write one row for each set, by name: first, middle and last frame of a few evenly picked clips."""
    rows = []
    for name, clips in sets.items():
        picks = np.linspace(0, len(clips) - 1, min(ROW_CLIPS, len(clips))).round().astype(int)
        moments = np.linspace(0, clips.frames - 1, min(ROW_FRAMES, clips.frames)).round().astype(int)
        frames = np.concatenate([clips.read(int(i))[moments] for i in picks])
        rows.append((f"{name}: {', '.join(clips.name(i) for i in picks)}", frames))
    save_image(path, contact_sheet(rows, columns=ROW_CLIPS * ROW_FRAMES))


def draw_motion(path: Path, sets: Mapping[str, Features]) -> None:
    """Draw how fast and where to the pixels of the sets move, each by its name; the first is the real one."""
    figure = Figure(figsize=(9, 3.6 + 0.2 * max(len(sets) - 2, 0)), layout="constrained")
    speed_axes = figure.add_subplot(1, 2, 1)
    compass = figure.add_subplot(1, 2, 2, projection="polar")
    angles = (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS * 2 * np.pi - np.pi
    colours = dict(zip(sets, [*COLOURS.values()], strict=False))
    if len(sets) > len(COLOURS):
        many = len(sets) > len(TAB10)
        shades = colormaps["turbo"](np.linspace(0, 1, len(sets) - 1)) if many else TAB10[1:]
        colours = dict(zip(sets, [COLOURS["real"], *shades], strict=False))
    for number, (name, features) in enumerate(sets.items()):
        speeds, directions = MotionMeasure.histograms(features)
        filled = {"fill": True, "alpha": 0.4} if number == 0 or len(sets) == 2 else {"baseline": None}
        still = f", {speeds[0]:.0%} still" if speeds[0] >= MIN_STILL_SHARE else ""
        speed_axes.stairs(speeds[1:], SPEEDS[1:], label=name + still, color=colours[name], **filled)
        compass.plot(np.append(angles, angles[0]), np.append(directions, directions[0]), color=colours[name])
    speed_axes.set(
        xscale="log", xlabel="flow magnitude, px per frame", ylabel="share of pixels", title="speed"
    )
    if len(sets) > len(COLOURS):
        figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    else:
        speed_axes.legend()
    compass.set(theta_direction=-1, yticklabels=[], title="direction, weighted by speed (as in the picture)")
    save_figure(path, figure)


def draw_distances(path: Path, distances: Mapping[str, Distance], reference: str) -> None:
    """Draw every distance with its interval beside the distance of the halves of the `reference` clips.

    An undefined distance gets that word in place of a bar, whose absence would look like 0.
    """
    columns = 4
    rows = -(-len(distances) // columns)
    figure = Figure(figsize=(3 * columns, 2.6 * rows), layout="constrained")
    for number, distance in enumerate(distances.values(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        bars = {f"two halves of\n{reference}": distance.real_halves, "generated": distance.value}
        known = {name: value for name, value in bars.items() if value is not None and math.isfinite(value)}
        names = [name if name in known else f"{name}\n(undefined)" for name in bars]
        axes.bar(names, [known.get(name, 0.0) for name in bars], color=list(COLOURS.values()))
        if distance.spread:
            low, high = distance.spread.low, distance.spread.high
            axes.vlines(1, max(low, 0), high, color="black")
        axes.set_title(distance.title, fontsize=8, wrap=True)
        axes.set_ylabel(distance.unit, fontsize=8)
        axes.tick_params(labelsize=8)
    save_figure(path, figure)
