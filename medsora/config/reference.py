"""`python -m medsora.config.reference`: write the reference of all keys, for readers and for editors.

docs/configuration.md   a table per section
configs/schema.json     JSON schema, with which editors complete and check the YAML files
"""

from __future__ import annotations

import json
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from medsora.config.schema import STAGE_1, STAGE_2, STAGE_AR, Config, Key
from medsora.runtime.markdown import markdown_table

ROOT = Path(__file__).resolve().parents[2]
JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array"}
JSON_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at_least",
    "maximum": "at_most",
    "exclusiveMaximum": "below",
}
TYPE_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", dict: "mapping"}
STAGE_WORDS = {STAGE_1: "stage 1", STAGE_2: "stage 2", STAGE_AR: "train-ar"}
INTRODUCTION = """# Configuration

A run is described by one YAML file (`--config FILE`) and by overrides on the command line, such as
`train_dit.max_steps=100`. Every key has a default, so a file holds only what differs from it; `configs/` has
complete examples. An unknown key is refused with the name of the nearest known one.

*On resume*: whether a run that has checkpoints may be resumed with another value. If not, choose another
`run.name` for it.

Editors with a YAML language server complete and check keys by `configs/schema.json`, which the first line of
every file in `configs/` names. That schema and this page are generated from `medsora/config/schema.py` by
`python -m medsora.config.reference`.
"""


def main() -> None:
    """Write both files into the repository."""
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")


def generated() -> dict[Path, str]:
    """Return the text of each generated file."""
    return {
        ROOT / "docs" / "configuration.md": _reference_page(),
        ROOT / "configs" / "schema.json": json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n",
    }


def _reference_page() -> str:
    parts = [INTRODUCTION]
    for section in fields(Config):
        rules = section.metadata["key"]
        parts.append(
            f"## `{section.name}`\n\n{rules.meaning}{_only(rules)}\n\n{_table(section.default_factory)}"
        )
        for name, hint in get_type_hints(section.default_factory).items():
            for entry in filter(is_dataclass, get_args(hint)):
                parts.append(f"Entries of `{section.name}.{name}`:\n\n{_table(entry)}")
    return "\n".join(parts)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a config file."""
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "MedSora", **_object(Config)}


def _table(section: type) -> str:
    hints = get_type_hints(section)
    rows = []
    for each in fields(section):
        rules: Key = each.metadata["key"]
        default = _default(each)
        default = default if isinstance(default, str) else json.dumps(default)
        values, meaning = _values(hints[each.name], rules), f"{rules.meaning}{_only(rules)}"
        rows.append((f"`{each.name}`", f"`{default}`", values, rules.resume, meaning))
    head = ("key", "default", "values", "on resume", "meaning")
    return "\n".join(markdown_table(head, rows, len(head))) + "\n"


def _only(rules: Key) -> str:
    words = " and ".join(STAGE_WORDS[stage] for stage in rules.stage)
    return f" Read by {words} only." if words else ""


def _values(hint: Any, rules: Key) -> str:
    kind, entry = _kinds(hint)
    words = ", ".join(f"`{choice}`" for choice in rules.choices) or TYPE_WORDS.get(entry or kind, "")
    words = " ".join(filter(None, (words, rules.range)))
    if entry:
        words = f"{'pair' if rules.pair else 'list'} of: {words or 'entries as below'}"
    return f"{words} or null" if rules.nullable else words or "see meaning"


def _kinds(hint: Any) -> tuple[Any, Any]:
    """Return a type without None and without its parameters, and the type of a list's entries, else None."""
    kind = next((part for part in get_args(hint) if part is not NoneType), hint)
    if get_origin(hint) in (list, dict):
        kind = get_origin(hint)
    return kind, get_args(hint)[0] if kind is list else None


def _default(each: Field) -> Any:
    value = each.default_factory() if callable(each.default_factory) else each.default
    if isinstance(value, list):
        return [vars(entry) if is_dataclass(entry) else entry for entry in value]
    return value


def _object(section: type) -> dict[str, Any]:
    hints = get_type_hints(section)
    properties = {each.name: _property(each, hints[each.name]) for each in fields(section)}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(each: Field, hint: Any) -> dict[str, Any]:
    rules: Key = each.metadata["key"]
    if is_dataclass(hint):
        return {"description": rules.meaning, **_object(hint)}
    kind, entry = _kinds(hint)
    bounds = {word: getattr(rules, name) for word, name in JSON_BOUNDS.items()}
    limits: dict[str, Any] = {word: bound for word, bound in bounds.items() if bound is not None}
    if rules.choices:
        limits["enum"] = list(rules.choices)
    entries: dict[str, Any] = {"description": rules.meaning, "default": _default(each)}
    if kind in JSON_TYPES:
        entries["type"] = [JSON_TYPES[kind], "null"] if rules.nullable else JSON_TYPES[kind]
    if is_dataclass(entry):
        entries["items"] = _object(entry)
    elif entry:
        entries["items"] = {"type": JSON_TYPES[entry], **limits}
    else:
        entries |= limits
        if hint is Any and limits:
            entries["items"] = limits
    if rules.pair:
        entries |= {"minItems": 2, "maxItems": 2}
    return entries


if __name__ == "__main__":
    main()
