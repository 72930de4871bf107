"""Files of an evaluation: `results.json` with the complete protocol, `results.md`, a table for a paper."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medsora.evaluation.bootstrap import Spread, spread
from medsora.evaluation.features.clip_set import REFERENCES
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.measure import Measure
from medsora.evaluation.report.paper_tables import PAPER_PROTOCOL, number_text, paper_tables
from medsora.evaluation.settings import STYLEGAN_V
from medsora.evaluation.stylegan_v import MAX_GENERATED_FRAMES
from medsora.runtime.digests import sealed
from medsora.runtime.files import write_json, write_text
from medsora.runtime.markdown import markdown_table

AS_REAL = "as real"  # a score that is best when it equals the reference's


@dataclass(frozen=True)
class Distance:
    """A metric that compares generated with real; `real_halves` is the real set's own halves compared."""

    title: str
    unit: str
    value: float
    real_halves: float | None = None
    spread: Spread | None = None


@dataclass(frozen=True)
class Score:
    """A metric of each set alone."""

    title: str
    unit: str
    better: str
    real: float
    generated: float
    real_spread: Spread | None = None
    generated_spread: Spread | None = None


@dataclass
class Results:
    """The metrics by key, the protocol that reproduces them, and warnings for the reader."""

    protocol: dict[str, Any]
    sets: dict[str, Any]
    distances: dict[str, Distance] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    memorisation: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    corpus: str | None = None

    @property
    def flow(self) -> str | None:
        """The estimator of the optical flow; None if no motion was measured."""
        return self.protocol.get("extractors", {}).get("motion", {}).get("flow")

    @property
    def reference(self) -> str:
        """Name of the clips that the generated ones are compared with: "real", or phantom."""
        return self.sets["real"].get("called", REFERENCES[0])

    def metrics(self) -> dict[str, float]:
        """Return every distance, and every score of the generated set, by key."""
        scores = {key: score.generated for key, score in self.scores.items()}
        return {key: distance.value for key, distance in self.distances.items()} | scores

    figures = metrics  # its name in earlier versions

    def add(
        self,
        measure: Measure,
        real: Features,
        fake: Features,
        halves: Mapping[str, float],
        replicates: Mapping[Any, list[float]],
    ) -> None:
        """Add a measure's metrics of two sets, with the intervals that `replicates` give (`bootstrap`)."""
        values = measure.compare(real, fake)
        for metric in measure.distances:
            key, value = metric.key, values[metric.key]
            interval = spread(value, replicates.get(key, []), least=0.0)
            self.distances[key] = Distance(metric.title, metric.unit, value, halves.get(key), interval)
        sides = {"real": measure.describe(real), "generated": measure.describe(fake)}
        for metric in measure.scores:
            means = {side: described[metric.key] for side, described in sides.items()}
            spreads = [spread(mean, replicates.get((side, metric.key), [])) for side, mean in means.items()]
            self.scores[metric.key] = Score(
                metric.title, metric.unit, metric.better, *means.values(), *spreads
            )

    def write(self, folder: Path) -> None:
        """Write both files. Raises `OSError` if the folder cannot be written."""
        write_json(folder / "results.json", sealed(without_nan(asdict(self))), ensure_ascii=False)
        write_text(folder / "results.md", self.markdown())

    def markdown(self, *, notes: bool = True) -> str:
        """Return the page for people; without `notes` it leaves the warnings out."""
        sets, protocol, reference = self.sets, self.protocol, self.reference
        height, width = protocol["size"]
        distances = [
            [d.title, d.unit, number_text(d.value), *spread_cells(d.spread), number_text(d.real_halves)]
            for d in self.distances.values()
        ]
        scores = []
        for score in self.scores.values():
            better = f"as {reference}" if score.better == AS_REAL else score.better
            cells = [score.title, score.unit, better, number_text(score.real), number_text(score.generated)]
            scores.append([*cells, spread_cells(score.generated_spread)[0]])
        head = ["metric", "unit", f"distance from {reference}", "95 % interval", "bias estimate"]
        lines = [
            "# Evaluation",
            "",
            f"{_counts(sets['generated'])} generated clips ({sets['generated']['folder']}) against "
            f"{_counts(sets['real'])} {reference} clips ({sets['real']['folder']}), each of "
            f"{protocol['frames']} frames of {height}x{width} pixels, seed {protocol['seed']}. "
            f"Protocol: {protocol['name']}; all of it is in `results.json`.",
            "",
            *[f"**Note:** {warning}\n" for warning in self.warnings if notes],
            f"## Generated against {reference}",
            "",
            *markdown_table([*head, f"two halves of {reference}"], distances, 2),
            "",
            "Lower is better; the last column is what no difference looks like with half the clips.",
            "",
            *self._intervals(),
            "## Each set alone",
            "",
            *markdown_table(
                ["metric", "unit", "better", reference, "generated", "95 % interval of generated"], scores, 3
            ),
        ]
        if self.flow:
            lines += ["", f"Optical flow: {self.flow}."]
        if self.memorisation:
            lines += ["", "## Memorisation", "", *self.memorisation["sentences"]]
        row = f"this run ({sets['generated']['clips_used']} clips)"
        lines += self.beside_the_paper({row: self.metrics()})
        return "\n".join([*lines, ""])

    def _intervals(self) -> list[str]:
        """Return how the intervals were estimated; nothing without them."""
        count = self.protocol.get("bootstrap_replicates", 0)
        if not count:
            return []
        real, generated = (self.sets[side]["bootstrap_draws"] for side in ("real", "generated"))
        return [
            f"Intervals: {count} re-samplings of {real} ({self.reference}) and {generated} (generated). The "
            "bias estimate is how far re-sampling raises a metric, about what few clips add to it.",
            "",
        ]

    def beside_the_paper(self, rows: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Return the lines of the paper's tables with rows of metrics below; none without a corpus."""
        published = self.protocol["name"] == STYLEGAN_V
        tables = paper_tables(rows, self.corpus, published=published)
        return ["", "## Beside the paper", "", self._comparability(), "", tables] if tables else []

    def _comparability(self) -> str:
        published = self.protocol["name"] == STYLEGAN_V
        names = {"real": "real clips", "generated": "generated clips"}
        used = {names.get(name, name): side["clips_used"] for name, side in self.sets.items()}
        used |= {key: self.protocol[key] for key in ("frames", "size")}
        wanted = dict(PAPER_PROTOCOL)
        if published:  # as many real clips as there are videos
            del wanted["real clips"]
            wanted |= {"generated frames": MAX_GENERATED_FRAMES} if "generated frames" in used else {}
        other = [f"{k} {used[k]} instead of {v}" for k, v in wanted.items() if used[k] != v]
        if any(side["borders_cut_off"] for side in self.sets.values()):
            other.append("frames cropped first")
        if other:
            return f"Not the paper's protocol ({', '.join(other)}): do not compare the numbers."
        if published:
            return "Clips, frames and covariances as in the published papers; see docs/evaluation.md for I3D."
        return "The paper's clip count, length and size; its data and code are not public."


def _counts(side: dict[str, Any]) -> str:
    used, available = side["clips_used"], side["clips_available"]
    return f"{used}" if used == available else f"{used} of {available}"


def spread_cells(spread: Spread | None) -> list[str]:
    """Return a table's cells of a metric's interval and its bias; dashes where nothing was re-sampled."""
    if spread is None:
        return ["–", "–"]
    return [f"{number_text(spread.low)} … {number_text(spread.high)}", number_text(spread.bias)]


def without_nan(value: Any) -> Any:
    """Return `value` with null for undefined numbers: JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
