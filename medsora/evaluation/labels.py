"""Does a model do what its label says? Measured on the phantom, whose labels are certain.

`python -m medsora.evaluation.labels --model RUN --out DIR` trains a classifier on freshly rendered phantom
clips and tries it on others that are held out, as they are and as the model's VAE returns them. Then as many
clips are sampled of each label, and the classifier says what they show. Against shuffled labels the same
answers must be at chance.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from medsora.name_guard import check_kernels_name

check_kernels_name()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from medsora.data.pixels import frames_to_video, video_to_frames  # noqa: E402
from medsora.data.sheet import contact_sheet, save_image  # noqa: E402
from medsora.errors import BadInput, building, exit_with_status  # noqa: E402
from medsora.evaluation.fresh_phantom import HELD_OUT_SEED, TRAINING_SEED, phantom_clips  # noqa: E402
from medsora.evaluation.judge import Judge, judged, train_judge  # noqa: E402
from medsora.model_folder import find_model  # noqa: E402
from medsora.pipeline import MedSoraPipeline  # noqa: E402

SHUFFLES = 1000
SHEET_ROWS = 8
JUDGE_MUST_REACH, MODEL_MUST_REACH = 0.95, 0.85


@dataclass(frozen=True)
class Agreement:
    """How often what the judge sees is what was asked for, all as parts of 1.

    `shuffled` is the mean over `SHUFFLES` shuffles of the labels asked for, `chance` what it must be near:
    the agreement of independent answers with the same frequencies.
    """

    asked: float
    shuffled: float
    chance: float
    of_label: dict[str, float]

    @classmethod
    def of(cls, asked: np.ndarray, seen: np.ndarray, names: list[str]) -> Agreement:
        """Compare two arrays of labels' numbers."""
        random = np.random.default_rng(0)
        shuffled = [(random.permutation(asked) == seen).mean() for _ in range(SHUFFLES)]
        chance = sum((asked == k).mean() * (seen == k).mean() for k in range(len(names)))
        of_label = {
            name: float((seen[asked == k] == k).mean()) for k, name in enumerate(names) if (asked == k).any()
        }
        return cls(float((asked == seen).mean()), float(np.mean(shuffled)), float(chance), of_label)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medsora.evaluation.labels", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--model", metavar="RUN_OR_FOLDER", help="a model of the phantom with labels; none: the judge alone")
    add("--out", required=True, type=Path, metavar="DIR", help="where results.json and the sheets go")
    add("--videos", type=int, default=200, metavar="N", help="clips to sample (default: %(default)s)")
    add("--guidance", type=float, default=2.0, metavar="G", help="(default: %(default)s)")
    add("--sampler", choices=("ddim", "dpmpp"), default="ddim", help="(default: %(default)s)")
    add("--steps", type=int, default=50, metavar="N", help="sampling steps (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="video k has the seed S + k (default: %(default)s)")
    add("--training-clips", type=int, default=900, metavar="N", help="for the judge (default: %(default)s)")
    add("--held-out-clips", type=int, default=300, metavar="N", help="for the judge (default: %(default)s)")
    add("--epochs", type=int, default=12, metavar="N", help="for the judge (default: %(default)s)")
    add("--cache", type=Path, default=Path("runs/cache"), metavar="DIR", help="(default: %(default)s)")
    measure(parser.parse_args())


def measure(options: argparse.Namespace) -> None:
    """Train and try the judge, sample, compare, write; raises `BadInput` for a model without labels."""
    pipeline, frames, size = None, 16, 64
    if options.model:
        with building():
            pipeline = MedSoraPipeline.from_folder(find_model(options.model))
        if not pipeline.labels:
            raise BadInput(f"{options.model} was trained without labels (data.labels): nothing to measure.")
        if torch.cuda.is_available():
            pipeline.to("cuda")
        frames, (size, _) = pipeline.config.frames, pipeline.config.size
    device = pipeline.denoiser.device if pipeline else "cpu"

    clips, numbers, names = phantom_clips(options.cache, options.training_clips, frames, size, TRAINING_SEED)
    tests, truth, _ = phantom_clips(options.cache, options.held_out_clips, frames, size, HELD_OUT_SEED)
    if pipeline is not None and pipeline.labels != names:
        raise BadInput(f"{options.model} knows {', '.join(pipeline.labels)}, the phantom {', '.join(names)}.")
    judge = train_judge(
        clips,
        numbers.tolist(),
        epochs=options.epochs,
        device=device,
        progress=lambda epoch, loss: print(f"judge, epoch {epoch + 1}: loss {loss:.3f}", file=sys.stderr),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    results = {"judge on held-out real clips": float((judged(judge, tests) == truth).mean())}
    if pipeline is not None:
        returned = _through_vae(pipeline, tests)
        results["judge on the same, through the VAE"] = float((judged(judge, returned) == truth).mean())
        results |= _model_results(pipeline, judge, names, options)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, value in results.items():
        print(f"{name}: {value}")
    _conclude(results)


def _through_vae(pipeline: MedSoraPipeline, clips: np.ndarray) -> np.ndarray:
    vae, parts = pipeline.vae, []
    with torch.no_grad():
        for part in np.array_split(clips, -(-len(clips) // 8)):
            video = frames_to_video(part).to(vae.device, vae.dtype)
            parts.append(video_to_frames(vae.decode(vae.encode(video))))
    return np.concatenate(parts)


def _model_results(
    pipeline: MedSoraPipeline, judge: Judge, names: list[str], options: argparse.Namespace
) -> dict[str, object]:
    asked = np.arange(options.videos) % len(names)
    videos = pipeline(
        num_inference_steps=options.steps,
        seeds=[options.seed + k for k in range(options.videos)],
        sampler=options.sampler,
        label=[names[k] for k in asked],
        guidance=options.guidance,
    ).frames
    seen = judged(judge, videos)
    for k, name in enumerate(names):
        rows = [
            (f"asked for {name}, seed {options.seed + row}, judged {names[seen[row]]}", videos[row])
            for row in np.flatnonzero(asked == k)[:SHEET_ROWS]
        ]
        if rows:
            save_image(options.out / f"sheet-{name}.png", contact_sheet(rows, columns=8))
    settings = ("videos", "guidance", "sampler", "steps", "seed")
    return asdict(Agreement.of(asked, seen, names)) | {key: getattr(options, key) for key in settings}


def _conclude(results: dict[str, object]) -> None:
    claims = [
        ("the judge is right about held-out real clips", "judge on held-out real clips", JUDGE_MUST_REACH)
    ]
    if "asked" in results:
        claims.append(("sampled clips show what was asked for", "asked", MODEL_MUST_REACH))
    for sentence, key, least in claims:
        word = "Holds" if results[key] >= least else "DOES NOT HOLD"
        print(f"{word}: {sentence} in {results[key]:.1%}, at least {least:.0%}")


if __name__ == "__main__":
    exit_with_status(main)
