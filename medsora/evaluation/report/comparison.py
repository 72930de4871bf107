"""A comparison of several generated sets as files: Markdown, CSV, LaTeX, JSON and one HTML page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medsora.evaluation.bootstrap import Difference, Spread, rank_ranges
from medsora.evaluation.report.paper_tables import number_text
from medsora.evaluation.report.results import AS_REAL, Distance, Results, Score, spread_cells, without_nan
from medsora.html_report import Section, write_report
from medsora.runtime.files import write_json, write_text
from medsora.runtime.markdown import markdown_table

ARROWS = {"lower": "↓", "higher": "↑"}
LATEX_ARROWS = {"lower": r"$\downarrow$", "higher": r"$\uparrow$"}
NOT_TESTED = "not tested"
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}
CSV_COLUMNS = ("figure", "title", "unit", "better", "set", "clips", "value", "low", "high")  # fixed
CSV_COLUMNS += ("rank_best", "rank_worst", "not_distinguishable_from")


@dataclass(frozen=True)
class Ranking:
    """A metric of every set, and the differences of pairs of them; none where nothing was re-sampled."""

    better: str
    values: dict[str, float]
    pairs: dict[tuple[str, str], Difference]

    def ranges(self) -> dict[str, tuple[int, int] | None]:
        """Return each set's best and worst possible rank; None for an undefined value."""
        names = list(self.values)
        sign = 1 if self.better == "lower" else -1
        clear = {
            (names.index(one), names.index(two)): sign * difference.value
            for (one, two), difference in self.pairs.items()
            if difference.is_clear
        }
        defined = [math.isfinite(value) for value in self.values.values()]
        return dict(zip(names, rank_ranges(clear, defined), strict=True))

    def ties(self, name: str) -> list[str]:
        """Return the sets that cannot be distinguished from `name`."""
        return [
            two if one == name else one
            for (one, two), difference in self.pairs.items()
            if name in (one, two) and not difference.is_clear
        ]

    def rank(self, name: str) -> str:
        """Return the rank in words: "1", "2–3", or that it was not tested."""
        best_worst = self.ranges()[name]
        if best_worst is None:
            return "–"
        if not self.pairs and sum(map(math.isfinite, self.values.values())) > 1:
            return NOT_TESTED
        return "–".join(map(str, dict.fromkeys(best_worst)))


