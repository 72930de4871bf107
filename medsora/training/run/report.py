"""`report.html` in every run folder: where the run stands, its evaluation, videos, curves and config.

The page is rewritten during the run, complete each time, with everything embedded: it opens anywhere
and needs no network.
"""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medsora.data.sheet import save_image
from medsora.html_report import Section, draw_curves, write_report
from medsora.training.run.folder import ELAPSED, RunFolder, read_log
from medsora.training.run.trackers import show_picture
from medsora.training.schedule import UNLIMITED_STEPS, of_total

PAGE, SHEET, CURVES = "report.html", "latest-sheet.png", "curves"
EVERY_S = 60.0
MAX_TIME_SHARE = 0.01  # maximum share of the time for writing the page
SHOWN = {  # prefix of metrics -> title of their curves
    "loss/": "loss",
    "held_out/": "held out: fixed clips, timesteps and noise, so curves of different runs are comparable",
    "alignment/": "alignment per block: 1 - correlation with the flow prior (1: unrelated)",
    "gradient_norm": "norm of the gradients",
    "lr": "learning rate",
    "speed/samples_per_s": "samples per second",
}
MESSAGES = 12
BETTER, WORSE, EQUAL = "better", "worse", "no better"
ABSOLUTE_PATH = re.compile(r"(?<![\w./:~])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\",;:()<>|/\\]+[/\\])*(?=[\w.])")


class Metric(NamedTuple):
    """Name and meaning of a logged metric; `sign` is 1 where more is better, -1 where less is."""

    label: str
    meaning: str
    sign: int = -1


METRICS = {
    "held_out/loss": Metric(
        "loss", "the training loss on held-out clips, which early stopping goes by; of EndoGen nats per code"
    ),
    "held_out/accuracy": Metric(
        "codes predicted correctly", "how often the likeliest next code is the held-out clip's, 0 to 1", 1
    ),
    "held_out/psnr": Metric("PSNR, dB", "how close reconstructed held-out clips are to the clips", 1),
    "held_out/base_psnr": Metric("PSNR without compensation, dB", "the same with the compensation off", 1),
    "held_out/mean_colour_psnr": Metric(
        "PSNR of one colour per clip, dB", "a reconstruction without structure", 0
    ),
    "held_out/ssim": Metric("SSIM", "similarity of local structure, 1 for equal clips", 1),
    "held_out/base_ssim": Metric("SSIM without compensation", "the same with the compensation off", 1),
    "held_out/flicker": Metric("flicker", "how much changes between frames differ from the clips'"),
    "held_out/base_flicker": Metric("flicker without compensation", "the same with the compensation off"),
    "held_out/spectrum_error": Metric(
        "spectrum error, dB", "how much the power of the frames' frequencies differs from the clips'"
    ),
    "held_out/base_spectrum_error": Metric(
        "spectrum error without compensation, dB", "the same with the compensation off"
    ),
    "held_out/codes_used": Metric("codes used", "part of the codebook that held-out clips take", 1),
    "held_out/perplexity": Metric("perplexity of codes", "equally frequent codes that would vary as much", 1),
    "held_out/mse": Metric(
        "noise error", "error of the predicted noise, mean over the timesteps below; 1: none"
    ),
    "held_out/clip_mse": Metric("noise error of clips", "the same without joint images"),
    "loss/total": Metric(
        "loss", "what training minimises: the weighted sum of its parts; of EndoGen nats per code"
    ),
    "loss/l1": Metric("L1", "mean difference of pixels, which lie in [-1, 1]"),
    "loss/l2": Metric("L2", "mean squared difference of pixels"),
    "loss/commitment": Metric("commitment", "squared distance of latents from their codes, for the encoder"),
    "loss/codebook": Metric("codebook", "the same distance, for the codebook"),
    "loss/lpips": Metric("LPIPS", "difference of a pretrained network's features"),
    "loss/ffl": Metric("focal frequency", "difference of the frames' spectra, difficult frequencies first"),
    "loss/kl": Metric("KL", "distance of the latents from a standard normal distribution"),
    "loss/sharpness": Metric("sharpness", "difference of the clips' sharpness, in decades"),
    "loss/motion": Metric("motion", "difference of how much neighbouring frames change, in decades"),
    "loss/coarse": Metric("coarse", "difference of halved latents, decoded, from halved clips"),
    "loss/mse": Metric("noise error", "error of the predicted noise, at random timesteps"),
    "loss/vb": Metric("variational bound", "what the predicted variance is trained by"),
    "loss/alignment": Metric(
        "alignment", "1 - correlation of features with the flow prior, above the margin"
    ),
    "gradient_norm": Metric("gradient norm", "before clipping", 0),
    "lr": Metric("learning rate", "of the last step", 0),
    "epoch": Metric("epoch", "how often every clip has been seen", 0),
    "codes_used": Metric(
        "codes used", "part of the codebook used in the last train_vae.revive_after steps", 0
    ),
    "perplexity": Metric("perplexity", "equally frequent codes that would vary as the last step's", 0),
    "speed/samples_per_s": Metric("clips per second", "since the last line of the log", 0),
    "speed/data_wait": Metric(
        "waiting for data", "part of that time in which the device had nothing to do", 0
    ),
    "speed/memory_gib": Metric("memory, GiB", "largest so far on a GPU, else in use", 0),
}
EVALUATION, TRAINING, SPEED = "held_out/", "loss/", "speed/"


