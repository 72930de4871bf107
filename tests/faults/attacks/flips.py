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
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from medsora.baselines.endora import Endora
from medsora.config.load import config_from_dict
from medsora.data.checking.cache import CheckCache
from medsora.data.checking.scan import Scan
from medsora.data.exact_flow import read_flow, write_flow
from medsora.data.labels import read_labels
from medsora.data.phantom.corpus import LABELS_NAME, phantom_recipe, write_phantom
from medsora.data.reading.decoding import SeekPoint
from medsora.data.reading.find import Source
from medsora.data.reading.frame_folder import read_image
from medsora.data.reading.video_io import read_frames
from medsora.downstream.study import Study
from medsora.evaluation.features.feature_store import Extractor, FeatureStore
from medsora.flow_prior.weights import read_weights, save_weights
from medsora.runtime.digests import sealed, weights_digest
from medsora.runtime.files import write_json
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.sampling.run import SamplingSettings, pipeline_class, sample_videos
from medsora.sampling.synthetic import MANIFEST, read_trained_on
from medsora.saved.checkpoint import latest_checkpoint
from medsora.saved.find import MEDSORA, PARTS, find_model, find_vae, load_vae
from medsora.saved.manifest import model_files, write_manifest
from medsora.saved.pipeline import saved_sampler
from medsora.studies.ablate import keep_settings
from medsora.training.cache.store import TensorStore
from medsora.training.open_clips import VIDEO_LIST, stored_videos
from medsora.training.run.folder import RunFolder, read_log
from medsora.training.stage1.build import build_vae
from tests.faults.guarded import report, try_all
from tests.support.endogen.tiny_tokenizer import write_run as write_endogen_run
from tests.support.tiny_pipeline import GEOMETRY, tiny_pipeline, tiny_vae, write_run

CLIPS, DONE = 6, 4
PHANTOM_FRAMES = 4
ENDORA = {"in_channels": 4, "width": 32, "depth": 2, "heads": 2}


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


def extract(store: FeatureStore, numbers: list[int]) -> None:
    """Extract the features of some of the clips."""
    clips = np.random.default_rng(0).integers(0, 255, (CLIPS, 4, 8, 8, 3)).astype(np.uint8)
    store.write(numbers, clips[numbers])


def write_features(folder: Path) -> None:
    """Extract them, whole."""
    store = feature_store(folder)
    store.begin()
    extract(store, store.left())
    store.finish()


def use_features(folder: Path) -> str | None:
    """Read them as an evaluation does."""
    store = feature_store(folder)
    return hashlib.sha256(store.read().values.tobytes()).hexdigest() if store.is_complete() else None


def write_unfinished(folder: Path) -> None:
    """What an extraction leaves that is killed after two thirds."""
    store = feature_store(folder)
    store.begin()
    extract(store, store.left()[:DONE])


def use_unfinished(folder: Path) -> str | None:
    """Resume a copy of it; what is lost is extracted again, so that the end is the same."""
    with tempfile.TemporaryDirectory() as place:
        resumed, straight = Path(place) / "resumed", Path(place) / "straight"
        shutil.copytree(folder, resumed)
        store = feature_store(resumed)
        store.begin()
        left = store.left()
        extract(store, left)
        store.finish()
        write_features(straight)
        found = use_features(resumed)
        assert found == use_features(straight), "a resumed extraction gives other features"
    return found if left == list(range(DONE, CLIPS)) else None


def write_exact_flow(folder: Path) -> None:
    """The exact flow beside a phantom's clip."""
    draw = np.random.default_rng(0)
    write_flow(folder / "clip.mkv", draw.normal(size=(3, 2, 24, 24)), draw.random((3, 24, 24)) > 0.5)


def use_exact_flow(folder: Path) -> str:
    """Read it as training does."""
    return sha256_of(read_flow(folder / "clip.mkv", 0, 3).numpy())


