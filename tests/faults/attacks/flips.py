"""One flipped bit in a file of every kind that is written and read again, which nobody announces.

Wherever it falls, what is read afterwards is what was written, or it is refused or made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from medsora.evaluation.features.feature_store import Extractor, FeatureStore
from medsora.runtime.digests import weights_digest
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.checkpoint import latest_checkpoint
from medsora.saved.find import find_model, find_vae, load_vae
from medsora.saved.manifest import model_files, write_manifest
from medsora.saved.pipeline import saved_sampler
from medsora.training.cache.store import TensorStore
from tests.faults.guarded import report, try_all
from tests.support.tiny_pipeline import tiny_pipeline, tiny_vae, write_run

CLIPS = 6


def flip_bits(inputs: int, seed: int) -> int:
    """Try `inputs` flipped bits; print what came of them; return the exit status."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="medsora-flips-") as folder:
        original = Path(folder) / "original"
        for kind, (write, _) in KINDS.items():
            write(original / kind)
        wanted = {kind: use(original / kind) for kind, (_, use) in KINDS.items()}
        tally = try_all(inputs, lambda number: attempt(number, seed, original, Path(folder), wanted))
    return report(tally, "past", "flipped bits")


def attempt(number: int, seed: int, original: Path, folder: Path, wanted: dict[str, str | None]) -> str:
    """Flip bit `number` of those drawn, read what it lies in; return what came of it."""
    draw = random.Random(f"{seed}/{number}")
    kind = sorted(KINDS)[number % len(KINDS)]
    copy = folder / f"flipped-{os.getpid()}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(original / kind, copy)
    victim = draw.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
    if number < len(KINDS):  # first of all what nothing happened to
        assert KINDS[kind][1](copy) == wanted[kind], f"{kind}: a copy is not what was written"
        return f"past: {kind}: not flipped"
    content = bytearray(victim.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    victim.write_bytes(content)
    try:
        found = KINDS[kind][1](copy)
    except (ValueError, OSError) as error:
        error.how_far = f"{kind}: refused"
        raise
    name = victim.relative_to(copy)
    assert found is None or found == wanted[kind], f"{kind}: the flip in {name} was used silently"
    return f"{kind}: made anew" if found is None else f"past: {kind}: nothing depends on it"


# What is written, and what is read of it: a digest of all that has a meaning, None where it is made anew


class Still(Extractor):
    """An extractor that is never asked: the features are there."""

    def __init__(self) -> None:
        self.identity, self.width = {"name": "still"}, 8

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Return features that depend on the clips."""
        return clips.astype(np.float32).reshape(len(clips), 1, -1)[:, :, : self.width]


def write_cache(folder: Path) -> None:
    """Two entries of a cache, of a few kinds of tensors."""
    store, random_numbers = TensorStore(folder, "latents", {"of": "a test"}), torch.Generator().manual_seed(0)
    for name in ("one", "two"):
        mean = torch.randn(2, 4, 4, 8, 8, generator=random_numbers)
        store.put(name, {"mean": mean, "half": mean[0].half(), "videos": torch.tensor([3, 1])})


def use_cache(folder: Path) -> str | None:
    """Read both as training does."""
    store = TensorStore(folder, "latents", {"of": "a test"})
    entries = [store.get(name) for name in ("one", "two")]
    if any(entry is None for entry in entries):
        return None
    state = hashlib.sha256()
    for entry in entries:
        for name, tensor in sorted(entry.items()):
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return state.hexdigest()


def feature_store(folder: Path) -> FeatureStore:
    """The features of a clip set."""
    return FeatureStore(folder, "of a test", Still(), CLIPS, 4)


def write_features(folder: Path) -> None:
    """Extract them, whole."""
    store, clips = feature_store(folder), np.random.default_rng(0).integers(0, 255, (CLIPS, 4, 8, 8, 3))
    store.begin()
    store.write(list(range(CLIPS)), clips.astype(np.uint8))
    store.finish()


def use_features(folder: Path) -> str | None:
    """Read them as an evaluation does."""
    store = feature_store(folder)
    return hashlib.sha256(store.read().values.tobytes()).hexdigest() if store.is_whole() else None


def write_a_run(run: Path) -> None:
    """A run of stage 2 as training leaves it."""
    write_run(run, steps=(5,))
    write_manifest(run, [run / "pipeline.json", *model_files(run / "vae")])


def use_run(run: Path) -> str | None:
    """Load it as sampling does; that training finds the same damage is `fuzz-checkpoint`'s to show."""
    found = use_model(run)
    return found if latest_checkpoint(run / "checkpoints", lambda sentence: None) else None


def use_model(folder: Path) -> str:
    """Load a model with its scheduler and its clip."""
    found = find_model(folder)
    pipeline = MedSoraPipeline.from_folder(found)
    clip = {key: pipeline.config[key] for key in ("frames", "size", "fps", "image_latents", "labels")}
    parts = [weights_digest(pipeline.denoiser), weights_digest(pipeline.vae), saved_sampler(found), clip]
    return json.dumps(parts, sort_keys=True, default=str)


def write_a_vae(folder: Path) -> None:
    """What stage 1 ends with."""
    tiny_vae().save_pretrained(folder / "final")
    write_manifest(folder / "final", model_files(folder / "final"))


def use_vae(folder: Path) -> str:
    """Load it as stage 2 does."""
    return weights_digest(load_vae(find_vae(folder)))


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], str | None]]] = {
    "cache": (write_cache, use_cache),
    "features": (write_features, use_features),
    "model": (lambda folder: tiny_pipeline().save_pretrained(folder), use_model),
    "run": (write_a_run, use_run),
    "vae": (write_a_vae, use_vae),
}
