"""Model folders as a stranger may make them: settings, schedulers, files, weights, manifests of no model.

They are a saved model or a run of MedSora, Endora and EndoGen, and what a config names: bases (`vae.base`),
VAEs and tokenizers (`vae.path`), an encoder of flow (`dino.model`).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX

from medsora.config.load import config_from_dict
from medsora.config.schema import Config
from medsora.errors import BadInput, NonFiniteVideo, bad_input_from_errors
from medsora.flow_prior.dino import DinoEncoder, build_network
from medsora.flow_prior.weights import save_weights
from medsora.runtime.digests import sha256
from medsora.runtime.files import write_json
from medsora.sampler import SCHEDULERS
from medsora.sampling.run import pipeline_class
from medsora.sampling.tokens import EndoGenPipeline
from medsora.saved.find import MEDSORA, find_model, trained_tokenizer, trained_vae
from medsora.saved.manifest import MANIFEST
from medsora.saved.pipeline import saved_sampler
from medsora.training.stage1.build import build_vae
from medsora.vae import PerFrameVAE, VQTokenizer
from tests.faults.attacks.flips import write_a_run, write_endogen, write_endora
from tests.faults.guarded import no_sentence_of_ours, report, try_all
from tests.faults.mutate import ODD_VALUES, mutate_tree, places
from tests.support.endogen.tiny_tokenizer import SIZES, write_tokenizer
from tests.support.tiny_pipeline import VAE, tiny_pipeline, tiny_vae

SECONDS = 10.0
LARGE = (10**5, 10**6, 10**9, 2**20, 2**31, 1e9, 10**400, float("inf"), -1)
WORDS = ("squaredcos_cap_v2", "scaled_linear", "sigmoid", "exp", "trailing", "linspace", "v_prediction", "x")
SMALL = 2**16  # pixels of a clip that is sampled, too
HOLE_BYTES = 2**34  # of a file that takes no room
ATTACKED_MANIFESTS = 0.3  # of those there are
ENCODER = {"embed_dim": 16, "depth": 2, "num_heads": 2}
FRAME_VAE = {
    "block_out_channels": [8, 8, 8, 8],
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
SAMPLED, BUILT = "past the schema, sampled", "past the schema, all were built"
Change = Callable[[Path, random.Random], None]


def fuzz_models(inputs: int, seed: int) -> int:
    """Try `inputs` hostile model folders; print what came of them; return the exit status."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="medsora-fuzz-") as folder:
        write_originals(Path(folder))
        tally = try_all(inputs, lambda number: attempt(number, seed, Path(folder)), seconds=SECONDS)
    return report(tally, "past", "model folders")


def write_originals(folder: Path) -> None:
    """Write one folder of each kind."""
    tiny_pipeline().save_pretrained(folder / "saved")
    write_a_run(folder / "run")
    write_endora(folder / "endora")
    write_endogen(folder / "endogen-run")
    EndoGenPipeline.from_folder(find_model(folder / "endogen-run")).save_pretrained(folder / "endogen")
    frame = AutoencoderKL(**FRAME_VAE)
    frame.save_pretrained(folder / "vaes" / "frame" / "vae")
    PerFrameVAE.from_base(FRAME_VAE).save_pretrained(folder / "vaes" / "per-frame")
    tiny_vae().save_pretrained(folder / "vaes" / "causal")
    write_tokenizer(folder / "vaes" / "tokenizer")
    encoder = {"architecture": "vit_tiny_patch16_224", "model_args": ENCODER}
    write_json(folder / "encoder" / "encoder.json", encoder)
    save_weights(
        build_network(str(folder / "encoder" / "encoder.json")).state_dict(), folder / "encoder" / WEIGHTS
    )
    for form in ("json", "folder/vae", "vq"):
        (folder / "base" / form).mkdir(parents=True)
    tiny_vae().save_base(*described(folder / "base" / "json").values())
    AutoencoderKLCogVideoX(**VAE).save_pretrained(folder / "base" / "folder" / "vae")
    VQTokenizer.from_preset("phantom", **SIZES).save_base(*described(folder / "base" / "vq").values())


def attempt(number: int, seed: int, folder: Path) -> str:
    """Load the hostile folder `number` and sample from it if it is small; return how far that came."""
    draw, kind = random.Random(f"{seed}/{number}"), sorted(KINDS)[number % len(KINDS)]
    hostile = folder / f"hostile-{os.getpid()}"
    shutil.rmtree(hostile, ignore_errors=True)
    shutil.copytree(folder / kind, hostile)
    if number < len(KINDS):  # first of all what nothing was done to
        unchanged = KINDS[kind](hostile)
        assert unchanged in (SAMPLED, BUILT), f"{kind}: {unchanged}"
        return unchanged
    for _ in range(draw.choice((1, 1, 2))):
        draw.choice(CHANGES)(hostile, draw)
    for manifest in sorted(hostile.rglob(MANIFEST)):
        agree(manifest)
        if draw.random() < ATTACKED_MANIFESTS:
            change_manifest(manifest, draw)
    return KINDS[kind](hostile)


