"""Scores of a model of the phantom.

`python -m medsora.evaluation.conditional.phantom_model --model MODEL --out DIR` samples clips with every
label in turn and compares them with held-out phantom clips by the same estimators on both sides: speed,
labels, appearance, near copies of training clips, and whether a classifier distinguishes them from
reconstructions by the model's VAE. Each distance is printed beside that of two halves of the held-out clips.
Sampled clips are kept in DIR, so an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, fisher_exact

from medsora.data.reading.video_io import read_frames
from medsora.errors import BadInput, bad_input_from_errors
from medsora.evaluation.conditional.classifier import FrameClassifier, predicted_labels, train_classifier
from medsora.evaluation.conditional.command import (
    command_parser,
    conclude,
    load_labelled,
    run_command,
    sampled,
    through_vae,
    trained_phantom,
)
from medsora.evaluation.conditional.fresh_phantom import HELD_OUT_SEED, phantom_classifier, phantom_clips
from medsora.evaluation.conditional.labels import agreement
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.memorisation import NEAR_QUANTILE, compare_space, spaces
from medsora.evaluation.metrics.measure import FrechetMeasure, Measure
from medsora.evaluation.metrics.motion import MotionExtractor, MotionMeasure
from medsora.evaluation.metrics.pyramid import PyramidExtractor
from medsora.evaluation.sanity.criterion import Criterion
from medsora.flow_prior import build_estimator
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import write_json, written_beside
from medsora.runtime.progress_bar import progress_bar
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.find import find_model
from medsora.saved.limits import read_json_object

log = logging.getLogger(__name__)

CLIPS_AT_ONCE = 8
PYRAMID, FLOW_DISTANCE, FLOW = "pyramid_distance", "flow_magnitude_distance", "flow_magnitude"
MIN_FLOW_RATIO, MAX_FLOW_RATIO = 0.8, 1.25
MIN_AGREEMENT, MAX_PYRAMID_RATIO, MAX_FLOW_DISTANCE_PX, GOAL_ACCURACY = 0.95, 2.0, 0.4, 0.75
LEVEL = 0.05
ACCURACY_SEEDS, ACCURACY_EPOCHS = 5, 12


def main() -> None:
    """Run the command line."""
    parser = command_parser(
        "phantom_model",
        __doc__.partition("\n")[0],
        model="a model of the phantom with labels",
        videos=200,
    )
    parser.set_defaults(sampler="dpmpp", steps=30)
    add = parser.add_argument
    add("--guidance", type=float, default=2.0, metavar="G", help="(default: %(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="video k has the seed S + k (default: %(default)s)")
    add("--training", type=Path, metavar="DIR", help="the phantom clips it was trained on, to find copies")
    add("--raft", type=Path, metavar="FILE", help="RAFT-small's weights: motion by RAFT as well as by DIS")
    add(
        "--polyp-size",
        type=float,
        metavar="X",
        help="polyp size of its phantom (default: its config.yaml's, else 1)",
    )
    add(
        "--judge-clips",
        type=int,
        default=900,
        metavar="N",
        help="clips that train the label classifier (default: %(default)s)",
    )
    add(
        "--epochs", type=int, default=24, metavar="N", help="epochs of that classifier (default: %(default)s)"
    )
    add("--cache", type=Path, default=Path("runs/cache"), metavar="DIR", help="(default: %(default)s)")
    run_command(parser, measure)


def measure(options: argparse.Namespace) -> int:
    """Sample, compare, write; return the exit status. Raises `BadInput` for what cannot be measured."""
    if options.videos < 2 * CLIPS_AT_ONCE:
        raise BadInput(f"--videos is {options.videos}: comparing takes at least {2 * CLIPS_AT_ONCE} clips.")
    if options.training is not None and not any(options.training.glob("*.mkv")):
        raise BadInput(f"--training {options.training} holds no phantom clips (*.mkv).")
    with bad_input_from_errors():
        motion = {"DIS": MotionMeasure()}
        if options.raft is not None:
            raft = build_estimator("raft_small", str(options.raft))
            motion["RAFT"] = MotionMeasure(MotionExtractor(raft, {"flow": "RAFT-small"}))
    pipeline = load_labelled(options.model)
    kind = (pipeline.config.frames, pipeline.config.size[0])
    polyps, look = trained_phantom(options.model)
    phantom = (polyps if options.polyp_size is None else options.polyp_size, look)
    held_out, truth, names = phantom_clips(options.cache, 2 * options.videos, *kind, HELD_OUT_SEED, phantom)
    halves = held_out[0::2], held_out[1::2]
    wanted = np.arange(options.videos) % len(names)
    made = sample_clips(pipeline, options, [names[k] for k in wanted])

    results, criteria = compare(made, halves, motion)
    classifier = phantom_classifier(options.cache, options.judge_clips, *kind, options.epochs, phantom)
    known = halves[0], truth[0::2]
    agreements, more = label_agreement(classifier, (made, wanted), known, names, options.guidance)
    results |= agreements
    criteria += more
    if options.training is not None:
        training = [
            read_frames(path, intact=True)[: kind[0]] for path in sorted(options.training.glob("*.mkv"))
        ]
        copies, more = near_copies(made, halves[0], training)
        results["near copies"] = copies
        criteria += more
    accuracies = discriminator_accuracies(made, through_vae(pipeline.vae, halves[0]))
    results["balanced accuracy, generated against reconstructed"] = accuracies
    mean = float(np.mean(accuracies))
    criteria.append(
        Criterion(
            f"a classifier distinguishes generated from reconstructed clips in {mean:.1%} ("
            f"{min(accuracies):.1%} to {max(accuracies):.1%} over {len(accuracies)} seeds), goal: at most "
            f"{GOAL_ACCURACY:.0%}",
            mean <= GOAL_ACCURACY,
        )
    )
    settings = ("model", "videos", "guidance", "sampler", "steps", "seed")
    results |= {name: getattr(options, name) for name in settings}
    results |= {"polyp_size": phantom[0], "look": look}
    return conclude(options.out, results, criteria)


def sample_clips(pipeline: MedSoraPipeline, options: argparse.Namespace, labels: Sequence[str]) -> np.ndarray:
    """Return a clip per label, uint8 (N, F, H, W, 3); those that an earlier call left in DIR are read.

    Raises `BadInput` if DIR holds clips of another model or other settings.
    """
    made_of = {name: getattr(options, name) for name in ("sampler", "steps", "guidance", "seed")}
    made_of |= {"weights": find_model(options.model).digests(), "labels": list(pipeline.labels)}
    folder = options.out / "clips"
    described = folder / "made-of.json"
    if described.is_file() and read_json_object(described) != made_of:
        raise BadInput(f"{folder} holds clips of another model or other settings: take another --out.")
    write_json(described, made_of)
    parts = []
    for first in progress_bar("sampling", range(0, len(labels), CLIPS_AT_ONCE), unit="batch"):
        path = folder / f"{first:05d}.npz"
        wanted = list(labels[first : first + CLIPS_AT_ONCE])
        frames = _stored(path)
        if frames is None or len(frames) < len(wanted):
            seeds = range(options.seed + first, options.seed + first + len(wanted))
            frames = sampled(pipeline, options, seeds, label=wanted, guidance=options.guidance)
            with written_beside(path) as beside, beside.open("wb") as file:
                np.savez(file, frames=frames)
        parts.append(frames[: len(wanted)])
    return np.concatenate(parts)


def _stored(path: Path) -> np.ndarray | None:
    """Return the clips of an earlier call, or None; a damaged file, by the checksums in it, is none."""
    try:
        with np.load(path) as file:
            return file["frames"]
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes make zipfile and numpy raise anything
        log.warning("%s is damaged (%s); its clips are sampled again.", path, type(error).__name__)
        return None


def compare(
    made: np.ndarray, halves: tuple[np.ndarray, np.ndarray], motion: dict[str, MotionMeasure]
) -> tuple[dict[str, dict[str, float]], list[Criterion]]:
    """Compare clips with a half of the held-out ones, and that half with the other.

    Args:
        made, halves: uint8 (N, F, H, W, 3).
        motion: measures of motion by their estimator's name.

    Returns:
        metrics by name, each of the generated clips and of the other half, and the criteria about them.
    """
    pyramid: Measure = FrechetMeasure(PYRAMID, "pyramid", PyramidExtractor())
    sets = {"generated": made, "held-out halves": halves[1]}
    table: dict[str, dict[str, float]] = {}
    for kind, measure in {"": pyramid, **motion}.items():
        reference = Features.of_clips(measure.extractor, halves[0])
        ending = f" ({kind})" if kind else ""
        for name, clips in sets.items():
            features = Features.of_clips(measure.extractor, clips)
            metrics = measure.compare(reference, features) | measure.describe(features)
            for key, value in metrics.items():
                table.setdefault(f"{key}{ending}", {})[name] = value
        for key, value in measure.describe(reference).items():
            table[f"{key}{ending}"]["phantom"] = value
    ratio = table[PYRAMID]["generated"] / table[PYRAMID]["held-out halves"]
    criteria = [
        Criterion(
            f"the pyramid distance is {ratio:.2f} times that of two halves, at most {MAX_PYRAMID_RATIO:g}",
            ratio <= MAX_PYRAMID_RATIO,
        )
    ]
    for name in motion:
        speeds = table[f"{FLOW} ({name})"]
        ratio = speeds["generated"] / speeds["phantom"]
        away = table[f"{FLOW_DISTANCE} ({name})"]
        criteria += [
            Criterion(
                f"mean flow by {name} is {ratio:.2f} times the phantom's, within {MIN_FLOW_RATIO} to "
                f"{MAX_FLOW_RATIO}",
                MIN_FLOW_RATIO <= ratio <= MAX_FLOW_RATIO,
            ),
            Criterion(
                f"the flow-magnitude distance by {name} is {away['generated']:.2f} px per frame (two halves "
                f"{away['held-out halves']:.2f}), at most {MAX_FLOW_DISTANCE_PX}",
                away["generated"] <= MAX_FLOW_DISTANCE_PX,
            ),
        ]
    return table, criteria


def label_agreement(
    classifier: FrameClassifier,
    made: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    names: list[str],
    guidance: float,
) -> tuple[dict[str, dict[str, Any]], list[Criterion]]:
    """Compare a classifier's predictions with labels, on generated clips and on held-out ones, which test it.

    Args:
        made, held_out: clips, uint8 (N, F, H, W, 3), and the numbers of their labels, (N,).

    Returns:
        both agreements by name, that of generated clips with its Wilson interval, and the criteria.
    """
    known, generated = (
        agreement(labels, predicted_labels(classifier, clips), names) for clips, labels in (held_out, made)
    )
    count = len(made[0])
    interval = binomtest(round(generated["agreement"] * count), count).proportion_ci(method="wilson")
    low, high = float(interval.low), float(interval.high)
    criteria = [
        Criterion(
            f"the classifier of labels is right about {known['agreement']:.1%} of held-out phantom clips, at "
            f"least {MIN_AGREEMENT:.0%}; otherwise the next line is meaningless: take more --epochs",
            known["agreement"] >= MIN_AGREEMENT,
        ),
        Criterion(
            f"sampled clips show the requested label in {generated['agreement']:.1%} (95 % interval "
            f"{low:.1%} to {high:.1%}) at a guidance of {guidance:g}, at least {MIN_AGREEMENT:.0%}",
            generated["agreement"] >= MIN_AGREEMENT,
        ),
    ]
    return {
        "label agreement, held-out clips": known,
        "label agreement": generated | {"low": low, "high": high},
    }, criteria


def near_copies(
    made: np.ndarray, held_out: np.ndarray, training: Sequence[np.ndarray]
) -> tuple[dict[str, dict[str, float]], list[Criterion]]:
    """Count generated clips that are nearer to a training clip than 95 % of held-out clips are.

    By chance about 5 % are; the criterion: Fisher's one-sided exact test at the level `LEVEL` finds no more.
    """
    shares, criteria = {}, []
    expected = round(NEAR_QUANTILE * len(held_out))
    for space, extractor in spaces(PyramidExtractor()).items():
        features = [Features.of_clips(extractor, clips) for clips in (made, held_out, training)]
        _, shares[space] = compare_space(space, *features)
        marked = round(shares[space]["suspicious_share"] * len(made))
        counts = [[marked, len(made) - marked], [expected, len(held_out) - expected]]
        chance = float(fisher_exact(counts, alternative="greater").pvalue)
        criteria.append(
            Criterion(
                f"in {space}, {marked} of {len(made)} generated clips are nearer to a training clip than 95 "
                f"% of held-out ones are (p = {chance:.2f} by chance)",
                chance >= LEVEL,
            )
        )
    return shares, criteria


def discriminator_accuracies(
    made: np.ndarray, phantom: np.ndarray, seeds: int = ACCURACY_SEEDS, epochs: int = ACCURACY_EPOCHS
) -> list[float]:
    """Return a classifier's balanced accuracy on clips of both kinds that it did not see, per seed.

    Every seed trains on another half of either set and is tested on the rest.
    """
    accuracies = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        orders = [random.permutation(len(clips)) for clips in (made, phantom)]
        training, tested = (
            [clips[order[part]] for clips, order in zip((made, phantom), orders, strict=True)]
            for part in (slice(0, None, 2), slice(1, None, 2))
        )
        labels = np.repeat([0, 1], [len(clips) for clips in training])
        clips = np.concatenate(training)
        classifier = train_classifier(clips, labels.tolist(), epochs=epochs, seed=seed, of_frames=False)
        print(f"generated against reconstructed: seed {seed + 1} of {seeds}", file=sys.stderr)
        right = [(predicted_labels(classifier, clips) == kind).mean() for kind, clips in enumerate(tested)]
        accuracies.append(float(np.mean(right)))
    return accuracies


if __name__ == "__main__":
    exit_with_status(main)
