"""How many hard cuts the check finds, and how many it finds where there are none.

python -m tools.cut_detection FOLDER [--joins 100] [--seed 0]: each cut found in a video below FOLDER, which
should have none, is a false alarm; then pieces of two different videos are joined, drawn by the seed, and a
join found within one frame counts. Prints both counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsora.data.checking.cuts import CutFinder
from medsora.data.reading.find import find_sources
from medsora.data.reading.video_io import read_frames

SIZE_PX = 128  # the joined pieces' side
PIECE = (4, 24)  # frames of a piece, at least (if its video has as many) and at most


def cuts_of(frames: np.ndarray) -> tuple[int, ...]:
    """Return the cuts that the check finds in frames, uint8 (F, H, W, 3)."""
    finder = CutFinder()
    for number, frame in enumerate(frames):
        finder.add(number, frame)
    return finder.cuts()


def joined(videos: Sequence[np.ndarray], random: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return pieces of two different videos behind each other, and the frame that begins the second."""
    pieces = []
    for number in random.choice(len(videos), size=2, replace=False):
        frames = videos[number]
        length = int(random.integers(min(PIECE[0], len(frames)), min(PIECE[1], len(frames)) + 1))
        start = int(random.integers(len(frames) - length + 1))
        pieces.append(frames[start : start + length])
    return np.concatenate(pieces), len(pieces[0])


def joins_missed(videos: Sequence[np.ndarray], joins: int, seed: int) -> int:
    """Return how many of `joins` drawn joins are not found within one frame."""
    random = np.random.default_rng(seed)
    drawn = (joined(videos, random) for _ in range(joins))
    return sum(all(abs(cut - join) > 1 for cut in cuts_of(frames)) for frames, join in drawn)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.cut_detection", description=__doc__)
    parser.add_argument("folder", type=Path, help="videos without cuts")
    parser.add_argument("--joins", type=int, default=100, help="joins that are tried (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="decides the joins (default: 0)")
    options = parser.parse_args(arguments)
    videos, alarms = [], []
    for source in find_sources(options.folder).sources:
        videos.append(read_frames(source.path, size=SIZE_PX))
        alarms += [f"{source.name}@{cut}" for cut in cuts_of(videos[-1])]
    print(f"{len(videos)} videos, {len(alarms)} false alarms", *alarms)
    missed = joins_missed(videos, options.joins, options.seed)
    print(f"{options.joins - missed} of {options.joins} joins found within one frame")


if __name__ == "__main__":
    main()
