"""From clips to features: every clip is decoded once and shown to every extractor that has not seen it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from accelerate import PartialState

from medsora.errors import bad_input_from_errors
from medsora.evaluation.features.clip_set import ClipSet
from medsora.evaluation.features.feature_store import Extractor, Features, FeatureStore
from medsora.runtime.processes import on_main, share_of
from medsora.runtime.progress_bar import progress_bar


def extract(
    clips: ClipSet,
    extractors: Mapping[str, Extractor],
    folder: Path,
    state: PartialState,
    *,
    batch_size: int = 4,
    label: str = "the",
) -> dict[str, Features]:
    """Return every extractor's features of all clips; those that lie in `folder` already are not made again.

    Work is divided among processes by the number of a clip, so the features do not depend on how many there
    are; memory does not depend on how many clips there are. What an interrupted extraction has done stays.
    Raises `BadInput` if a clip cannot be read or the folder not be written.
    """
    digest = on_main(state, clips.digest)
    stores = {
        name: FeatureStore(folder, digest, extractor, len(clips), clips.frames)
        for name, extractor in extractors.items()
    }
    writers, left = on_main(state, lambda: _begin(stores, len(clips), label))
    if writers:
        wanted = [stores[name] for name in writers]
        for name, writer in writers.items():
            stores[name].writer = writer
        mine, show = [left[k] for k in share_of(state, len(left))], state.is_main_process
        with (
            progress_bar(f"features of {label} clips", total=len(mine), unit="clip", show=show) as bar,
            bad_input_from_errors(),
        ):
            for indices, batch in clips.read_ahead(mine, batch_size):
                for store in wanted:
                    store.write(indices, batch)
                bar.update(len(indices))
        state.wait_for_everyone()
        on_main(state, lambda: [store.finish() for store in wanted] and None)
    features = {name: store.read() for name, store in stores.items()}
    state.wait_for_everyone()  # the main process may remove the folder once its own work is done
    return features


def _begin(stores: Mapping[str, FeatureStore], clips: int, label: str) -> tuple[dict[str, str], list[int]]:
    """Return who writes each store that is incomplete, and the clips that any of these still lacks."""
    writers = {name: store.begin() for name, store in stores.items() if not store.is_complete()}
    left = sorted({clip for name in writers for clip in stores[name].left()})
    if 0 < len(left) < clips:
        what = f"{clips - len(left)} of {clips} {label} clips"
        print(f"the features of {what} are there from an interrupted run.", file=sys.stderr)
    return writers, left
