"""The report of `make demo`: held-out, reconstructed and generated clips side by side, tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from medsora.config.schema import Config
from medsora.data.reading.pixels import video_to_frames
from medsora.data.reading.video_io import write_video
from medsora.data.sheet import contact_sheet, save_image
from medsora.demo.outcome import COLOUR, read_videos
from medsora.evaluation.metrics.motion import DIS_NOTE
from medsora.evaluation.sanity.baselines import MOTION, PYRAMID, REAL, Outcome
from medsora.html_report import Section, draw_curves, write_report
from medsora.saved.find import DEFAULT_FPS, trained_vae
from medsora.training.open_clips import clip_spec, open_clips
from medsora.training.run.folder import read_log
from medsora.training.run.report import METRICS, evaluation_section

SHEET_FRAMES = 8
SHOWN_CLIPS = 4
NOTHING_RECORDED = "Procedural phantom clips; nothing here was recorded from a patient."
TERMS = {
    COLOUR: "Colour distance: how far the histograms of red, green and blue lie apart.",
    PYRAMID: "Untrained pyramid distance: a Fréchet distance of responses to fixed random filters, of detail "
    "and of change.",
    MOTION: "Flow magnitude distance and mean flow: how fast the picture moves. "
    f"{DIS_NOTE[0].upper()}{DIS_NOTE[1:]}.",
}
REFERENCE = (
    f"All distances are to the clips trained on; lower is better, and the row '{REAL}' is what no difference "
    "looks like."
)


def write_demo_report(
    config: Config, generated: Mapping[str, Path], sampling: str, outcome: Outcome | None, title: str
) -> Path:
    """Write sheet, curves and `report.html` into the run folder; return the page's path.

    `generated` holds folders of videos by what they are; the sentence `sampling` names the sampler; `outcome`
    compares them (`medsora.demo.outcome`).
    """
    folder = config.run_dir
    _, held_out = open_clips(config, Accelerator(cpu=True), clip_spec(config), config.vae_dir)
    count = min(SHOWN_CLIPS, len(held_out))
    picks = np.linspace(0, len(held_out) - 1, count).round().astype(int)
    videos = torch.stack([held_out.fixed_clip(int(i))["video"] for i in picks])
    vae = trained_vae(config)
    with torch.no_grad():
        reconstructed = list(video_to_frames(vae.decode(vae.encode(videos))))
    phantom = [video_to_frames(video) for video in videos]

    rows = []
    for number in range(count):
        rows += [(REAL, phantom[number]), ("reconstructed by the VAE", reconstructed[number])]
    for name, place in generated.items():
        rows += [(f"{name} {number}", video) for number, video in enumerate(read_videos(place))]
    save_image(folder / "sheet.png", contact_sheet(rows, columns=SHEET_FRAMES))

    stage_1, stage_2 = read_log(config.vae_dir), read_log(config.dit_dir)
    draw_curves(folder / "stage-1.png", stage_1, "loss/", "stage 1: the VAE's loss")
    draw_curves(folder / "stage-2.png", stage_2, "loss/", "stage 2: the denoiser's loss")
    shown = _write_shown(folder / "shown", phantom, reconstructed, held_out.report.fps or DEFAULT_FPS)
    sections = [
        Section(
            name.capitalize(),
            text=[sampling],
            videos=[(path, path.stem.replace("-", " ")) for path in sorted(place.glob("video-*.mp4"))],
        )
        for name, place in generated.items()
    ]
    learned = sentences(outcome)
    if outcome:
        learned = [*learned, *(TERMS[key] for key in outcome.columns if key in TERMS), REFERENCE]
    sections += [
        Section(
            "Phantom (held out) and reconstructed",
            text=["Phantom clips that were not trained on, and what the VAE returns of them."],
            videos=shown,
        ),
        Section(
            "Did it learn?",
            text=learned,
            header=outcome.header if outcome else (),
            table=outcome.rows() if outcome else [],
        ),
        *evaluation_section(stage_1, "Stage 1, held-out clips"),
        *evaluation_section(stage_2, "Stage 2, held-out clips"),
        Section("Side by side", images=[(folder / "sheet.png", "a row per clip")], legible=True),
        Section(
            "Loss curves",
            text=[
                "Thin: as logged; bold: running mean.",
                *(f"{METRICS[name].label}: {METRICS[name].meaning}." for name in _losses(stage_1, stage_2)),
                *_notes(config),
            ],
            images=[(folder / "stage-1.png", "stage 1"), (folder / "stage-2.png", "stage 2")],
        ),
    ]
    path = folder / "report.html"
    write_report(path, title, NOTHING_RECORDED, sections)
    return path


def report_lines(outcome: Outcome | None) -> list[str]:
    """Return the outcome for a terminal: its table, then its criteria."""
    rows = [outcome.header, *outcome.rows()] if outcome else []
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))] if rows else []
    table = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return ["", *(line.rstrip() for line in table), *sentences(outcome)]


def sentences(outcome: Outcome | None) -> list[str]:
    """Return the criteria and whether they are met."""
    if outcome is None:
        return ["Too few clips to compare: sample more (--videos), or hold out more (data.holdout)."]
    return outcome.sentences()


def _write_shown(folder: Path, phantom: list, reconstructed: list, fps: float) -> list[tuple[Path, str]]:
    shown = []
    for number, (clip, copy) in enumerate(zip(phantom, reconstructed, strict=True)):
        for name, video in (("phantom", clip), ("reconstructed", copy)):
            path = folder / f"{name}-{number}.mp4"
            write_video(path, video, fps, metadata={"comment": "synthetic: procedural phantom"})
            shown.append((path, f"{name} {number}"))
    return shown


def _losses(*logs: list[dict[str, float]]) -> list[str]:
    """Return the names of the losses that the curves show."""
    shown = {name for log in logs for line in log for name, value in line.items() if value}
    return [name for name in METRICS if name.startswith("loss/") and name in shown]


def _notes(config: Config) -> list[str]:
    notes = []
    for folder in (config.vae_dir, config.dit_dir):
        messages = folder / "messages.txt"
        if messages.is_file():
            lines = messages.read_text(encoding="utf-8").splitlines()
            notes += [line for line in lines if "untrained" in line or "left out" in line]
    return sorted(set(notes))