def write_a_run(run: Path) -> None:
    """A run of stage 2 as training leaves it."""
    write_run(run, steps=(5,))
    write_manifest(run, [run / "pipeline.json", *model_files(run / "vae")])


def write_endora(folder: Path) -> None:
    """A saved model of another denoiser."""
    MedSoraPipeline(Endora(**ENDORA), tiny_vae(), **GEOMETRY).save_pretrained(folder)


def write_endogen(run: Path) -> None:
    """A run of EndoGen."""
    write_endogen_run(run, steps=(2,))
    write_manifest(run, [run / "pipeline.json", *model_files(run / "tokenizer")])


def use_run(run: Path) -> str | None:
    """Load it as sampling does; that training finds the same damage is `fuzz-checkpoint`'s to show."""
    found = use_model(run)
    return found if latest_checkpoint(run / "checkpoints", lambda sentence: None) else None


def use_model(folder: Path) -> str:
    """Load a model with its scheduler and its clip."""
    found = find_model(folder)
    pipeline = pipeline_class(found.kind).from_folder(found)
    clip = {key: pipeline.config.get(key) for key in ("frames", "size", "fps", "image_latents", "labels")}
    parts = [weights_digest(getattr(pipeline, part)) for part in PARTS[found.kind]]
    parts += [clip, saved_sampler(found) if found.kind == MEDSORA else None]
    return json.dumps(parts, sort_keys=True, default=str)


def write_a_vae(folder: Path) -> None:
    """What stage 1 ends with."""
    tiny_vae().save_pretrained(folder / "final")
    write_manifest(folder / "final", model_files(folder / "final"))


def use_vae(folder: Path) -> str:
    """Load it as stage 2 does."""
    return weights_digest(load_vae(find_vae(folder)))


def write_base(folder: Path) -> None:
    """A base as the export of one leaves it for `vae.base` and `vae.weights`."""
    folder.mkdir(parents=True)
    config, weights = folder / "base.json", folder / "base.safetensors"
    tiny_vae().save_base(config, weights)
    save_weights(read_weights(weights), weights)


def use_base(folder: Path) -> str:
    """Start stage 1 from it."""
    base = {"base": str(folder / "base.json"), "weights": str(folder / "base.safetensors")}
    config = config_from_dict({"vae": base | {"compensation_kind": "causal"}}, "a test")
    vae = build_vae(config)
    state = sorted(vae.base_state_dict().items())
    return repr([vae.base_settings(), [(name, sha256_of(tensor.numpy())) for name, tensor in state]])


def write_phantoms(folder: Path) -> None:
    """A phantom of clips, and one of pictures with masks."""
    write_phantom(folder / "clips", 2, PHANTOM_FRAMES, 32, seed=0)
    write_phantom(folder / "masks", 1, 2, 32, seed=0, masks=True)


def use_phantoms(folder: Path) -> str:
    """Read everything in them as training does that checked them before."""
    clips, seen = folder / "clips", []
    videos = sorted(path.name for path in clips.glob("*.mkv"))
    for video in (clips / name for name in videos):
        seen += [sha256_of(read_frames(video, 1, PHANTOM_FRAMES - 1, intact=True))]
        seen += [sha256_of(read_flow(video, 0, PHANTOM_FRAMES - 1).numpy())]
    for picture in sorted((folder / "masks").rglob("*.png")):
        seen += [picture.name, sha256_of(read_image(picture))]
    labels = read_labels(LABELS_NAME, clips, videos)
    masks = read_labels(LABELS_NAME, folder / "masks", ["phantom-00000"])
    return repr([seen, labels, masks, phantom_recipe(clips), phantom_recipe(folder / "masks")])


def write_weights(folder: Path) -> None:
    """What commands leave for a config to name: an encoder's weights, a classifier's."""
    folder.mkdir(parents=True)
    save_weights(tiny_vae().base_state_dict(), folder / "weights.safetensors")


def use_weights(folder: Path) -> str:
    """Read them as a config's."""
    state = read_weights(folder / "weights.safetensors")
    return repr([(name, sha256_of(tensor.numpy())) for name, tensor in sorted(state.items())])


