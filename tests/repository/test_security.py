"""Input from strangers: weights that carry code, headers that lie, names that lead elsewhere or are markup.

SECURITY.md says what is trusted and what is not.
"""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file

from medsora import MedSora
from medsora.config.load import OUTPUTS, load_config
from medsora.config.schema import STAGE_1
from medsora.data.checking.check import check_folder
from medsora.errors import BadInput, one_line
from medsora.evaluation.metrics.weight_files import cached_file
from medsora.flow_prior import RaftEstimator
from medsora.flow_prior.weights import read_weights
from medsora.html_report import Section, write_report
from medsora.saved.checkpoint import latest_checkpoint, save_checkpoint
from medsora.saved.optimizer import read_tensors
from medsora.training.accelerator import make_accelerator
from medsora.training.run.folder import RunFolder
from medsora.training.run.trackers import start_trackers
from medsora.vae import FrequencyCompensatedVAE
from medsora.vae.perceptual import PerceptualLoss
from tests.support import tiny_training as tiny
from tests.support.paths import ROOT
from tests.support.video_files import encode, moving_frames

PACKAGES = ("medsora", "vae", "flow_prior", "kernels")
SOURCES = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]


# Calls that read a pickle unless they are told not to; timm's reads tensors only.
LOADERS = re.compile(r"\.(from_pretrained|from_single_file|get_state_dict|load_state_dict_from_url)$")
# MedSora's own classes, which refuse pickles themselves, and schedulers, which are JSON.
OWN_LOADERS = re.compile(
    r"^(FrequencyCompensatedVAE|PerFrameVAE|VQTokenizer|MedSoraPipeline|SCHEDULERS\[name\])\."
)


class Payload:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "code ran")


# Code in weights


