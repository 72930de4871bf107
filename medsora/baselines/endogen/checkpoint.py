"""Published checkpoints of EndoGen, and LlamaGen's that it starts from: a file -> `EndoGen`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from medsora.baselines.endogen.model import EndoGen
from medsora.config.presets import ENDOGEN_PRESETS
from medsora.errors import BadInput
from medsora.flow_prior.weights import read_weights

PUBLISHED_NAMES = {
    "blocks.": "layers.",
    ".qkv.": ".attention.wqkv.",
    ".projection.": ".attention.wo.",
    ".gate.": ".feed_forward.w1.",
    ".narrow.": ".feed_forward.w2.",
    ".widen.": ".feed_forward.w3.",
    ".feed_forward_norm.": ".ffn_norm.",
    "codes.weight": "tok_embeddings.weight",
    "labels.weight": "cls_embedding.embedding_table.weight",
}
CODES, LABELS = PUBLISHED_NAMES["codes.weight"], PUBLISHED_NAMES["labels.weight"]


def read_published(path: str | Path, *, rows: int = 32, cols: int = 32) -> EndoGen:
    """Load a published file strictly: its `model`; the optimiser and the step beside it are left alone.

    Only tensors, plain containers and `argparse.Namespace` are read. `rows` and `cols`, the codes of the
    grid's picture, are not in the weights.

    Raises:
        BadInput: if the file is damaged or holds something else; the sentence names the first difference.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = read_weights(path)
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    state = found.get("model", found)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInput(f"{path} holds no state dict of tensors (model); give a published checkpoint.")
    return from_published(dict(state), rows=rows, cols=cols, source=str(path))


def from_published(state: dict[str, Tensor], *, rows: int = 32, cols: int = 32, source: str) -> EndoGen:
    """Make a model of published weights; `source` names them in errors.

    Raises:
        BadInput: as `read_published`.
    """
    for name in (CODES, LABELS):
        if name not in state or state[name].ndim != 2:
            raise BadInput(f"{source} lacks {name} and is no checkpoint of EndoGen or LlamaGen.")
    (codes, width), classes = state[CODES].shape, len(state[LABELS]) - 1
    depth = 1 + max((int(n.split(".")[1]) for n in state if n.startswith("layers.")), default=-1)
    preset = next(
        (name for name, of in ENDOGEN_PRESETS.items() if (of["width"], of["depth"]) == (width, depth)), None
    )
    if preset is None:
        raise BadInput(f"{source} has {depth} blocks of width {width}, which is no known size of EndoGen.")
    with torch.device("meta"):
        model = EndoGen.from_preset(preset, num_codes=codes, rows=rows, cols=cols, classes=classes)
    names = {name: published_name(name) for name in model.state_dict()}
    expected = {names[name]: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise BadInput(f"{source} lacks {name}; give a whole checkpoint of EndoGen or LlamaGen.")
        if name not in expected:
            raise BadInput(f"{source} holds {name}, which neither EndoGen nor LlamaGen has.")
        if tuple(state[name].shape) != expected[name]:
            raise BadInput(f"{source}: {name} is {tuple(state[name].shape)} instead of {expected[name]}.")
    model.load_state_dict({ours: state[theirs].float() for ours, theirs in names.items()}, assign=True)
    return model.eval()


def published_name(name: str) -> str:
    """Return what published checkpoints call a parameter of `EndoGen`."""
    for ours, theirs in PUBLISHED_NAMES.items():
        name = name.replace(ours, theirs)
    return name
