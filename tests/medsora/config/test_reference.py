"""The generated reference page and JSON schema are those of today's schema, and fit the shipped configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from medsora.config import reference
from medsora.config.load import config_to_dict
from medsora.config.reference import ROOT, generated, json_schema
from medsora.config.schema import Config

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
    "null": type(None),
}  # fmt: skip
WORDS = {
    "$schema", "title", "description", "default", "type", "enum", "properties", "additionalProperties",
    "items", "minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
}  # fmt: skip


def problems(value: Any, schema: dict[str, Any], name: str = "config") -> list[str]:
    """Return where `value` breaks the JSON schema, which may use `WORDS` only."""
    assert schema.keys() <= WORDS
    kinds = schema.get("type", list(TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not any(isinstance(value, TYPES[kind]) for kind in kinds):
        return [f"{name} is {value!r}, not {kinds}"]
    if isinstance(value, bool) and "boolean" not in kinds:
        return [f"{name} is {value!r}, not {kinds}"]
    if isinstance(value, dict) and "properties" in schema:
        unknown = [f"{name}.{key} is unknown" for key in value.keys() - schema["properties"].keys()]
        known = [(key, inner) for key, inner in value.items() if key in schema["properties"]]
        return unknown + [
            problem
            for key, inner in known
            for problem in problems(inner, schema["properties"][key], f"{name}.{key}")
        ]
    if isinstance(value, list):
        found = [problem for entry in value for problem in problems(entry, schema.get("items", {}), name)]
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return found if fits else [*found, f"{name} has {len(value)} entries"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{name} is {value!r}, not one of {schema['enum']}"]
    number = isinstance(value, int | float)
    inside = not number or (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and not value <= schema.get("exclusiveMinimum", value - 1)
        and not value >= schema.get("exclusiveMaximum", value + 1)
    )
    return [] if inside else [f"{name} is {value}, out of range"]


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generated()[path], "run python -m medsora.config.reference"


def test_the_command_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {tmp_path / "page.md": "ä", tmp_path / "schema.json": "{}"}
    monkeypatch.setattr(reference, "generated", lambda: texts)
    reference.main()
    assert {path: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == texts


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_fit_the_json_schema_that_they_name(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert problems(OmegaConf.to_container(OmegaConf.create(text)), json_schema()) == []


def test_the_defaults_fit_the_json_schema() -> None:
    assert problems(config_to_dict(Config()), json_schema()) == []


@pytest.mark.parametrize(
    "text",
    [
        "data: {framse: 3}",
        "data: {frames: 0}",
        "data: {size: [64, 5000]}",
        "data: {flip: 1}",
        "data: {frames: null}",
        "run: {seed: true}",
        "denoiser: {preset: M}",
        "train_vae: {betas: [0.5]}",
        "train_vae: {betas: [0.5, 1]}",
        "train_dit: {phases: [{lrr: 1}]}",
        "train_dit: {phases: [{lr: -1}]}",
        "tracking: {trackers: [tensorbord]}",
    ],
)
def test_the_json_schema_refuses(text: str) -> None:
    assert len(problems(yaml.safe_load(text), json_schema())) == 1
