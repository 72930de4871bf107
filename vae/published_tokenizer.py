"""LlamaGen's published VQ-16 (`vq_ds16_c2i.pt`), which EndoGen uses unchanged: a file -> `VQTokenizer`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from medsora.vae.tokenizer import VQTokenizer

FILE = "LlamaGen's whole vq_ds16_c2i.pt"
COUNTER = "quantize.codebook_used"  # a training counter, which is not read
# Ours -> published, applied in order to names of diffusers' VQModel.
PUBLISHED_NAMES = (
    (r"\b(?:down|up)_blocks\.", "conv_blocks."),
    (r"\bmid_block\.resnets\.0\.", "mid.0."),
    (r"\bmid_block\.attentions\.0\.", "mid.1."),
    (r"\bmid_block\.resnets\.1\.", "mid.2."),
    (r"\bresnets\.", "res."),
    (r"\battentions\.", "attn."),
    (r"\bconv_shortcut\b", "nin_shortcut"),
    (r"\b(?:(down|up)samplers\.0)\.", r"\1sample."),
    (r"\bgroup_norm\b", "norm"),
    (r"\bto_out\.0\b", "proj_out"),
    (r"\bto_([qkv])\b", r"\1"),
    (r"\bconv_norm_out\b", "norm_out"),
)


def read_published_tokenizer(path: str | Path) -> VQTokenizer:
    """Load the published file strictly; only tensors and plain containers are read.

    Raises `ValueError` for a damaged or another file, naming the first difference; `OSError` without one.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror}); correct the path") from error
    except Exception as error:  # damaged bytes make unpicklers raise anything
        raise ValueError(f"{path} is not a complete PyTorch file of tensors; copy it again") from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors (model); give {FILE}")
    with torch.device("meta"):
        tokenizer = VQTokenizer.from_preset("endogen")
    return load_published(tokenizer, dict(state), str(path))


def load_published(tokenizer: VQTokenizer, state: Mapping[str, Tensor], source: str) -> VQTokenizer:
    """Give `tokenizer` published weights; `source` names them in errors. Raises `ValueError`."""
    expected = tokenizer.base.state_dict()
    names = {name: published_name(name) for name in expected}
    known = {published: name for name, published in names.items()}
    for published in sorted(known.keys() | (state.keys() - {COUNTER})):
        if published not in state:
            raise ValueError(f"{source} lacks {published}; give {FILE}")
        if published not in known:
            raise ValueError(f"{source} holds {published}, which VQ-16 does not have; give {FILE}")
        tensor, wanted = state[published], expected[known[published]]
        shape = tensor.shape[:2] if _is_projection(published) and tensor.shape[2:] == (1, 1) else tensor.shape
        if shape != wanted.shape:
            raise ValueError(
                f"{source}: {published} is {tuple(tensor.shape)}, which does not fit "
                f"{tuple(wanted.shape)}; give {FILE}"
            )
    ours = {name: state[published].float().reshape(expected[name].shape) for name, published in names.items()}
    tokenizer.base.load_state_dict(ours, strict=True, assign=True)
    tokenizer.normalize_codebook()
    return tokenizer.eval()


def published_name(name: str) -> str:
    """Return what the published file calls an entry of diffusers' VQModel."""
    for ours, theirs in PUBLISHED_NAMES:
        name = re.sub(ours, theirs, name)
    return name


def _is_projection(published: str) -> bool:
    """Return whether it is a 1x1 convolution of an attention, which diffusers holds as a linear layer."""
    return re.search(r"\.(?:attn\.\d+|mid\.1)\.(?:q|k|v|proj_out)\.weight$", published) is not None
