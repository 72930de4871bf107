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
from medsora.html_report import save_figure
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import write_between_marks
from medsora.runtime.markdown import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PICTURE = PAGE.parent / "images" / "performance.svg"
BEGIN = "<!-- python -m benchmarks.page -->"
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")  # one per machine

Entry = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of the tables: a benchmark's result at one size on one kind of device."""

    what: str
    device: str
    benchmark: str
    size: dict[str, object]
    value: str
    is_speed_up: bool = True  # else a share or a multiple, where less is better

    def newest(self, entries: Sequence[Entry]) -> dict[str, Entry]:
        """Return the last entry with this result by machine, machines in the order of their first."""
        by_machine = {}
        for entry in entries:
            values = entry["figures"]
            same = (entry["benchmark"], entry["device"]) == (self.benchmark, self.device)
            fits = all(values.get(key) == value for key, value in self.size.items())
            if same and fits and value_of(values, self.value) is not None:
                by_machine[entry["machine"]] = entry
        return by_machine


B1, B2, B32 = ({"preset": "B", "compiled": False, "batch": batch} for batch in (1, 2, 32))
STEP, VIDEO = "a denoising step, same six latents, batch {}", "a sampled video, batch {}"
ROWS = (
    Row(STEP.format(1), "cpu", "sample", B1, "step, same latents"),
    Row(STEP.format(2), "cpu", "sample", B2, "step, same latents"),
    Row(VIDEO.format(1), "cpu", "sample", B1, "video"),
    Row(VIDEO.format(2), "cpu", "sample", B2, "video"),
    Row("forward and backward, batch 1", "cpu", "train", B1, "forward and backward"),
    Row("a step in bf16, batch 1 (float32)", "cpu", "sample", B1, "bf16 against float32"),
    Row("the scan at length 48 (mamba-ssm's PyTorch reference)", "cpu", "scan", {"batch": 1}, "scan"),
    Row("stage 2's step, phantom.yaml, caches on (off)", "cpu", "caches", {}, "caches on against off"),
    Row("memory kept for the backward pass, batch 1 (share)", "cpu", "train", B1, "share kept", False),
    Row("FLOPs from 16 to 256 frames (times linear)", "cpu", "growth", {}, "FLOPs, times linear", False),
    Row(STEP.format(1), "cuda", "sample", B1, "step, same latents"),
    Row(STEP.format(32), "cuda", "sample", B32, "step, same latents"),
    Row("a step against the floor, batch 1 (times)", "cuda", "sample", B1, "times the floor", False),
    Row("a step against the floor, batch 32 (times)", "cuda", "sample", B32, "times the floor", False),
    Row("peak memory of training, batch 1 (share)", "cuda", "train", B1, "share of peak", False),
    Row("time from 16 to 256 frames (times linear)", "cuda", "growth", {}, "time, times linear", False),
)


def main() -> None:
    """Read the results, write the page's tables and its picture."""
    entries = _read_results(RESULTS)
    write_between_marks(PAGE, BEGIN, ["", *results_tables(entries)])
    draw(PICTURE, entries)
    print(f"{PAGE}: {sum(bool(row.newest(entries)) for row in ROWS)} of {len(ROWS)} rows measured")


def _read_results(path: Path) -> list[Entry]:
    """Every kept line, oldest first; none where nothing was kept."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def value_of(values: dict[str, Any], name: str) -> float | dict[str, float] | None:
    """A measured value by its name, shares included, which are made of two; None if it is not there."""
    shares = {"share kept": "kept for the backward, MiB", "share of peak": "peak MiB"}
    if name in shares:
        both = values.get(shares[name])
        return both and both["ours"] / both["reference"]
    return values.get(name)


def results_tables(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield a Markdown table of CPU results and one of GPU results, a column per machine; a line if none."""
    for device, title in (("cpu", "CPU"), ("cuda", "GPU")):
        rows = {row.what: row for row in ROWS if row.device == device}
        newest = {what: row.newest(entries) for what, row in rows.items()}
        machines = list(dict.fromkeys(machine for by_machine in newest.values() for machine in by_machine))
        if not machines:
            yield from (f"{title}: not measured yet.", "")
            continue
        table = []
        for what, by_machine in newest.items():
            cells = (
                shown(value_of(by_machine[machine]["figures"], rows[what].value))
                if machine in by_machine
                else "not yet"
                for machine in machines
            )
            table.append((what, *cells))
        head = ("preset B against the reference wiring, unless in brackets", *machines)
        yield from (*markdown_table(head, table, len(head)), "")


def shown(value: float | dict[str, float]) -> str:
    """A number, or a ratio with its range."""
    if isinstance(value, dict):
        return f"{value['median']:.2f}x ({value['low']:.2f}–{value['high']:.2f})"
    return f"{value:.2f}"


def draw(path: Path, entries: Sequence[Entry]) -> None:
    """Draw every measured speed-up with its range."""
    bars = [
        (row, machine, entry)
        for row in ROWS
        if row.is_speed_up
        for machine, entry in row.newest(entries).items()
    ]
    machines = list(dict.fromkeys(machine for _, machine, _ in bars))
    figure = Figure(figsize=(8, 0.8 + 0.35 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    for place, (row, machine, entry) in enumerate(bars):
        ratio = value_of(entry["figures"], row.value)
        around = [[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]]
        colour = COLOURS[machines.index(machine) % len(COLOURS)]
        axes.barh(place, ratio["median"], xerr=around, color=colour, height=0.6, capsize=3, label=machine)
    labelled = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if labelled:
        figure.legend(labelled.values(), labelled.keys(), loc="outside upper center", ncols=len(labelled))
    axes.set_yticks(range(len(bars)), [row.what for row, *_ in bars])
    axes.set(xlabel="speed-up, with range")
    axes.invert_yaxis()
    save_figure(path, figure)


if __name__ == "__main__":
    exit_with_status(main)