@dataclass
class Comparison:
    """Results by the set's name, rankings by the metric's key, and warnings for the reader."""

    results: dict[str, Results]
    rankings: dict[str, Ranking] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def write(self, folder: Path, pictures: Sequence[tuple[Path, str]]) -> None:
        """Write all files; the page shows `pictures` (path, caption). Raises `OSError` if that cannot be."""
        write_json(folder / "comparison.json", without_nan(self._as_data()), ensure_ascii=False)
        write_text(folder / "comparison.md", self.markdown())
        write_text(folder / "comparison.csv", self.csv())
        write_text(folder / "comparison.tex", self.latex())
        sets, overview, metrics = self._sets(), self._overview(), self._metrics()
        sections = [
            Section("Sets", table=sets[1:], header=sets[0]),
            Section("Overview", [self._legend()], table=overview[1:], header=overview[0]),
            Section("Warnings", list(self.warnings)),
            Section("Contact sheet", images=list(pictures[:1]), legible=True),
            Section("Motion", images=list(pictures[1:]), legible=True),
            Section("All metrics", table=metrics[1:], header=metrics[0]),
        ]
        shown = [section for section in sections if section.table or section.images or section.text]
        write_report(folder / "report.html", "Comparison", self._subject(), shown)

    def markdown(self, *, notes: bool = True) -> str:
        """Return the page for people; without `notes` it leaves the warnings out."""
        sets, overview, metrics = self._sets(), self._overview(), self._metrics()
        rows = {name: results.metrics() for name, results in self.results.items()}
        lines = [
            "# Comparison",
            "",
            f"{self._subject()} All of the protocol is in `comparison.json`.",
            "",
            *[f"**Note:** {warning}\n" for warning in self.warnings if notes],
            "## Sets",
            "",
            *_markdown(sets, words=2),
            "",
            "## Overview",
            "",
            *_markdown(overview),
            "",
            self._legend(),
            "",
            "## All metrics",
            "",
            *_markdown(metrics, words=2),
            *self._one.beside_the_paper(rows),
        ]
        return "\n".join([*lines, ""])

    def csv(self) -> str:
        """Return one line for every metric of every set, with a head; undefined numbers are empty."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(CSV_COLUMNS)
        for key, metric in _all_of(self._one).items():
            ranking = self.rankings.get(key)
            for name, results in self.results.items():
                value, spread = _value_of(_all_of(results)[key])
                tested = ranking.ranges()[name] if ranking and ranking.pairs else None
                interval = (spread.low, spread.high) if spread else (None, None)
                numbers = [value, *interval, *(tested or (None, None))]
                cells = ["" if n is None or n != n else repr(n) for n in numbers]
                better = ranking.better if ranking else AS_REAL
                clips = results.sets["generated"]["clips_used"]
                ties = "; ".join(ranking.ties(name)) if ranking else ""
                lines.writerow([key, metric.title, metric.unit, better, name, clips, *cells, ties])
        return text.getvalue()

    def latex(self) -> str:
        """Return a booktabs table: a row for each set, a column for each ranked metric.

        Bold are all sets that may be the best: those whose range of ranks begins with 1.
        """
        metrics = _all_of(self._one)
        titles = (
            f"{_latex(_titled(metrics[key]))} {LATEX_ARROWS[r.better]}" for key, r in self.rankings.items()
        )
        head = " & ".join(["", *titles])
        rows = []
        for name, results in self.results.items():
            cells = [_latex(name)]
            for key, ranking in self.rankings.items():
                value, spread = _value_of(_all_of(results)[key])
                cell = _latex(number_text(value))
                if ranking.pairs and (ranking.ranges()[name] or (0,))[0] == 1:
                    cell = f"\\textbf{{{cell}}}"
                if spread:
                    cell += f" {{\\scriptsize [{number_text(spread.low)}, {number_text(spread.high)}]}}"
                cells.append(cell)
            rows.append(" & ".join(cells) + r" \\")
        lines = [
            f"% {self._subject()}",
            "% Bold: may be the best. Brackets: 95 % intervals. Needs \\usepackage{booktabs}.",
            f"\\begin{{tabular}}{{l{'r' * len(self.rankings)}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
        return "\n".join(lines)

    def _subject(self) -> str:
        results, protocol = self._one, self._one.protocol
        height, width = protocol["size"]
        real, generated = results.sets["real"], results.sets["generated"]
        return (
            f"{generated['clips_used']} clips of each of {len(self.results)} generated sets against "
            f"{real['clips_used']} {results.reference} clips ({real['folder']}), each of "
            f"{protocol['frames']} frames of "
            f"{height}x{width} pixels, seed {protocol['seed']}, protocol {protocol['name']}."
        )

    def _legend(self) -> str:
        replicates, reference = self._one.protocol["bootstrap_replicates"], self._one.reference
        floor = f"'Two halves of {reference}' is what no difference looks like, with half the clips each."
        if not replicates:
            return f"Values alone: without --bootstrap no rank is tested. {floor}"
        return (
            "Ranks in brackets: 1 is the best; a range such as 1–2 names sets that are not distinguishable. "
            "Two sets are distinguishable if the interval of their difference leaves out 0: "
            f"{replicates} re-samplings, paired by the {reference} clips, simultaneous over all pairs of a "
            f"metric at 95 %; whether the intervals of their values overlap does not decide it. {floor}"
        )

    @property
    def _one(self) -> Results:
        """Those of any set, of which protocol and real clips are the same."""
        return next(iter(self.results.values()))

    def _sets(self) -> list[tuple[str, ...]]:
        facts = {self._one.reference: self._one.sets["real"]}
        facts |= {name: results.sets["generated"] for name, results in self.results.items()}
        counts = ("clips_used", "clips_available", "videos_used")
        rows = [(name, fact["folder"], *(str(fact[k]) for k in counts)) for name, fact in facts.items()]
        return [("set", "folder", "clips", "available", "videos"), *rows]

    def _overview(self) -> list[tuple[str, ...]]:
        rows = [("metric", *self.results, f"two halves of {self._one.reference}", self._one.reference)]
        for key, ranking in self.rankings.items():
            cells = []
            for name, value in ranking.values.items():
                rank = ranking.rank(name)
                cells.append(number_text(value) + ("" if rank in ("–", NOT_TESTED) else f" ({rank})"))
            metric = _all_of(self._one)[key]
            rows.append((f"{_titled(metric)} {ARROWS[ranking.better]}", *cells, *_of_real(metric)))
        kept = [number for number, column in enumerate(zip(*rows[1:], strict=True)) if set(column) != {"–"}]
        return [tuple(row[number] for number in kept) for row in rows]

    def _metrics(self) -> list[tuple[str, ...]]:
        rows = [("metric", "set", "value", "95 % interval", "rank", "not distinguishable from")]
        for key, metric in _all_of(self._one).items():
            ranking = self.rankings.get(key)
            names = list(self.results)
            if ranking:
                sign = 1 if ranking.better == "lower" else -1
                names.sort(
                    key=lambda name, r=ranking, s=sign: (r.values[name] != r.values[name], s * r.values[name])
                )
            for number, name in enumerate(names):
                value, spread = _value_of(_all_of(self.results[name])[key])
                interval, _ = spread_cells(spread)
                rank = ranking.rank(name) if ranking else "–"
                ties = "; ".join(ranking.ties(name)) if ranking else ""
                better = ARROWS[ranking.better] if ranking else f"(as {self._one.reference})"
                title = f"{_titled(metric)} {better}"
                rows.append((title if number == 0 else "", name, number_text(value), interval, rank, ties))
            halves, real = _of_real(metric)
            if isinstance(metric, Distance):
                rows.append(("", f"two halves of {self._one.reference}", halves, "–", "–", ""))
            else:
                rows.append(("", self._one.reference, real, "–", "–", ""))
        return rows

    def _as_data(self) -> dict[str, Any]:
        metrics = {}
        for key, metric in _all_of(self._one).items():
            ranking = self.rankings.get(key)
            sets = {}
            for name, results in self.results.items():
                value, spread = _value_of(_all_of(results)[key])
                sets[name] = {"value": value, "interval": spread and asdict(spread)}
                if ranking and ranking.pairs:
                    sets[name]["rank"] = ranking.ranges()[name]
            metrics[key] = {
                "title": metric.title,
                "unit": metric.unit,
                "better": ranking.better if ranking else AS_REAL,
                "real": metric.real_halves if isinstance(metric, Distance) else metric.real,
                "sets": sets,
                "differences": [
                    {
                        "first": one,
                        "second": two,
                        **asdict(difference),
                        "distinguishable": difference.is_clear,
                    }
                    for (one, two), difference in (ranking.pairs.items() if ranking else ())
                ],
            }
        of_sets = {name: results.sets["generated"] for name, results in self.results.items()}
        return {
            "protocol": self._one.protocol,
            "ranking": self._legend(),
            "sets": {"real": self._one.sets["real"], **of_sets},
            "figures": metrics,  # the key of earlier versions
            "warnings": self.warnings,
        }


def _all_of(results: Results) -> dict[str, Distance | Score]:
    return {**results.distances, **results.scores}


def _value_of(metric: Distance | Score) -> tuple[float, Spread | None]:
    if isinstance(metric, Distance):
        return metric.value, metric.spread
    return metric.generated, metric.generated_spread


def _of_real(metric: Distance | Score) -> tuple[str, str]:
    """Return how far two halves of the real set are apart, and its own value; one of them is a dash."""
    if isinstance(metric, Distance):
        return number_text(metric.real_halves), "–"
    return "–", number_text(metric.real)


def _titled(metric: Distance | Score) -> str:
    return f"{metric.title}, {metric.unit}" if metric.unit else metric.title


def _markdown(rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return markdown_table(head, body, words)


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)
