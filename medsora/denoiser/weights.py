"""Reading a denoiser's weights from disk, strictly and with one sentence when they are another model's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from medsora.errors import BadInput

log = logging.getLogger(__name__)

LABEL_ROWS = "labels.weight"  # one row for each label, and a last one for no label


def read_matching_weights(
    path: Path, model: nn.Module, labels: tuple[Sequence[str], Sequence[str]] | None = None
) -> dict[str, Tensor]:
    """The tensors of a safetensors file (or of the one in a folder), if they are exactly `model`'s.

    `labels`, the names that the file was trained with and those of the model, matches the rows of the label
    embedding by name; the row of a label that the file lacks is, with a warning, the file's row for no label.

    Raises:
        FileNotFoundError: if there is no such file.
        BadInput: if the file is damaged, or its keys or sizes differ from the model's.
    """
    file = path / SAFETENSORS_WEIGHTS_NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}; give a .safetensors file or a folder with one")
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    presets = getattr(model, "presets", {})
    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
            if labels is None or LABEL_ROWS not in shapes.keys() & expected.keys():
                _require_same(file, expected, shapes, presets)
                return {key: tensors.get_tensor(key) for key in expected}
            theirs, ours = labels
            width = expected[LABEL_ROWS][1]
            _require_same(file, expected | {LABEL_ROWS: (len(theirs) + 1, width)}, shapes, presets)
            values = {key: tensors.get_tensor(key) for key in expected}
            if new := [name for name in ours if name not in theirs]:
                words = "%s was trained with the labels %s; each of %s starts from its row for no label."
                log.warning(words, path, ", ".join(theirs), ", ".join(new))
            order = [theirs.index(name) if name in theirs else len(theirs) for name in ours]
            values[LABEL_ROWS] = values[LABEL_ROWS][torch.tensor([*order, len(theirs)])]
            return values
    except SafetensorError as error:
        raise BadInput(f"{file} is not a complete safetensors file ({error}); take another copy") from error


def _require_same(
    file: Path, expected: dict[str, tuple], shapes: dict[str, tuple], presets: dict[str, dict[str, Any]]
) -> None:
    if shapes != expected:
        raise BadInput(f"{file} {_difference(expected, shapes, presets)}")


def _difference(
    expected: dict[str, tuple], shapes: dict[str, tuple], presets: dict[str, dict[str, Any]]
) -> str:
    """Difference of another model's weights, as the rest of a sentence."""
    depths = _depth(expected), _depth(shapes)
    if depths[0] != depths[1]:
        ours, theirs = (f"{depth} blocks{_preset_of_depth(depth, presets)}" for depth in depths)
        return f"holds {theirs}, but this model has {ours}: take the same preset for both"
    for key in sorted(expected.keys() | shapes.keys()):
        if key not in shapes:
            return f"lacks {key}, which this model needs: take weights saved from the same settings"
        if key not in expected:
            return f"holds {key}, which this model does not have: take weights saved from the same settings"
        if expected[key] != shapes[key]:
            return (
                f"holds {key} of size {shapes[key]}, but this model needs {expected[key]}: "
                "take weights saved from the same settings"
            )
    raise AssertionError("called for weights that do not differ")


def _depth(keys: dict[str, tuple]) -> int:
    return len({key.split(".")[1] for key in keys if key.startswith("blocks.")})


def _preset_of_depth(depth: int, presets: dict[str, dict[str, Any]]) -> str:
    names = [name for name, settings in presets.items() if settings["depth"] == depth]
    return f" (preset {names[0]})" if names else ""
