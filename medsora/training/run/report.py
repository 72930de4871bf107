"""`report.html` in every run folder: where the run stands, its curves, latest sheet, command and config.

The page is written anew while the run goes on, whole each time, with everything embedded: it opens anywhere
and needs no network.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

import numpy as np

from medsora.data.sheet import save_image
from medsora.html_report import Section, draw_curves, write_report
from medsora.training.run.folder import RunFolder, read_log
from medsora.training.run.trackers import show_picture

PAGE, SHEET, CURVES = "report.html", "latest-sheet.png", "curves"
EVERY_S = 60.0
MOST_OF_TIME = 0.01  # that writing the page may take
SHOWN = {  # prefix of figures -> title of their curves
    "loss/": "loss",
    "held_out/": "held out: fixed clips, timesteps and noise, so curves of two runs compare",
    "alignment/": "alignment per block: 1 - correlation with the flow prior (1: unrelated)",
    "gradient_norm": "norm of the gradients",
    "lr": "learning rate",
    "speed/samples_per_s": "samples per second",
}
MESSAGES = 12


def keep_sheet(run: RunFolder, path: Path, picture: np.ndarray, step: int) -> None:
    """Write a contact sheet to `path` and as the run's latest one, and show it in the trackers."""
    with run.writing():
        save_image(run.path / SHEET, picture)
        show_picture(run.accelerator, "sheet", picture, step)
        save_image(path, picture)  # last: it says that everything of this step is there


class RunReport:
    """Keeps a run's page up to date; used as a context around the loop. Only the main process writes."""

    def __init__(self, run: RunFolder, title: str, total_steps: int) -> None:
        self.run, self.title, self.total_steps = run, title, total_steps
        self._due = time.monotonic()

    def update(self) -> None:
        """Write the page if the last one is old enough."""
        if self.run.main and time.monotonic() >= self._due:
            began = time.monotonic()
            with self.run.writing():
                write_run_report(self.run.path, self.title, self.total_steps)
            now = time.monotonic()
            self._due = now + max(EVERY_S, (now - began) / MOST_OF_TIME)

    def __enter__(self) -> RunReport:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # whoever is asked to stop has no time for pages
            self._due = 0.0
            self.update()


def write_run_report(run: Path, title: str, total_steps: int) -> Path:
    """Write `report.html` of the run folder `run` from what lies in it; return its path.

    Raises `OSError` if it cannot be written.
    """
    log = read_log(run) if (run / "log.jsonl").is_file() else []
    latest: dict[str, float] = {}
    for line in log:
        latest |= line
    step = int(latest.get("step", 0))
    sections = [Section("Now", table=_now(latest, step, total_steps))]
    if (run / SHEET).is_file():
        newest = max((run / "samples").glob("step-*.png"), default=None)
        sections.append(Section("Latest sheet", images=[(run / SHEET, newest.stem if newest else "")]))
    curves = []
    for prefix, meaning in SHOWN.items():
        path = run / CURVES / f"{prefix.strip('/').replace('/', '-')}.png"
        if any(name.startswith(prefix) and value for name, value in latest.items()):
            draw_curves(path, log, prefix, meaning)
            curves.append((path, ""))
    if curves:
        sections.append(Section("Curves", text=["Thin: as logged; bold: running mean."], images=curves))
    if messages := _read(run / "messages.txt"):
        sections.append(Section("Messages", text=messages.splitlines()[-MESSAGES:]))
    versions = json.loads(_read(run / "versions.json") or "{}")
    sections += [
        Section("Command", code=_read(run / "command.txt").strip()),
        Section("Versions", table=[(name, str(version)) for name, version in versions.items()]),
        Section("Config", code=_read(run / "config.yaml").strip()),
    ]
    path = run / PAGE
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    write_report(path, title, f"Step {step:,} of {total_steps:,}, written {when}.", sections)
    return path


def _now(latest: dict[str, float], step: int, total_steps: int) -> list[tuple[str, str]]:
    rows = [("step", f"{step:,} of {total_steps:,}")]
    rows += [
        (name.replace("_", " ").replace("/", ": "), f"{value:.4g}")
        for name, value in latest.items()
        if name.startswith(("loss/", "held_out/")) or name in ("lr", "gradient_norm", "epoch")
    ]
    if "speed/samples_per_s" in latest:
        rows += [
            ("samples per second", f"{latest['speed/samples_per_s']:.3g}"),
            ("waiting for data", f"{latest['speed/data_wait']:.1%} of the time"),
            ("memory", f"{latest['speed/memory_gib']:.2f} GiB"),
        ]
    return rows


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