def use_model(hostile: Path) -> str:
    """Load a saved model or a run as sampling does."""
    with only_documented():
        found = find_model(hostile)
        saved_sampler(found)
        pipeline = pipeline_class(found.kind).from_folder(found)
    pipeline.set_progress_bar_config(disable=True)
    height, width = pipeline.config.size
    if pipeline.config.frames * height * width > SMALL:
        return "past the schema, loaded"
    refused = "past the schema, loaded, refused to sample"
    try:
        with only_documented():
            pipeline(seeds=[0], **({"num_inference_steps": 2} if found.kind == MEDSORA else {}))
    except BadInput as error:
        error.how_far = refused
        raise
    except NonFiniteVideo:
        return refused
    return SAMPLED


def use_base(hostile: Path) -> str:
    """Build what both stages start from, of JSON configs with weights and of a diffusers folder."""
    started = (
        (build_vae, {"compensation_kind": "causal"} | described(hostile / "json")),
        (trained_vae, {"base": str(hostile / "folder"), "path": "base"}),
        (trained_tokenizer, {"kind": "vq", "path": "base"} | described(hostile / "vq")),
    )
    return built([(build, {"vae": vae}) for build, vae in started])


def use_vaes(hostile: Path) -> str:
    """Load the VAEs that stage 2 may start from, and a tokenizer, and pass frames through them."""

    def passed(load: Callable[[Config], Any]) -> Callable[[Config], None]:
        def load_and_pass(config: Config) -> None:
            load(config).reconstruct(torch.zeros(1, 1, 3, 32, 32))

        return load_and_pass

    return built(
        [
            (passed(trained_vae), {"vae": {"kind": "per-frame", "path": str(hostile / "frame")}}),
            (passed(trained_vae), {"vae": {"kind": "per-frame", "path": str(hostile / "per-frame")}}),
            (passed(trained_vae), {"vae": {"path": str(hostile / "causal")}}),
            (passed(trained_tokenizer), {"vae": {"kind": "vq", "path": str(hostile / "tokenizer")}}),
        ]
    )


def use_encoder(hostile: Path) -> str:
    """Build the flow prior's encoder of a JSON file and weights."""
    names = {"model": str(hostile / "encoder.json"), "weights": str(hostile / WEIGHTS)}

    def build(config: Config) -> None:
        DinoEncoder(config.dino.model, config.dino.weights)(torch.zeros(1, 3, 32, 32), [0])

    return built([(build, {"dino": names})])


def built(started: Sequence[tuple[Callable[[Config], Any], dict[str, Any]]]) -> str:
    """Call each with its config as the commands do; return how far one came if one did."""
    refusals = []
    for build, values in started:
        try:
            with only_documented(), bad_input_from_errors():
                build(config_from_dict(values, "a test"))
        except BadInput as error:
            refusals.append(error)
    strange = [error for error in refusals if no_sentence_of_ours(error)]
    if strange or len(refusals) == len(started):
        raise (strange or refusals)[0]
    return "past the schema, some were built" if refusals else BUILT


def described(folder: Path) -> dict[str, str]:
    """Return a base of JSON settings and weights as a config names them."""
    return {"base": str(folder / "base.json"), "weights": str(folder / WEIGHTS)}


@contextmanager
def only_documented() -> Iterator[None]:
    """Let `BadInput` pass; what else ends a command in a traceback is no answer, a `ValueError` neither."""
    try:
        yield
    except BadInput:
        raise
    except (ValueError, OSError) as error:
        raise AssertionError("no BadInput") from error


def is_small(path: Path) -> bool:
    """Whether it is a plain file that can be read at once: no pipe, no device, no hole."""
    return path.is_file() and path.stat().st_size < 2**26


def parts(folder: Path, pattern: str) -> list[Path]:
    """Return what the folder is read by, of one kind, its manifests aside."""
    return sorted(path for path in folder.rglob(pattern) if path.name != MANIFEST)


def change_values(folder: Path, draw: random.Random) -> None:
    """Put other values, types and structures into a JSON file, or a number that is far too large."""
    path = draw.choice(parts(folder, "*.json"))
    values = read(path)
    if values is None:
        return
    if draw.random() < 0.5:
        values = mutate_tree(values, draw)
    elif found := places(values):
        container, key = draw.choice(found)
        container[key] = draw.choice((*LARGE, *WORDS, *ODD_VALUES))
    path.write_text(json.dumps(values))


