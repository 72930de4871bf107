"""Mutated checkpoints against everything that loads one: manifest, state, weights, average, optimiser."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import tempfile
from pathlib import Path

import torch

from medsora.denoiser import MedSora
from medsora.errors import BadInput
from medsora.runtime.digests import sha256, weights_digest
from medsora.runtime.files import write_json
from medsora.sampling.pipeline import MedSoraPipeline
from medsora.saved.checkpoint import latest_checkpoint, save_checkpoint
from medsora.saved.find import find_in_run
from medsora.saved.manifest import checkpoint_problem
from medsora.saved.optimizer import optimizer_tensors, restore_optimizer
from medsora.training.stage2.ema import Ema
from medsora.vae import FrequencyCompensatedVAE
from tests.faults.guarded import report, try_all
from tests.faults.mutate import mutate_bytes, mutate_tree
from tests.support import tiny_training as tiny

SETTINGS = {"in_channels": 4, "width": 16, "depth": 1, "heads": 2, "d_state": 8, "headdim": 8}
SAMPLED = 0.1  # of the inputs are also loaded as sampling does, which builds models from their config


def fuzz_checkpoint(inputs: int, seed: int) -> int:
    """Try `inputs` mutated checkpoints; print what came of them; return the exit status."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="medsora-fuzz-") as folder:
        run = Path(folder) / "original"
        write_run(run)
        tally = try_all(inputs, lambda number: attempt(number, seed, run, Path(folder)))
    return report(tally, "past", "checkpoints")


def build() -> tuple[MedSora, torch.optim.Optimizer, list[str], Ema]:
    """Return what a checkpoint is loaded into."""
    model = MedSora(**SETTINGS)
    optimizer = torch.optim.AdamW(model.parameters())
    return model, optimizer, [name for name, _ in model.named_parameters()], Ema(model, 0.9)


def write_run(run: Path) -> None:
    """Write a run folder with one checkpoint."""
    model, optimizer, names, ema = build()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    def write_models(folder: Path) -> None:
        model.save_pretrained(folder / "denoiser")
        ema.save(folder / "ema")

    vae = FrequencyCompensatedVAE.from_pretrained(tiny.write_vae(run / "vae"))
    state = {"processes": 1, "scaler": None, "ema_updates": 1, "vae": weights_digest(vae)}
    save_checkpoint(run / "checkpoints", 1, write_models, optimizer_tensors(optimizer, names), state, keep=1)
    write_json(run / "pipeline.json", {"frames": 16, "size": [32, 32], "fps": 8, "image_latents": 0})


def attempt(number: int, seed: int, original: Path, folder: Path) -> str:
    """Load the mutated checkpoint `number`; return how far that came."""
    draw = random.Random(f"{seed}/{number}")
    run = folder / f"mutated-{os.getpid()}"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(original, run)
    checkpoint = run / "checkpoints" / "step-0000001"
    victim = draw.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file()))
    mutate_file(victim, draw)
    if draw.random() < 0.8 and victim.name != "manifest.json":
        renew_manifest(checkpoint)
    how_far = "past the manifest" if checkpoint_problem(checkpoint) is None else "refused by the manifest"
    try:
        load(run, sampled=draw.random() < SAMPLED)
    except (ValueError, OSError) as error:
        error.how_far = f"{how_far}, refused" if how_far.startswith("past") else how_far
        raise
    return f"{how_far}, loaded" if how_far.startswith("past") else how_far


def mutate_file(path: Path, draw: random.Random) -> None:
    """Mutate a JSON file's values, a safetensors file's header, or any file's bytes."""
    content = path.read_bytes()
    if path.suffix == ".json" and draw.random() < 0.8:
        path.write_text(json.dumps(mutate_tree(json.loads(content), draw)))
    elif path.suffix == ".safetensors" and draw.random() < 0.7:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.dumps(mutate_tree(json.loads(content[8 : 8 + length]), draw)).encode()
        lying = draw.choice((len(header),) * 6 + (0, 2**62, len(header) - 1, len(header) * 2))
        path.write_bytes(struct.pack("<Q", lying) + header + content[8 + length :])
    else:
        path.write_bytes(mutate_bytes(content, draw))


def renew_manifest(checkpoint: Path) -> None:
    """Let the manifest agree with the files, as an attacker would."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        entry |= {"size": (checkpoint / name).stat().st_size, "sha256": sha256(checkpoint / name)}
    path.write_text(json.dumps(manifest))


def load(run: Path, *, sampled: bool) -> None:
    """Take a run up as training does, and as sampling does if `sampled`."""
    if sampled:
        MedSoraPipeline.from_folder(find_in_run(run))
    found = latest_checkpoint(run / "checkpoints", lambda sentence: None)
    if found is None:
        raise BadInput("no complete checkpoint is left.")
    model, optimizer, names, ema = build()
    model.load_weights(found.folder / "denoiser")
    ema.set_updates(found.value("ema_updates", int))
    ema.restore(found.folder / "ema")
    restore_optimizer(optimizer, names, found.folder / "optimizer.safetensors")
    optimizer.step()