def keep_sheet(run: RunFolder, path: Path, picture: np.ndarray, step: int) -> None:
    """Write a contact sheet to `path` and as the run's latest one, and show it in the trackers."""
    with run.writing():
        save_image(run.path / SHEET, picture)
        show_picture(run.accelerator, "sheet", picture, step)
        save_image(path, picture)  # last: it marks the step's samples as complete


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
            self._due = now + max(EVERY_S, (now - began) / MAX_TIME_SHARE)

    def __enter__(self) -> RunReport:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # an interrupted run has no time for it
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
    sections = [
        Section("Now", table=[("step", f"{step:,}{of_total(total_steps)}"), *_times(log, step, total_steps)]),
        *evaluation_section(log),
    ]
    if newest := max((run / "samples").glob("step-*.png"), default=None):
        videos = [
            (path, path.stem.replace("-", " ")) for path in sorted(newest.with_suffix("").glob("*.mp4"))
        ]
        of_step = f"Made after step {int(newest.stem.removeprefix('step-')):,}."
        sections.append(Section("Latest videos", text=[of_step], videos=videos, images=[(run / SHEET, "")]))
    if rows := _rows(latest, TRAINING) + _rows(latest, "") + _rows(latest, SPEED):
        sections.append(Section("Training", header=("", "now", "what it is"), table=rows))
    curves = []
    for prefix, meaning in SHOWN.items():
        path = run / CURVES / f"{prefix.strip('/').replace('/', '-')}.png"
        if any(name.startswith(prefix) and value for name, value in latest.items()):
            draw_curves(path, log, prefix, meaning)
            curves.append((path, ""))
    if curves:
        sections.append(Section("Curves", text=["Thin: as logged; bold: running mean."], images=curves))
    if messages := _read(run / "messages.txt"):
        sections.append(Section("Messages", text=hide_paths(messages).splitlines()[-MESSAGES:]))
    versions = json.loads(_read(run / "versions.json") or "{}")
    sections += [
        Section("Command", code=hide_paths(_read(run / "command.txt").strip())),
        Section("Versions", table=[(name, str(version)) for name, version in versions.items()]),
        Section("Config", code=hide_paths(_read(run / "config.yaml").strip())),
    ]
    path = run / PAGE
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    write_report(path, title, f"Step {step:,}{of_total(total_steps)}, written {when}.", sections)
    return path


def _times(log: list[dict[str, float]], step: int, total_steps: int) -> list[tuple[str, str]]:
    """Return the elapsed time, and the remaining time at the mean speed so far."""
    timed = [(line["step"], line[ELAPSED]) for line in log if ELAPSED in line]
    if not timed:
        return []
    (first, began_s), (last, now_s) = timed[0], timed[-1]
    rows = [("elapsed", _duration(now_s))]
    if last > first and step < total_steps < UNLIMITED_STEPS:
        left_s = (now_s - began_s) / (last - first) * (total_steps - step)
        rows.append(("still to go, at this speed", _duration(left_s)))
    return rows


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def evaluation_section(log: list[dict[str, float]], title: str = "Held-out clips") -> list[Section]:
    """Return the section that compares the last evaluation with the one before; none before the first."""
    evaluations = [line for line in log if any(name.startswith(EVALUATION) for name in line)]
    if not evaluations:
        return []
    last, before = evaluations[-1], evaluations[-2] if len(evaluations) > 1 else {}
    names = sorted((name for name in last if name.startswith(EVALUATION)), key=_place)
    rows = [
        (metric_of(name).label, *(f"{line[name]:.4g}" if name in line else "" for line in (before, last)),
         _verdict(name, before, last), metric_of(name).meaning)
        for name in names
    ]  # fmt: skip
    if before:
        judged = next(name for name in names if metric_of(name).sign)
        steps = [f"{int(line['step']):,}" for line in (last, before)]
        sentence = (
            f"The evaluation after step {steps[0]} is {_verdict(judged, before, last)} than the one after "
            f"step {steps[1]}, by its {metric_of(judged).label}."
        )
    else:
        sentence = (
            f"The first evaluation, after step {int(last['step']):,}; there is none to compare it with."
        )
    header = ("", "before", "now", "", "what it is")
    return [Section(title, text=[sentence], header=header, table=rows)]


def _verdict(name: str, before: dict[str, float], last: dict[str, float]) -> str:
    """Return whether a metric got better, or nothing where there is no better or no earlier metric."""
    sign = metric_of(name).sign
    if not sign or name not in before:
        return ""
    gain = sign * (last[name] - before[name])
    return BETTER if gain > 0 else WORSE if gain < 0 else EQUAL


def metric_of(name: str) -> Metric:
    """Return the label, meaning and sign of a logged metric; unknown ones have a sign of 0."""
    error, _, timestep = name.partition("mse_t")
    if timestep and error in ("held_out/", "held_out/clip_"):
        of_clips = " of clips" if error.endswith("clip_") else ""
        words = f"noise error{of_clips} at t = {timestep}"
        return Metric(words, "the same at this timestep; noisier ones are easier")
    return METRICS.get(name, Metric(name.split("/")[-1].replace("_", " "), "", 0))


def _place(name: str) -> tuple[int, int]:
    """Return a metric's place in a table: that of METRICS, timesteps in their order behind all others."""
    if name in METRICS:
        return list(METRICS).index(name), 0
    number = re.search(r"\d+$", name)
    return len(METRICS), int(number.group()) if number else 0


def _rows(latest: dict[str, float], prefix: str) -> list[tuple[str, str, str]]:
    """Return label, value and meaning of the latest metrics of a kind; a loss of 0 is one left out."""
    return [
        (metric.label, f"{latest[name]:.4g}", metric.meaning)
        for name, metric in METRICS.items()
        if name in latest and (name.startswith(prefix) if prefix else "/" not in name)
        if latest[name] or prefix != TRAINING
    ]


def hide_paths(text: str) -> str:
    """Return `text` with only the last part of every absolute path: the page may be passed on."""
    return ABSOLUTE_PATH.sub("…/", text)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
