"""Which videos are trained on and which are held out: by video or by patient, never by clip."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from medsora.data.video_table import read_video_table
from medsora.errors import BadInput

log = logging.getLogger(__name__)

TRAIN, HELD_OUT = "train", "held-out"
HELD_OUT_WORDS = (
    "held-out",
    "heldout",
    "held_out",
    "holdout",
    "test",
    "testing",
    "val",
    "valid",
    "validation",
)
SPLIT_WORDS = dict.fromkeys(("train", "training"), TRAIN) | dict.fromkeys(HELD_OUT_WORDS, HELD_OUT)


def split_by_video(names: Sequence[str], holdout: float, seed: int) -> dict[str, str]:
    """Return "train" or "held-out" for every video name; about the part `holdout` of them is held out.

    At least one is held out if there are two or more and `holdout` is not 0. The choice hangs on the names
    and the seed alone, so a video that joins the folder moves few others.
    """
    if not 0 <= holdout < 1:
        raise BadInput(f"holdout is {holdout}, but the part held out must be at least 0 and less than 1.")
    held_out = set(sorted(names, key=lambda name: _rank(name, seed))[: _held_out_count(len(names), holdout)])
    return {name: HELD_OUT if name in held_out else TRAIN for name in names}


def split_by_csv(
    csv_path: str | Path, names: Sequence[str], holdout: float, seed: int, *, known: Sequence[str] = ()
) -> dict[str, str]:
    """Return the split that a CSV asks for, for those of `names` that it lists; the others are left out.

    The columns are `file` and `split` (train or held-out), or `file`, `patient` and perhaps `split`. Without
    `split`, patients are drawn for holding out as `split_by_video` draws videos. A file is named by its path
    below the data folder, or by its bare name with or without ending where that is unique. `known` are
    further videos that exist but cannot be used: naming them is no error.

    Raises `BadInput` with one sentence: no such file or column, a file that is not in the folder, an unknown
    word, a file listed twice differently, a patient on both sides.
    """
    csv_path = Path(csv_path)
    rows = read_video_table(csv_path, "split", ("split", "patient"), [*names, *known])
    patients: dict[str, str] = {}
    splits: dict[str, str] = {}
    for number, name, row in rows:
        patient = row.get("patient") or name
        if patients.setdefault(name, patient) != patient:
            raise BadInput(f"{csv_path}, line {number}: '{row['file']}' is listed for two patients.")
        if "split" not in row:
            continue
        split = SPLIT_WORDS.get(row["split"].lower())
        if split is None:
            raise BadInput(
                f"{csv_path}, line {number}: the split '{row['split']}' must be train or held-out."
            )
        if splits.setdefault(patient, split) != split:
            raise BadInput(f"{csv_path}, line {number}: '{patient}' is both in train and in held-out.")
    if not splits:
        splits = split_by_video(sorted(set(patients.values())), holdout, seed)
    unlisted = [name for name in names if name not in patients]
    if unlisted:
        log.warning("left out %d videos that %s does not list: %s ...", len(unlisted), csv_path, unlisted[0])
    return {name: splits[patients[name]] for name in names if name in patients}


def _held_out_count(videos: int, holdout: float) -> int:
    if holdout == 0 or videos < 2:
        return 0
    return min(max(1, round(holdout * videos)), videos - 1)


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
