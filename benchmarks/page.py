"""Draws the kept results into docs/performance.md: `python -m benchmarks.page`.

Of each benchmark, size and machine the newest line of results.jsonl counts. The tables stand between two
marks of the page, everything else on it is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.support.measure import RESULTS
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import write_between_marks, written_beside

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PICTURE = PAGE.parent / "images" / "performance.svg"
BEGIN = "<!-- python -m benchmarks.page -->"
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")  # one per machine

Entry = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """What must be reached: a benchmark's figure and its least value, or its most for shares and growth."""

    what: str
    device: str
    benchmark: str
    size: dict[str, object]
    figure: str
    bound: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"at most {self.bound:g}" if self.at_most else f"at least {self.bound:g}x"

    def newest(self, entries: Sequence[Entry]) -> list[Entry]:
        """The last entry of every machine that holds this figure, machines in the order of their first."""
        found = {}
        for entry in entries:
            figures = entry["figures"]
            same = (entry["benchmark"], entry["device"]) == (self.benchmark, self.device)
            fits = all(figures.get(key) == value for key, value in self.size.items())
            if same and fits and value_of(figures, self.figure) is not None:
                found[entry["machine"]] = entry
        return list(found.values())


B1, B2, B32 = ({"preset": "B", "compiled": False, "batch": batch} for batch in (1, 2, 32))
STEP, VIDEO = "a denoising step, same six latents, batch {}", "cost of a sampled video, batch {}"
BARS = (
    Bar(STEP.format(1), "cpu", "sample", B1, "step, same latents", 1.7),
    Bar(STEP.format(2), "cpu", "sample", B2, "step, same latents", 1.7),
    Bar(VIDEO.format(1), "cpu", "sample", B1, "video", 2.5),
    Bar(VIDEO.format(2), "cpu", "sample", B2, "video", 2.5),
    Bar("forward and backward, batch 1", "cpu", "train", B1, "forward and backward", 1.6),
    Bar("a step in bf16, batch 1 (float32)", "cpu", "sample", B1, "bf16 against float32", 1.25),
    Bar("the scan at length 48 (mamba-ssm's PyTorch reference)", "cpu", "scan", {"batch": 1}, "scan", 4.5),
    Bar("stage 2's step, phantom.yaml, caches on (off)", "cpu", "caches", {}, "caches on against off", 3),
    Bar("kept for the backward, batch 1 (share)", "cpu", "train", B1, "share kept", 0.5, at_most=True),
    Bar("FLOPs from 16 to 256 frames (times linear)", "cpu", "growth", {}, "FLOPs, times linear", 1.3, True),
    Bar(STEP.format(1), "cuda", "sample", B1, "step, same latents", 10),
    Bar(STEP.format(32), "cuda", "sample", B32, "step, same latents", 4),
    Bar("a step against the floor, batch 1 (times)", "cuda", "sample", B1, "times the floor", 3, True),
    Bar("a step against the floor, batch 32 (times)", "cuda", "sample", B32, "times the floor", 2, True),
    Bar("peak memory of training, batch 1 (share)", "cuda", "train", B1, "share of peak", 0.5, at_most=True),
    Bar("time from 16 to 256 frames (times linear)", "cuda", "growth", {}, "time, times linear", 1.3, True),
)


def main() -> None:
    """Read the results, write the page's tables and its picture."""
    entries = read_results(RESULTS)
    write_between_marks(PAGE, BEGIN, ["", *bars_table(entries), "", *changes_tables(entries)])
    draw(PICTURE, entries)
    print(f"{PAGE}: {sum(bool(bar.newest(entries)) for bar in BARS)} of {len(BARS)} bars measured")


def read_results(path: Path) -> list[Entry]:
    """Every kept line, oldest first; none where nothing was kept."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def value_of(figures: dict[str, Any], name: str) -> float | dict[str, float] | None:
    """A figure by its name, shares included, which are made of two figures; None if it is not there."""
    shares = {"share kept": "kept for the backward, MiB", "share of peak": "peak MiB"}
    if name in shares:
        both = figures.get(shares[name])
        return both and both["ours"] / both["reference"]
    return figures.get(name)


def bars_table(entries: Sequence[Entry]) -> Iterator[str]:
    """Markdown rows of what was asked and what was measured."""
    yield "| what, of preset B against the reference wiring unless in brackets | where | asked | measured |"
    yield "|---|---|---|---|"
    for bar in BARS:
        newest = bar.newest(entries)
        if not newest:
            yield f"| {bar.what} | {'CPU' if bar.device == 'cpu' else 'GPU'} | {bar} | not yet |"
        for entry in newest:
            measured = f"{shown(value_of(entry['figures'], bar.figure))} ({entry['commit'].split()[0]})"
            yield f"| {bar.what} | {entry['machine']} | {bar} | {measured} |"


def changes_tables(entries: Sequence[Entry]) -> Iterator[str]:
    """Markdown tables, one per machine, of what each single change brings at batch 1, newest lines only."""
    machines: dict[str, dict[str, str]] = {}
    for entry in entries:
        if entry["figures"].get("batch") == 1 and entry["figures"].get("changes"):
            place = "a step" if entry["benchmark"] == "sample" else "forward and backward"
            rows = machines.setdefault(entry["machine"], {})
            for name, change in entry["figures"]["changes"].items():
                alone = name.startswith("of that: ")
                rows[f"| {name} | {'the projections alone' if alone else place} |"] = shown(change)
    for machine, rows in machines.items():
        yield f"On {machine}, one change at a time, batch 1:"
        yield from ("", "| change | in | faster |", "|---|---|---|")
        yield from (f"{row} {change} |" for row, change in rows.items())
        yield ""


def shown(value: float | dict[str, float]) -> str:
    """A number, or a ratio with its range."""
    if isinstance(value, dict):
        return f"{value['median']:.2f}x ({value['low']:.2f} to {value['high']:.2f})"
    return f"{value:.2f}"


def draw(path: Path, entries: Sequence[Entry]) -> None:
    """Every measured ratio with its range beside what was asked."""
    found = [(bar, entry) for bar in BARS if not bar.at_most for entry in bar.newest(entries)]
    machines = list(dict.fromkeys(entry["machine"] for _, entry in found))
    figure = Figure(figsize=(8, 0.8 + 0.35 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    for place, (bar, entry) in enumerate(found):
        ratio = value_of(entry["figures"], bar.figure)
        around = [[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]]
        number = machines.index(entry["machine"])
        colour, label = COLOURS[number % len(COLOURS)], entry["machine"]
        axes.barh(place, ratio["median"], xerr=around, color=colour, height=0.6, capsize=3, label=label)
        axes.vlines(bar.bound, place - 0.4, place + 0.4, color="black")
    labelled = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if labelled:
        figure.legend(labelled.values(), labelled.keys(), loc="outside upper center", ncols=len(labelled))
    axes.set_yticks(range(len(found)), [bar.what for bar, _ in found])
    axes.set(xlabel="times as fast, with range; the line was asked for")
    axes.invert_yaxis()
    with written_beside(path) as beside:
        figure.savefig(beside, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    exit_with_status(main)
