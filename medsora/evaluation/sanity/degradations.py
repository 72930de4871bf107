"""Check that all metrics without weights order degradations correctly.

`python -m medsora.evaluation.sanity.degradations --real DIR`

Clips of one folder are divided into a reference and a second set, by video, or within each video by time
where the videos are of different kinds; the second set is then made worse in one respect after another. The
command prints a Markdown table of the distances to the reference, and whether every metric puts them into
the order that its purpose demands.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from medsora.config.choices import WEIGHT_FREE
from medsora.errors import BadInput, bad_input_from_errors, check_limits
from medsora.evaluation.features.clip_set import ClipSet, choose_clips
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.measure import Measure
from medsora.evaluation.metrics.motion import DIS_NOTE, MotionExtractor
from medsora.evaluation.metrics.registry import build_measures
from medsora.evaluation.report.paper_tables import number_text
from medsora.evaluation.sanity.degrade import blurred, frozen, noisy, shuffled
from medsora.runtime.exit import EXIT_STATUSES, exit_with_status
from medsora.runtime.markdown import markdown_table

REAL, MILD, STRONG = "real", "mild blur", "strong blur"
SHUFFLED, FROZEN, NOISE = "shuffled", "frozen", "noise"
LIMITS = {"clips": (4, math.inf), "frames": (MotionExtractor.min_frames, math.inf), "interval": (1, math.inf)}
MILD_BLUR, STRONG_BLUR = 1 / 64, 1 / 16  # sigma as a share of the frame's height

# Degradations that each distance must detect: every chain must rise from left to right. Others (blur for the
# motion, order in time for single frames) are not required.
ORDERS: dict[str, list[tuple[str, ...]]] = {
    "flow_magnitude_distance": [(REAL, SHUFFLED), (REAL, FROZEN), (MILD, FROZEN), (STRONG, FROZEN)],
    "warping_error_distance": [(REAL, SHUFFLED, NOISE), (REAL, FROZEN), (MILD, STRONG, NOISE)],
    "flicker_distance": [(REAL, SHUFFLED), (REAL, FROZEN), (REAL, NOISE)],
    "colour_distance": [(REAL, NOISE), (STRONG, NOISE)],
    "sharpness_distance": [(REAL, MILD, STRONG), (REAL, NOISE)],
    "untrained_pyramid_distance": [(REAL, MILD, STRONG, NOISE), (MILD, SHUFFLED), (REAL, FROZEN)],
}


def degraded(clips: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Return `clips`, uint8 (F, H, W, 3), untouched and in every degraded form."""
    height = clips[0].shape[1]
    forms: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
        REAL: lambda clip, seed: clip,
        MILD: lambda clip, seed: blurred(clip, MILD_BLUR * height),
        STRONG: lambda clip, seed: blurred(clip, STRONG_BLUR * height),
        SHUFFLED: shuffled,
        FROZEN: lambda clip, seed: frozen(clip),
        NOISE: noisy,
    }
    return {name: [form(clip, seed) for seed, clip in enumerate(clips)] for name, form in forms.items()}


def distances_of_degradations(
    measures: Sequence[Measure], reference: Sequence[np.ndarray], clips: Sequence[np.ndarray]
) -> dict[str, dict[str, float]]:
    """Return, for every distance by its key, the distance of each form of `clips` to `reference`."""
    distances: dict[str, dict[str, float]] = {}
    forms = degraded(clips)
    for measure in measures:
        of_reference = Features.of_clips(measure.extractor, reference)
        for name, form in forms.items():
            of_form = Features.of_clips(measure.extractor, form)
            for key, value in measure.compare(of_reference, of_form).items():
                distances.setdefault(key, {})[name] = value
    return distances


def broken_orders(distances: dict[str, dict[str, float]]) -> list[str]:
    """Return a sentence for every chain of `ORDERS` that does not rise."""
    return [
        f"{key}: {' < '.join(f'{name} {number_text(distances[key][name])}' for name in chain)}"
        for key, chains in ORDERS.items()
        for chain in chains
        if not all(distances[key][a] < distances[key][b] for a, b in pairwise(chain))
    ]


def main() -> None:
    """Print the table for the clips that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m medsora.evaluation.sanity.degradations",
        description=__doc__.splitlines()[0],
        epilog=EXIT_STATUSES.partition(" (")[0],
    )
    parser.add_argument("--real", required=True, metavar="DIR", help="real clips")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="clips in all (default: 64)")
    parser.add_argument("--frames", type=int, default=16, metavar="F", help="frames per clip (default: 16)")
    parser.add_argument("--size", type=int, default=64, metavar="PX", help="side of a frame (default: 64)")
    parser.add_argument("--interval", type=int, default=1, metavar="N", help="every N-th frame (default: 1)")
    divide = "the second set: every other video, or each video's later half (default: video)"
    parser.add_argument("--divide", choices=("video", "time"), default="video", help=divide)
    options = parser.parse_args()
    check_limits(options, LIMITS)
    with bad_input_from_errors():
        read = {name: getattr(options, name) for name in ("frames", "size", "interval")}
        clips = choose_clips(options.real, count=options.clips, seed=0, **read)
        reference, others = halves(clips, options.divide)
    measures = build_measures(WEIGHT_FREE, {}, "cpu", "dis")
    distances = distances_of_degradations(
        list(measures.values()), [clips.read(i) for i in reference], [clips.read(i) for i in others]
    )
    titles = {metric.key: metric for measure in measures.values() for metric in measure.distances}
    print(f"{len(reference)} reference clips, {len(others)} others, {options.frames} frames of ", end="")
    print(f"{options.size}x{options.size} pixels of {options.real}; {DIS_NOTE}\n")
    rows = []
    for key, row in distances.items():
        unit = f" ({titles[key].unit})" if titles[key].unit else ""
        rows.append([f"{titles[key].title}{unit}", *map(number_text, row.values())])
    print("\n".join(markdown_table(["distance to the reference", *degraded([clips.read(0)])], rows)))
    broken = broken_orders(distances)
    chains = sum(len(chains) for chains in ORDERS.values())
    print(f"\n{chains - len(broken)} of {chains} demanded orders hold.", *broken, sep="\nbroken: ")


def halves(clips: ClipSet, divide: str) -> tuple[list[int], list[int]]:
    """Return the clips' numbers in two halves: by alternating "video", or by "time" within each video."""
    by_video: dict[str, list[int]] = {}
    for number, (source, _) in enumerate(clips.clips):
        by_video.setdefault(source.source.name, []).append(number)
    groups = list(by_video.values())
    parts: tuple[list[int], list[int]] = [], []
    for number, group in enumerate(groups):
        if divide == "video":
            parts[number % 2].extend(group)
        else:
            parts[0].extend(group[: len(group) // 2])
            parts[1].extend(group[len(group) // 2 :])
    if min(map(len, parts)) < 2:
        raise BadInput(f"{clips.root} does not give two halves of two clips; add videos, or --divide time.")
    return parts


if __name__ == "__main__":
    exit_with_status(main)
