"""README's moving picture: `python -m tools.moving_picture OUT.webp`.

Held-out phantom clips above clips that a model made, a column per label; with `--film FRAMES` long videos.
The clips are those of fixed seeds, not chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from medsora.data.sheet import contact_sheet
from medsora.errors import BadInput
from medsora.evaluation.conditional.command import load_measured, trained_phantom
from medsora.evaluation.conditional.fresh_phantom import HELD_OUT_SEED, phantom_clips
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import written_beside

MAX_BYTES = 1_500_000
MAX_FILM_BYTES = 1_000_000
QUALITIES = (80, 65, 50, 35)
FPS = 8


def main() -> None:
    """Sample, draw, write."""
    parser = argparse.ArgumentParser(prog="python -m tools.moving_picture", description=__doc__)
    add = parser.add_argument
    add("out", type=Path, help="the .webp file to write")
    add("--model", default="phantom", help="(default: %(default)s)")
    add("--columns", type=int, default=2, metavar="N", help="columns per label (default: %(default)s)")
    add("--film", type=int, metavar="FRAMES", help="videos of so many frames, in windows")
    add("--steps", type=int, default=50, metavar="N", help="steps of DPM-Solver++ (default: %(default)s)")
    add("--guidance", type=float, default=3.0, metavar="G", help="(default: %(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="video k has the seed S + k (default: %(default)s)")
    add("--cache", type=Path, default=Path("runs/cache"), metavar="DIR", help="(default: %(default)s)")
    options = parser.parse_args()
    if options.out.suffix != ".webp":
        raise BadInput(f"{options.out} must end in .webp.")
    pipeline = load_measured(options.model)
    labels = [label for label in pipeline.labels for _ in range(options.columns)]
    if not labels:
        raise BadInput(f"{options.model} was trained without labels (data.labels): there are no columns.")
    long = {} if options.film is None else {"frames": options.film, "window": pipeline.config.frames}
    made = pipeline(
        seeds=range(options.seed, options.seed + len(labels)),
        label=labels,
        guidance_scale=options.guidance,
        num_inference_steps=options.steps,
        sampler="dpmpp",
        output_type="uint8",
        **long,
    ).frames
    rows = {"generated": made}
    if options.film is None:
        kind = (pipeline.config.frames, pipeline.config.size[0])
        clips, numbers, names = phantom_clips(
            options.cache, 3 * len(labels), *kind, HELD_OUT_SEED, trained_phantom(options.model)
        )
        chosen = [
            np.flatnonzero(numbers == names.index(label))[k % options.columns]
            for k, label in enumerate(labels)
        ]
        rows = {"phantom (held out)": clips[chosen], **rows}
    size = write_moving(options.out, frames_of(rows, labels), MAX_BYTES if not long else MAX_FILM_BYTES)
    print(f"{options.out}: {len(made[0])} frames, {size:,} bytes")


def frames_of(rows: dict[str, np.ndarray], labels: list[str]) -> list[Image.Image]:
    """Return pictures: per row of clips, uint8 (columns, F, H, W, 3), a line with its name and the labels."""
    frames = len(next(iter(rows.values()))[0])
    pictures = []
    for number in range(frames):
        lines = [
            (f"{name}: {', '.join(dict.fromkeys(labels))}", np.stack([clip[number] for clip in clips]))
            for name, clips in rows.items()
        ]
        pictures.append(Image.fromarray(contact_sheet(lines, columns=len(labels))))
    return pictures


def write_moving(path: Path, pictures: list[Image.Image], most_bytes: int) -> int:
    """Write an animated WebP at the best of `QUALITIES` that fits; return its size.

    Raises `BadInput` if none fits.
    """
    for quality in QUALITIES:
        with written_beside(path) as beside:
            pictures[0].save(
                beside,
                format="WEBP",
                save_all=True,
                append_images=pictures[1:],
                duration=round(1000 / FPS),
                loop=0,
                quality=quality,
                method=6,
            )
        if (size := path.stat().st_size) <= most_bytes:
            return size
    path.unlink()
    raise BadInput(f"even at quality {QUALITIES[-1]} it takes {size:,} bytes, at most {most_bytes:,} may be.")


if __name__ == "__main__":
    exit_with_status(main)
