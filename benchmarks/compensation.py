"""Both kinds of decoder compensation at equal steps, on phantom clips: `python -m benchmarks.compensation`.

Stage 1 itself trains them over the frozen base of `configs/phantom.yaml`, for clips of 16 and of 17 frames,
with the same seeds and the same clips. They are compared on clips that neither was trained on.

The default is the kind whose PSNR is higher by at least 0.1 dB at both lengths with every seed; if there is
none, the one whose mean flow is nearer to that of the original clips, both lengths taken together.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from medsora.config.load import load_config
from medsora.data.reading.pixels import frames_to_video
from medsora.evaluation.conditional.fresh_phantom import HELD_OUT_SEED, TRAINING_SEED, phantom_clips
from medsora.evaluation.metrics.motion import DIS_NOTE
from medsora.flow_prior import DisEstimator
from medsora.runtime.exit import exit_with_status
from medsora.runtime.markdown import markdown_table
from medsora.training.stage1.loop import train_vae
from medsora.vae import FrequencyCompensatedVAE, focal_frequency_loss
from medsora.vae.choices import COMPENSATION_KINDS
from medsora.vae.compensation import compensation_off
from medsora.vae.quality import flicker, psnr
from medsora.vae.shapes import FRAMES_PER_CHUNK, FRAMES_PER_LATENT

LENGTHS = (16, 17)
SIZE_PX = 64
MIN_PSNR_GAIN_DB = 0.1  # approximate difference between two seeds of one kind
CONFIG = Path(__file__).parents[1] / "configs" / "phantom.yaml"
Scores = dict[str, float]


def main() -> None:
    """Train what is not trained yet, then print the table and the default that follows from it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compensation", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--steps", type=int, default=400, metavar="N", help="steps of each training (default: %(default)s)")
    add("--seeds", nargs="+", type=int, default=[0, 1], metavar="N", help="(default: 0 1)")
    add("--clips", type=int, default=32, metavar="N", help="unseen clips (default: %(default)s)")
    add("--train-clips", type=int, default=96, metavar="N", help="training clips (default: %(default)s)")
    add("--out", type=Path, default="runs/compensation", metavar="DIR", help="(default: %(default)s)")
    options = parser.parse_args()
    pixels, *_ = phantom_clips(options.out / "clips", options.clips, max(LENGTHS), SIZE_PX, HELD_OUT_SEED)
    videos = frames_to_video(pixels)
    rows: dict[tuple[int, str, int | None], Scores] = {}
    for frames in LENGTHS:
        video = videos[:, :frames]
        rows[frames, "original", None] = {"flow": _flow_px(video), "flow 0-3": _flow_px(video[:, :4])}
        for seed in options.seeds:
            for kind in COMPENSATION_KINDS:
                vae = trained(options.out, kind, frames, seed, options.steps, options.train_clips)
                if (frames, "base", None) not in rows:
                    with compensation_off(vae):
                        rows[frames, "base", None] = scores(vae, video)
                rows[frames, kind, seed] = scores(vae, video)
    print(
        f"{options.steps} steps on {options.train_clips} phantom clips of {SIZE_PX}x{SIZE_PX}, "
        f"{options.clips} unseen clips. Flow: DIS, px per frame. "
        f"Flicker, on a scale of 2, inside chunks and where they join. {DIS_NOTE[0].upper()}{DIS_NOTE[1:]}.\n"
    )
    print("\n".join(table(rows)))
    print(f"\nThe better kind: {better_kind(rows, options.seeds)}.")


def trained(
    out: Path, kind: str, frames: int, seed: int, steps: int, train_clips: int
) -> FrequencyCompensatedVAE:
    """Train the compensation of `kind` by stage 1 unless `out` holds it already; return the saved VAE."""
    config = load_config(
        CONFIG,
        [
            f"run.dir={out}",
            f"run.name={kind}-{frames}-frames-seed-{seed}",
            f"run.seed={seed}",
            f"data.frames={frames}",
            f"phantom.folder={out / 'clips' / 'training'}",
            f"phantom.videos={train_clips}",
            f"phantom.frames={max(LENGTHS)}",
            f"phantom.seed={TRAINING_SEED}",
            f"vae.compensation_kind={kind}",
            "train_vae.batch=1",
            "train_vae.eval_clips=1",
            f"train_vae.max_steps={steps}",
            f"train_vae.eval_every={steps}",
            f"train_vae.save_every={steps}",
        ],
    )
    return FrequencyCompensatedVAE.from_pretrained(train_vae(config)).eval()


@torch.no_grad()
def scores(vae: FrequencyCompensatedVAE, video: Tensor) -> Scores:
    """Compare the VAE's reconstructions with clips (B, F, 3, H, W) in [-1, 1]: means over the clips."""
    copies = vae.decode(vae.encode(video))
    begin = slice(FRAMES_PER_LATENT)
    joint = FRAMES_PER_CHUNK + video.shape[1] % FRAMES_PER_CHUNK  # first frame of the second chunk
    at_joint = slice(joint - 1, joint + 1)
    inside = [flicker(copies[:, part], video[:, part]) for part in (slice(joint), slice(joint, None))]
    return {
        "PSNR": float(psnr(copies, video).mean()),
        "PSNR 0-3": float(psnr(copies[:, begin], video[:, begin]).mean()),
        "FFL": float(focal_frequency_loss(copies, video)),
        "flow": _flow_px(copies),
        "flow 0-3": _flow_px(copies[:, begin]),
        "flicker": float(torch.stack(inside).mean()),
        "flicker at joint": float(flicker(copies[:, at_joint], video[:, at_joint]).mean()),
    }


def _flow_px(video: Tensor) -> float:
    """Return the mean length of the optical flow between consecutive frames, in pixels."""
    return float(DisEstimator()(video).norm(dim=2).mean())


def table(rows: dict[tuple[int, str, int | None], Scores]) -> list[str]:
    """Return a Markdown table, a row for each length, kind and seed."""
    names = max(rows.values(), key=len)
    cells = [
        [frames, kind, "" if seed is None else seed, *(f"{row[n]:.4g}" if n in row else "" for n in names)]
        for (frames, kind, seed), row in rows.items()
    ]
    return markdown_table(["frames", "compensation", "seed", *names], cells, 2)


def better_kind(rows: dict[tuple[int, str, int | None], Scores], seeds: Sequence[int]) -> str:
    """Apply the rule at the top of this file."""
    cases = [(frames, seed) for frames in LENGTHS for seed in seeds]
    for kind, other in (COMPENSATION_KINDS, COMPENSATION_KINDS[::-1]):
        gains = [rows[f, kind, s]["PSNR"] - rows[f, other, s]["PSNR"] for f, s in cases]
        if min(gains) >= MIN_PSNR_GAIN_DB:
            return kind

    def flow_error(kind: str) -> float:
        return mean(abs(rows[f, kind, s]["flow"] / rows[f, "original", None]["flow"] - 1) for f, s in cases)

    return min(COMPENSATION_KINDS, key=flow_error)


if __name__ == "__main__":
    exit_with_status(main)
