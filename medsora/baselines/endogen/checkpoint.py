"""Published checkpoints of EndoGen, and LlamaGen's that it starts from: a file -> `EndoGen`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from medsora.baselines.endogen.model import EndoGen
from medsora.baselines.published import load_state, read_checkpoint
from medsora.config.presets import ENDOGEN_PRESETS
from medsora.errors import BadInput

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
    state, _ = read_checkpoint(path, "model")
    return from_published(state, rows=rows, cols=cols, source=str(path))


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
    load_state(model, state, PUBLISHED_NAMES, source=source, systems="EndoGen or LlamaGen")
    return model.eval()