def write_records(folder: Path) -> None:
    """What training writes down beside its checkpoints, and a study and sampling beside their results."""
    (folder / "checkpoints" / "step-0000001").mkdir(parents=True)
    run = SimpleNamespace(path=folder, main=True, _elapsed_before_s=0, _opened=0, writing=nullcontext)
    run.accelerator = SimpleNamespace(log=lambda metrics, step: None)
    for step in (1, 2):
        RunFolder.log(run, step, {"held_out/mse": 1 / step})
    sides = {"a.mp4": ["train", 24, "0f"], "b.mp4": ["held-out", 48, "f0"]}
    write_json(folder / VIDEO_LIST, sealed({"by_folder": True, "videos": sides}))
    cache = CheckCache(folder / "check.json")
    cache.get(SCANNED)  # notes the state that is kept with the scan
    cache.put(SCANNED, Scan("mp4", "h264", 64, 48, 25.0, 240, (SeekPoint(0, 0, 7, 0),)))
    cache.save()
    with redirect_stdout(None):
        study(folder).run()
    keep_settings(folder, {"steps": 4})
    (folder / "frames").mkdir()
    write_json(folder / MANIFEST, sealed({"trained_on": {"rate": 12.5}}))


def write_samples(folder: Path) -> None:
    """What sampling leaves: videos, and the manifest that lists them."""
    run = write_run(folder.with_name("samples-run"), steps=(5,))
    sample_videos(SamplingSettings(model=str(run), out=folder, num_videos=2, steps=1))
    shutil.rmtree(run)


def use_samples(folder: Path) -> str:
    """Read them as an evaluation does."""
    videos = [folder / f"video-{number:05d}.mp4" for number in range(2)]
    return repr([(sha256_of(read_frames(video)), read_trained_on(video)) for video in videos])


def use_records(folder: Path) -> str | None:
    """Read all of them; a line of the log may be lost, a file may be scanned again."""
    log, scan = read_log(folder), CheckCache(folder / "check.json").get(SCANNED)
    done = study(folder)
    done.find_finished()
    keep_settings(folder, {"steps": 4})
    if scan is None or len(log) < 2:
        return None
    metrics = [line["held_out/mse"] for line in log]
    scores = [[run["scores"], run["replicates"]] for run in done.results.values()]
    return repr([metrics, stored_videos(folder), scan, scores, read_trained_on(folder / "frames")])


SCANNED = Source(Path(__file__), "flips.py")


def study(folder: Path) -> Study:
    """A study of one run."""
    side = SimpleNamespace(digest=lambda: "0")
    train = lambda variant, seed: {"scores": {"accuracy": 0.75}, "replicates": {"accuracy": [0.5, 1.0]}}  # noqa: E731
    fields = {"title": "t", "command": "c", "trivial": {}, "notes": (), "facts": {}, "scores": ("accuracy",)}
    sides = {"labelled": side, "test": side, "unlabelled": {}}
    return Study(**fields, **sides, folder=folder / "study", seeds=range(1), train=train)


def sha256_of(values: np.ndarray) -> str:
    """Return the digest of an array's type and content."""
    return hashlib.sha256(f"{values.dtype}{values.shape}".encode() + values.tobytes()).hexdigest()


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], str | None]]] = {
    "base": (write_base, use_base),
    "cache": (write_cache, use_cache),
    "endogen": (write_endogen, use_run),
    "endora": (write_endora, use_model),
    "features": (write_features, use_features),
    "flow": (write_exact_flow, use_exact_flow),
    "model": (lambda folder: tiny_pipeline().save_pretrained(folder), use_model),
    "phantom": (write_phantoms, use_phantoms),
    "records": (write_records, use_records),
    "run": (write_a_run, use_run),
    "samples": (write_samples, use_samples),
    "unfinished": (write_unfinished, use_unfinished),
    "vae": (write_a_vae, use_vae),
    "weights": (write_weights, use_weights),
}
