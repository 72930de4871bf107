"""The page that `make demo` ends with: real, reconstructed and generated clips side by side, and figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from medsora.config.schema import Config
from medsora.data.reading.pixels import video_to_frames
from medsora.data.reading.video_io import read_frames, write_video
from medsora.data.sheet import contact_sheet, save_image
from medsora.evaluation.metrics.motion import DIS_NOTE, flow_magnitudes
from medsora.evaluation.sanity.baselines import Proof
from medsora.html_report import Section, draw_curves, write_report
from medsora.saved.find import DEFAULT_FPS, trained_vae
from medsora.training.open_clips import clip_spec, open_clips
from medsora.training.run.folder import read_log

SHEET_FRAMES = 8
SHOWN_CLIPS = 4


def write_demo_report(config: Config, generated: Path, steps: int, proof: Proof | None) -> Path:
    """Write sheet, curves and `report.html` into the run folder; return the page's path.

    `generated` holds the videos, sampled with `steps` DDIM steps; the real clips are held-out ones; `proof`
    compares them (`medsora.demo.proof`).
    """
    folder = config.run_dir
    _, held_out = open_clips(config, Accelerator(cpu=True), clip_spec(config), config.vae_dir)
    count = min(SHOWN_CLIPS, len(held_out))
    picks = np.linspace(0, len(held_out) - 1, count).round().astype(int)
    videos = torch.stack([held_out.fixed_clip(int(i))["video"] for i in picks])
    vae = trained_vae(config)
    with torch.no_grad():
        reconstructed = list(video_to_frames(vae.decode(vae.encode(videos))))
    real = [video_to_frames(video) for video in videos]
    paths = sorted(generated.glob("video-*.mp4"))
    made = [read_frames(path) for path in paths]

    rows = []
    for number in range(count):
        rows += [("real, held out", real[number]), ("reconstructed by the VAE", reconstructed[number])]
    rows += [(f"generated, {path.stem}", video) for path, video in zip(paths, made, strict=True)]
    save_image(folder / "sheet.png", contact_sheet(rows, columns=SHEET_FRAMES))

    stage_1, stage_2 = read_log(config.vae_dir), read_log(config.dit_dir)
    draw_curves(folder / "stage-1.png", stage_1, "loss/", "stage 1: the VAE's loss")
    draw_curves(folder / "stage-2.png", stage_2, "loss/", "stage 2: the denoiser's loss")
    shown = _write_shown(folder / "shown", real, reconstructed, held_out.report.fps or DEFAULT_FPS)
    path = folder / "report.html"
    write_report(
        path,
        "MedSora on the phantom",
        "Procedural endoscopy in, generated endoscopy out; nothing here was recorded from a patient.",
        [
            Section(
                "Generated",
                text=[f"{len(made)} videos sampled from the EMA weights with {steps} DDIM steps."],
                videos=[(video, video.stem) for video in paths],
            ),
            Section(
                "Real and reconstructed",
                text=["Held-out phantom clips, and what the VAE returns of them."],
                videos=shown,
            ),
            Section("Did it learn?", text=_sentences(proof), table=proof.lines() if proof else []),
            Section("Figures", table=_figures(stage_1, stage_2, real, reconstructed, made)),
            Section("Side by side", images=[(folder / "sheet.png", "real, reconstructed, generated")]),
            Section(
                "Loss curves",
                text=_notes(config),
                images=[
                    (folder / "stage-1.png", "stage 1 (thin: as logged, bold: running mean)"),
                    (folder / "stage-2.png", "stage 2 (thin: as logged, bold: running mean)"),
                ],
            ),
        ],
    )
    return path


def report_lines(proof: Proof | None) -> list[str]:
    """Return the proof for a terminal: its table, then what it shows."""
    rows = proof.lines() if proof else []
    width = max((len(name) for name, _ in rows), default=0)
    return ["", *(f"{name:{width}}  {figures}" for name, figures in rows), *_sentences(proof)]


def _sentences(proof: Proof | None) -> list[str]:
    if proof is None:
        return ["Too few clips to compare: at least two held-out and two generated ones are needed."]
    return proof.sentences()


def _write_shown(folder: Path, real: list, reconstructed: list, fps: float) -> list[tuple[Path, str]]:
    shown = []
    for number, (clip, copy) in enumerate(zip(real, reconstructed, strict=True)):
        for name, video in (("real", clip), ("reconstructed", copy)):
            path = folder / f"{name}-{number}.mp4"
            write_video(path, video, fps, metadata={"comment": "synthetic: procedural phantom"})
            shown.append((path, f"{name} {number}"))
    return shown


def _figures(
    stage_1: list, stage_2: list, real: list, reconstructed: list, made: list
) -> list[tuple[str, str]]:
    last = {name: value for line in stage_1 + stage_2 for name, value in line.items()}

    def motion(clips: list) -> str:
        magnitudes = flow_magnitudes(clips)
        return f"{magnitudes.mean():.2f} px per frame ({magnitudes.min():.2f} to {magnitudes.max():.2f})"

    return [
        ("VAE, held out: PSNR", f"{last['held_out/psnr']:.2f} dB"),
        ("… of the base without compensation", f"{last.get('held_out/base_psnr', float('nan')):.2f} dB"),
        ("… of each clip's mean colour", f"{last['held_out/mean_colour_psnr']:.2f} dB"),
        ("VAE, held out: SSIM", f"{last['held_out/ssim']:.3f}"),
        ("VAE, held out: flicker", f"{last['held_out/flicker']:.4f}"),
        ("denoiser, held out: noise error", f"{last['held_out/mse']:.4f}"),
        ("motion of real clips", motion(real)),
        ("motion of reconstructed clips", motion(reconstructed)),
        ("motion of generated clips", motion(made)),
        ("how motion is measured", DIS_NOTE),
    ]


def _notes(config: Config) -> list[str]:
    notes = []
    for folder in (config.vae_dir, config.dit_dir):
        messages = folder / "messages.txt"
        if messages.is_file():
            lines = messages.read_text(encoding="utf-8").splitlines()
            notes += [line for line in lines if "untrained" in line or "left out" in line]
    return sorted(set(notes))