def change_scheduler(folder: Path, draw: random.Random) -> None:
    """Name another scheduler, with settings of its own that are odd, a run given one as well."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.parent.is_dir():
        return
    kind = SCHEDULERS[draw.choice(sorted(SCHEDULERS))]
    settings = dict(kind().config)
    for key in draw.sample(sorted(settings), k=draw.randint(1, 3)):
        settings[key] = draw.choice((*LARGE, *WORDS, True, None, [], 0.5, 0, 3, [0.5] * 1000))
    path.write_text(json.dumps({**settings, "_class_name": kind.__name__}))


def change_file(folder: Path, draw: random.Random) -> None:
    """Put something else in a file's place."""
    replace(draw.choice(parts(folder, "*.json") + parts(folder, "*.safetensors")), draw)


def replace(path: Path, draw: random.Random) -> None:
    """Put a pipe, a folder, a device, nothing, a deep or a large text, or none there."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    kind = draw.randrange(8)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(draw.choice(("/dev/zero", "/dev/tty", path.name)))
    elif kind == 3:
        path.write_text("[" * 100_000 + "]" * 100_000)
    elif kind == 4:
        path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    elif kind == 5:
        with path.open("wb") as file:
            file.truncate(HOLE_BYTES)
    elif kind == 6:
        path.write_bytes(draw.choice((b"", b"\0", b"\xff\xfe{}", b"1" * 5000, b"[]", b"null", b'"x"')))


def agree(manifest: Path) -> None:
    """Let a manifest list what lies there now, as an attacker would."""
    values = json.loads(manifest.read_bytes())
    for name, entry in values["files"].items():
        if is_small(path := manifest.parent / name):
            entry |= {"size": path.stat().st_size, "sha256": sha256(path)}
    manifest.write_text(json.dumps(values))


def change_manifest(manifest: Path, draw: random.Random) -> None:
    """Let a manifest list what nobody has written, or put something else in its place."""
    values = json.loads(manifest.read_bytes())
    files = values["files"]
    of_checkpoint = (
        "state.json" in files
    )  # compared whole with its manifest, which takes as long as it is large
    name, kind = draw.choice(sorted(files)), draw.randrange(5 if of_checkpoint else 6)
    if kind == 0:
        replace(manifest, draw)
        return
    if kind == 1:
        values = mutate_tree(values, draw)
    elif kind == 2:
        files[name][draw.choice(("size", "sha256"))] = draw.choice((*LARGE, *WORDS, *ODD_VALUES))
    elif kind == 3:
        other = ("../" * 9 + "etc/passwd", "/etc/passwd", "a\nb", "\0", "\ud800", "x" * 5000, "", ".", "..")
        files[draw.choice(other)] = files[name]
    elif kind == 4:
        files |= {"./" * (k % 1000) + "/" * (k // 1000 + 1) + name: files[name] for k in range(5000)}
    else:
        hole = manifest.parent / "hole.safetensors"
        with hole.open("wb") as file:
            file.truncate(HOLE_BYTES)
        files[hole.name] = {"size": HOLE_BYTES, "sha256": "0" * 64}
    manifest.write_text(json.dumps(values))


def change_weights(folder: Path, draw: random.Random) -> None:
    """Give weights another header: names, shapes, types and lengths, most of them consistent."""
    path = draw.choice(parts(folder, WEIGHTS))
    if not is_small(path):
        return
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    try:
        header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    except ValueError:
        return  # an earlier change has left none
    if not header.keys() - {"__metadata__"}:
        return
    kind = draw.randrange(7)
    if kind == 0:
        header = {
            f"blocks.{k}.x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for k in range(300_000)
        }
        body = b""
    elif kind == 1:
        header[draw.choice(sorted(header))] = draw.choice(ODD_VALUES)
    elif kind == 2:
        tensor = header[draw.choice(sorted(header.keys() - {"__metadata__"}))]
        tensor["shape"] = draw.choice(([2**40, 2**20], [0, 2**62], [-1], [], [1] * 5000, "x"))
    elif kind == 3:
        tensor = header[draw.choice(sorted(header.keys() - {"__metadata__"}))]
        tensor["dtype"] = draw.choice(("F64", "I64", "BOOL", "F8_E4M3", "C64", "x\ny", 5))
    elif kind == 4:
        header["a\nb\x07"] = header.pop(draw.choice(sorted(header)))
    elif kind == 5:
        index = {"weight_map": {name: "../../../../etc/passwd" for name in header}, "metadata": {}}
        path.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
    else:
        header, body = {}, b""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", draw.choice((len(text), len(text), 2**63, 2**27))) + text + body)


def read(path: Path) -> Any:
    """Return what a JSON file holds, or None where an earlier change has left none."""
    try:
        return json.loads(path.read_bytes()) if is_small(path) else None
    except (ValueError, RecursionError):
        return None


KINDS: dict[str, Callable[[Path], str]] = {
    "base": use_base,
    "encoder": use_encoder,
    "endogen": use_model,
    "endogen-run": use_model,
    "endora": use_model,
    "run": use_model,
    "saved": use_model,
    "vaes": use_vaes,
}
CHANGES: tuple[Change, ...] = (change_values, change_values, change_scheduler, change_file, change_weights)
