"""`python -m tools.split_in_time SEQUENCES OUT`: few long recordings become training and later clips.

Where there is one recording of each kind, none can be held out whole. Of every video or folder of pictures
below SEQUENCES the first frames go to OUT/train/NAME/, the last ones to OUT/later/NAME/, as PNG pictures;
`--gap` frames between them go nowhere. Frames close in time are alike, so scores on `later` are better than
they would be on another patient.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from medsora.data.reading.find import find_sources
from medsora.data.reading.video_io import UnreadableVideo, read_frames
from medsora.errors import BadInput
from medsora.runtime.exit import exit_with_status
from medsora.runtime.files import written_folder

LATER, GAP_FRAMES, SIZE_PX = 0.25, 16, 128


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.split_in_time", description=__doc__)
    add = parser.add_argument
    add("sequences", type=Path, help="a folder of videos or of folders of pictures")
    add("out", type=Path, help="a new folder")
    add("--later", type=float, default=LATER, metavar="X", help="part held out (default: %(default)s)")
    add("--gap", type=int, default=GAP_FRAMES, metavar="N", help="frames left out (default: %(default)s)")
    add("--size", type=int, default=SIZE_PX, metavar="PX", help="side of the pictures (default: %(default)s)")
    options = parser.parse_args()
    if not (0 < options.later < 1 and options.gap >= 0 and options.size >= 1):
        raise BadInput("--later must lie between 0 and 1, --gap be at least 0, --size at least 1.")
    if options.out.exists():
        raise BadInput(f"{options.out} exists; name a new folder.")
    for line in split(options.sequences, options.out, options.later, options.gap, options.size):
        print(line)


def split(sequences: Path, out: Path, later: float, gap: int, size_px: int) -> list[str]:
    """Write OUT/train and OUT/later; return a line per sequence, also for one too short, which is left out.

    Raises `BadInput` for a sequence that cannot be read, and where nothing is left.
    """
    lines, written = [], 0
    with written_folder(out) as folder:
        for source in find_sources(sequences).sources:
            try:
                frames = read_frames(source.path, size=size_px, pictures=source.pictures)
            except UnreadableVideo as error:
                raise BadInput(f"{error}.") from error
            first_later = round(len(frames) * (1 - later))
            parts = {"train": frames[: first_later - gap], "later": frames[first_later:]}
            if first_later <= gap or not len(parts["later"]):
                lines.append(f"{source.name}: left out, {len(frames)} frames are too few for a gap of {gap}")
                continue
            written += 1
            name = source.name.replace("/", "-")
            for part, pictures in parts.items():
                (folder / part / name).mkdir(parents=True)
                for number, picture in enumerate(pictures):
                    Image.fromarray(picture).save(folder / part / name / f"{number:05}.png")
            lines.append(
                f"{source.name}: {len(parts['train'])} frames to train on, {len(parts['later'])} later"
            )
        if not written:
            raise BadInput("; ".join(lines) or f"{sequences} holds no videos and no folders of pictures.")
    return lines


if __name__ == "__main__":
    exit_with_status(main)
