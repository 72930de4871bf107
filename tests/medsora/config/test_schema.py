"""medsora.config.schema, medsora.config.choices, medsora.config.presets, medsora.flow_prior.choices,
medsora.kernels.choices, medsora.vae.choices: the schema says everything about a key, and no other file of
the product says it again.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

import medsora.config.choices
import medsora.flow_prior.choices
import medsora.kernels.choices
import medsora.vae.choices
from medsora.config.checks import check_config
from medsora.config.presets import PRESETS
from medsora.config.schema import (
    FIXED,
    FREE,
    FREE_TO_EXTEND,
    STAGE_1,
    STAGE_2,
    STAGE_AR,
    Config,
    Key,
    all_keys,
    text_keys,
)
from tests.repository.test_docs import ROOT

FOLDERS = ("medsora", "vae", "flow_prior", "kernels", "benchmarks")
SOURCES = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]


def declared(section: Any = Config, prefix: str = "") -> Iterator[tuple[str, Key, Any]]:
    """Yield name, rules and type of every key, those of lists' entries too."""
    hints = get_type_hints(section)
    for each in fields(section):
        name, hint = f"{prefix}{each.name}", hints[each.name]
        yield name, each.metadata["key"], hint
        for inner in filter(is_dataclass, (hint, *get_args(hint))):
            yield from declared(inner, f"{name}.")


def literals(kinds: type | tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the product's literals of these kinds of syntax, each with its place, but no docstrings."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


@pytest.mark.parametrize(("name", "rules", "hint"), declared(), ids=lambda value: str(value)[:40])
def test_every_key_is_fully_described(name: str, rules: Key, hint: Any) -> None:
    assert len(rules.meaning) > 8, name
    assert rules.meaning.endswith("."), name
    assert "|" not in rules.meaning, f"{name}: the reference page is a table"
    assert rules.nullable == (NoneType in get_args(hint)), name
    assert rules.resume in (FIXED, FREE, FREE_TO_EXTEND)
    assert set(rules.stage) < {STAGE_1, STAGE_2, STAGE_AR}
    if {hint, *get_args(hint)} & {int, float}:
        assert rules.range, f"{name} is a number without a range"


def test_the_defaults_pass_their_own_checks() -> None:
    check_config(Config(), "defaults")


def test_keys_say_which_stages_read_them_and_which_hold_text() -> None:
    assert all_keys()["train_dit.sample_steps"].stage == (STAGE_2,), "its section's"
    assert all_keys()["run.seed"].stage == ()
    assert [rules.is_read_by(STAGE_1) for rules in (Key("."), Key(".", stage=(STAGE_1,)))] == [True, True]
    assert not Key(".", stage=(STAGE_2, STAGE_AR)).is_read_by(STAGE_1)
    assert text_keys()["data.root"] == "data.root"
    assert "data.frames" not in text_keys()


def test_a_config_names_the_folders_of_its_runs_and_the_sides_of_a_frame() -> None:
    config = Config()
    config.run.dir, config.run.name = "there", "mine"
    config.denoiser.preset, config.endogen.preset = "S", "B"
    assert config.run_dir == Path("there/mine")
    assert [config.vae_dir.name, config.dit_dir.name, config.ar_dir.name] == ["vae", "dit-S", "endogen-B"]
    assert {config.vae_dir.parent, config.dit_dir.parent, config.ar_dir.parent} == {config.run_dir}
    for size, sides in ((64, (64, 64)), ([48, 96], (48, 96))):
        config.data.size = size
        assert config.data.height_width == sides


def test_no_other_file_lists_keys() -> None:
    """Strings that are a key, or a section with its dot, are rows of a second table; sentences are not."""
    keys = {*all_keys(), *(f"{section.name}." for section in fields(Config))}
    strings = [(place, node.value) for place, node in literals(ast.Constant) if isinstance(node.value, str)]
    assert len(strings) > 1000
    assert [(place, text) for place, text in strings if text in keys] == []


def test_choices_are_listed_once() -> None:
    lists = [key.choices for key in all_keys().values()] + [tuple(PRESETS)]
    for module in (
        medsora.config.choices,
        medsora.kernels.choices,
        medsora.flow_prior.choices,
        medsora.vae.choices,
    ):
        lists += [value for name, value in vars(module).items() if name.isupper()]
    known = {frozenset(each) - {"auto"} for each in lists if len(each) > 1}
    keys: dict[frozenset, list[str]] = {}
    for place, node in literals((ast.Tuple, ast.List, ast.Set)):
        words = {part.value for part in node.elts if isinstance(part, ast.Constant)}
        if len(words) == len(node.elts) and (found := frozenset(words - {"auto"})) in known:
            keys.setdefault(found, []).append(place)
    assert len(keys) > 10
    assert {tuple(words): found for words, found in keys.items() if len(found) > 1} == {}
