"""The tables of reconstructed clips: means over the clips of each folder, with intervals and differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from medsora.downstream.reconstruct_clip import Job
from medsora.downstream.reconstruct_scores import DEPTH, FLAT, FOCAL, POSITION, ROTATION, STILL, STRAIGHT
from medsora.evaluation.bootstrap import LEVEL, replicate_weights
from medsora.runtime.markdown import EMPTY, markdown_table

REGISTERED, POINTS = "registered frames, %", "points"
REPROJECTION, TRACK = "reprojection error, px", "frames per point"
MEASURES = (REGISTERED, POINTS, REPROJECTION, TRACK)
ERRORS = (POSITION, STRAIGHT, ROTATION, STILL, DEPTH, FLAT, FOCAL)
REPLICATES = 500


class Mean(NamedTuple):
    """A mean over clips, its 95 % interval and the bootstrap's draws; `low` is None with a single clip."""

    value: float
    low: float | None
    high: float | None
    draws: np.ndarray

    def cell(self) -> str:
        """Return the table's cell."""
        interval = "" if self.low is None else f" ({_number(self.low)} … {_number(self.high)})"
        return _number(self.value) + interval

    def minus(self, other: Mean) -> Mean:
        """Return the difference of two folders' means, whose clips are drawn independently."""
        return _interval(self.value - other.value, self.draws - other.draws, None in (self.low, other.low))


def mean_over_clips(values: Sequence[float | None], side: int) -> Mean | None:
    """Return the mean of the values that are there, over draws of clips with replacement; None without any.

    `side` numbers the folder, so that different folders are drawn independently.
    """
    defined = np.array([value for value in values if value is not None], float)
    if not len(defined):
        return None
    draws = (
        np.stack(list(replicate_weights(len(defined), REPLICATES, seed=0, side=side)))
        @ defined
        / len(defined)
    )
    return _interval(float(defined.mean()), draws, len(defined) < 2)


class Report(NamedTuple):
    """Results of the clips of each folder, the reference first."""

    records: dict[str, list[dict[str, Any]]]
    frames: int
    size: int
    job: Job
    colmap: str
    command: str

    def values(self) -> dict[str, Any]:
        """Return what results.json holds."""
        values = {"command": self.command, "pycolmap": self.colmap, "job": vars(self.job)}
        values |= {"frames": self.frames, "size": self.size, "folders": self.records}
        means = {
            name: {measure: mean[:3] for measure in MEASURES if (mean := self._mean(name, measure))}
            for name in self.records
        }
        return values | {"means": means}

    def markdown(self) -> str:
        """Return the page."""
        first, *others = self.records
        rows = []
        for name, records in self.records.items():
            given_up = sum("failure" in record for record in records)
            whole = sum(record[POINTS] > 0 for record in records)
            means = [self._mean(name, measure) for measure in MEASURES]
            rows.append([name, len(records), whole, given_up, *map(_cell, means)])
        for name in others:
            pairs = [(self._mean(name, measure), self._mean(first, measure)) for measure in MEASURES]
            cells = [_cell(ours.minus(theirs) if ours and theirs else None) for ours, theirs in pairs]
            rows.append([f"{name} − {first}", EMPTY, EMPTY, EMPTY, *cells])
        lines = ["# Reconstruction", "", self._notes(), ""]
        lines += markdown_table(["", "clips", "reconstructed", "given up", *MEASURES], rows)
        rows = []
        for side, (name, records) in enumerate(self.records.items()):
            if truths := [record["truth"] for record in records if record.get("truth")]:
                means = [mean_over_clips([truth.get(error) for truth in truths], side) for error in ERRORS]
                rows.append([name, len(truths), *map(_cell, means)])
        if rows:
            lines += ["", "Against the renderer's truth, phantom clips alone:", ""]
            lines += markdown_table(["", "clips", *ERRORS], rows)
        failures = [
            f"- given up: {name}: {record['clip']}: {record['failure']}"
            for name, records in self.records.items()
            for record in records
            if "failure" in record
        ]
        return "\n".join([*lines, "", *failures, "", "```sh", self.command, "```", ""])

    def _mean(self, name: str, measure: str) -> Mean | None:
        records = [record for record in self.records[name] if "failure" not in record]
        return mean_over_clips([record.get(measure) for record in records], list(self.records).index(name))

    def _notes(self) -> str:
        focal = f"{self.job.focal:g} of the shorter side" if self.job.focal else "estimated for each clip"
        return (
            f"COLMAP (pycolmap {self.colmap}) on {self.frames} frames of each clip, scaled to a shorter side "
            f"of {self.size} pixels, in which errors are counted. Assumed: one {self.job.camera} camera per "
            f"clip, its principal point in the middle, focal length {focal}, and a scene that does not move. "
            f"Means over clips; intervals ({LEVEL:.0%}) over draws of clips with replacement. A clip without "
            "a reconstruction has 0 frames and 0 points and no error; one that is given up counts nowhere."
        )


def _interval(value: float, draws: np.ndarray, single: bool) -> Mean:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Mean(value, *((None, None) if single else (float(low), float(high))), draws)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cell(mean: Mean | None) -> str:
    return EMPTY if mean is None else mean.cell()