@pytest.fixture(params=["zip", "legacy", "bare pickle"])
def malicious(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A weight file and the file that its payload would write."""
    weights, proof = tmp_path / "weights.pt", tmp_path / "proof.txt"
    content = {"conv.weight": torch.zeros(2), "extra": Payload(proof)}
    if request.param == "bare pickle":
        weights.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, weights, _use_new_zipfile_serialization=request.param == "zip")
    return weights, proof


def test_the_payload_is_a_real_one(malicious: tuple[Path, Path]) -> None:
    weights, proof = malicious
    if weights.read_bytes().startswith(b"PK"):
        torch.load(weights, weights_only=False)
    else:
        with suppress(pickle.UnpicklingError, AttributeError, RuntimeError, TypeError):  # after it ran
            torch.load(weights, weights_only=False)
    assert proof.exists()


def test_code_in_weights_never_runs(malicious: tuple[Path, Path]) -> None:
    weights, proof = malicious
    with pytest.raises(ValueError, match="tensors only"):
        read_weights(weights)
    with pytest.raises((ValueError, OSError), match=str(weights)):
        PerceptualLoss("alex", trunk=weights)
    weights.rename(renamed := weights.with_suffix(".safetensors"))
    with pytest.raises(ValueError):
        read_weights(renamed)
    with pytest.raises(BadInput):
        read_tensors(renamed)
    assert not proof.exists()


def test_code_in_a_cached_download_never_runs(
    malicious: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that lies in PyTorch's cache already is not hashed again."""
    weights, proof = malicious
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    for build, name in ((lambda: RaftEstimator("raft_small"), "raft_small"), (PerceptualLoss, "lpips")):
        shutil.copy(weights, cached_file(name))
        with pytest.raises((ValueError, OSError)):
            build()
    assert not proof.exists()


@pytest.mark.parametrize("kind", ["base", "compensated VAE", "denoiser"])
def test_a_folder_whose_weights_are_a_pickle_is_refused(kind: str, tmp_path: Path) -> None:
    """The very weights that would fit, as diffusers' `.bin`: refused, whatever is in them."""
    folder = tmp_path / "model"
    base = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
    small = {"in_channels": 4, "width": 32, "depth": 1, "heads": 2, "d_state": 8, "headdim": 16}
    make, load = {
        "base": (lambda: AutoencoderKLCogVideoX(**base), FrequencyCompensatedVAE.from_base),
        "compensated VAE": (lambda: FrequencyCompensatedVAE(base), FrequencyCompensatedVAE.from_pretrained),
        "denoiser": (lambda: MedSora(**small), MedSora.from_pretrained),
    }[kind]
    make().save_pretrained(folder)
    load(folder)
    for file in folder.glob("*.safetensors"):
        torch.save(load_file(file), file.with_name("diffusion_pytorch_model.bin"))
        file.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load(folder)


# Headers that lie


def lying(header: dict | bytes, length: int | None = None) -> bytes:
    """Return a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * 64


@pytest.mark.parametrize(
    "content",
    [
        lying(b"{}", 2**62),
        lying({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}}),
        lying({"w": {"dtype": "F32", "shape": [16], "data_offsets": [0, 2**50]}}),
        lying({"w": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]}}),
        lying({"w": {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]}}),
        lying({"w": {"dtype": "code", "shape": [16], "data_offsets": [0, 64]}}),
        lying(b"[" * 10_000),
        b"",
    ],
    ids=["length", "shape", "offset", "backwards", "negative", "type", "nested", "empty"],
)
def test_a_safetensors_file_whose_header_lies(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read as safetensors"):
        read_tensors(path)
    with pytest.raises(ValueError):
        read_weights(path)


def test_a_manifest_that_points_outside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = save_checkpoint(run, 1, lambda folder: None, {"w": torch.zeros(1)}, {}, keep=1)
    outside = tmp_path / "outside"
    outside.write_text("secret")
    for name in ("../../outside", str(outside)):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name] = {"size": 6, "sha256": ""}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BadInput, match="names a file outside the folder"):
            latest_checkpoint(run, pytest.fail)
    assert outside.read_text() == "secret"


# Names that lead elsewhere


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: {dir: ../elsewhere}", "writes only below the folder"),
        ("run: {dir: /somewhere}", "writes only below the folder"),
        ("run: {dir: runs/../../elsewhere}", "writes only below the folder"),
        ("cache: {dir: /somewhere}", "writes only below the folder"),
        ("phantom: {folder: ../elsewhere}", "writes only below the folder"),
        ("run: {name: ../elsewhere}", "one folder's name"),
        ("run: {name: /somewhere}", "one folder's name"),
        ("run: {name: ..}", "one folder's name"),
        ('run: {name: ""}', "one folder's name"),
        ("tracking: {project: /somewhere}", "one folder's name"),
        ("tracking: {project: ../../elsewhere}", "one folder's name"),
        ("tracking: {project: ..}", "one folder's name"),
        ('tracking: {project: ""}', "one folder's name"),
        ('run: {name: "a\\nb"}', "plain text"),
        ("run: {name: '${oc.env:HOME}'}", "plain text"),
        ("run: {name: !!python/object/apply:os.system ['true']}", "cannot be read as YAML"),
        ("run: &a {name: *a}", "nested more than 20 deep"),
        ("a: &a [x, x]", "there is no key 'a'"),
    ],
)
def test_configs_from_strangers(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(BadInput, match=words):
        load_config(tmp_path / "config.yaml")


def test_a_config_that_unfolds_to_a_billion_values(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(BadInput, match="more than 100000 values"):
        load_config(tmp_path / "config.yaml")


def test_the_command_line_may_write_anywhere(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {name: mine}")
    config = load_config(tmp_path / "config.yaml", [f"run.dir={tmp_path}"])
    assert config.run_dir == tmp_path / "mine"


@pytest.mark.parametrize("key", OUTPUTS)
def test_the_command_line_replaces_a_place_that_the_file_may_not_name(key: str, tmp_path: Path) -> None:
    """As the refusal of that place says."""
    section, name = key.split(".")
    (tmp_path / "config.yaml").write_text(f"{section}: {{{name}: {tmp_path}}}")
    with pytest.raises(BadInput, match=f"set {key}={tmp_path} on the command line"):
        load_config(tmp_path / "config.yaml")
    config = load_config(tmp_path / "config.yaml", [f"{key}={tmp_path}"])
    assert getattr(getattr(config, section), name) == str(tmp_path)


def test_trackers_write_into_the_run_only(tmp_path: Path) -> None:
    config = tiny.tiny_config(tmp_path, tmp_path / "clips", tracking__trackers=["tensorboard"])
    accelerator = make_accelerator(config, STAGE_1)
    before = set(tmp_path.rglob("*"))
    run = RunFolder(config.vae_dir, config, STAGE_1, accelerator)
    start_trackers(accelerator, run, config)
    accelerator.end_training()
    written = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert any("tfevents" in path.name for path in written)
    assert all(config.vae_dir in path.parents for path in written)


# Names that are markup, or worse


def test_names_are_escaped_in_the_report(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>.mp4"
    section = Section(f"of {name}", text=[name], table=[(name, "<script>alert(2)</script>")])
    write_report(tmp_path / "report.html", name, name, [section])
    page = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;.mp4" in page


def test_names_cannot_forge_lines_of_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    encode(folder / "good.mp4", moving_frames(12))
    forged = "evil\nerror: all is lost\x1b[2J.mp4"
    (folder / forged).write_text("no video")
    (folder / b"not-\xff-text.mp4".decode("utf-8", "surrogateescape")).write_text("no video")
    report = check_folder(folder, frames=9, interval=1, cache_path=tmp_path / "check.json")
    complaints = report.complaints()
    assert len(complaints) == 2
    assert all(line.isprintable() for line in complaints)
    "\n".join(complaints).encode()  # whatever a terminal or a file's encoding is
    assert one_line(forged) == "evil\\nerror: all is lost\\x1b[2J.mp4"


# What the code itself may not do


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Return every call in a file with the dotted name of what is called."""
    return [
        (ast.unparse(node.func), node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_no_code_is_ever_made_from_data() -> None:
    forbidden = ("eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load")
    assert SOURCES
    for path in SOURCES:
        for name, call in calls(path):
            assert name not in forbidden, f"{path}:{call.lineno} calls {name}"
            assert not name.startswith(("pickle.", "marshal.", "shelve.", "joblib.")), f"{path}:{call.lineno}"
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert options.get("shell") != "True", f"{path}:{call.lineno} gives a string to a shell"
            assert options.get("trust_remote_code") != "True", f"{path}:{call.lineno} runs downloaded code"
            loads = [ast.unparse(argument) for argument in (call.func, *call.args)]  # partial(X.load, ...)
            if any(LOADERS.search(each) and not OWN_LOADERS.search(each) for each in loads):
                safe = options.get("use_safetensors") == "True" or options.get("weights_only") == "True"
                assert safe, f"{path}:{call.lineno} may read a pickle"
            if name == "torch.load":
                assert options.get("weights_only") == "True", f"{path}:{call.lineno} may unpickle code"
            if name in ("np.load", "numpy.load"):
                assert options.get("allow_pickle", "False") == "False", f"{path}:{call.lineno} may unpickle"
