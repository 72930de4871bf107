"""YAML file -> checked `Config`, or one sentence that names the file or key and the remedy."""

from __future__ import annotations

import difflib
import functools
import io
import logging
import re
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path, PurePath
from typing import Any, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf

from medsora.config.checks import check_config
from medsora.config.schema import Config, all_keys, text_keys
from medsora.config.shipped import find_config
from medsora.errors import BadInput
from medsora.runtime.files import read_patiently

# A config may come from a stranger: it names values, and writes nowhere but below the folder it is run from.
OUTPUTS = tuple(name for name, key in all_keys().items() if key.output)
MAX_BYTES, MAX_NODES, MAX_DEPTH = 1_000_000, 100_000, 20
MAX_NUMBER = 2**53
MAX_CHARACTERS = 4096  # maximum length of a value on the command line; no path is longer
COMMAND_LINE = "the command line"
NULLS = ("null", "~")
# Numbers that YAML 1.1 reads as others than a reader does: 010 is 8, 0x10 16, 1_0 10, 1:30 90.
READ_OTHERWISE = re.compile(r"[-+]?(0\d|0[box]|[\d.]*[_:])", re.IGNORECASE)

logger = logging.getLogger(__name__)


def load_config(
    path: str | Path, overrides: list[str] | None = None, *, outputs_anywhere: bool = False
) -> Config:
    """Read `path` (see `find_config`), apply `key=value` overrides and return a checked `Config`.

    Unless `outputs_anywhere`, what the file names as `OUTPUTS` must lie below the present folder; overrides,
    which the user typed, may name any place.

    An override's text is taken as it was typed; other values are YAML. Raises `BadInput` with one sentence
    that names the file or key: a missing file, broken YAML, an unknown key (with the nearest known one), a
    value of the wrong type, one outside its range, or one that YAML takes for another than was written.
    """
    path = find_config(path)
    try:
        given = OmegaConf.load(io.StringIO(_read_bounded(path)))
        if not isinstance(given, DictConfig):
            raise BadInput(
                f"{path} must hold sections such as 'data:' and 'vae:', not {type(given).__name__}."
            )
        if not outputs_anywhere:
            replaced = {override.partition("=")[0] for override in overrides or []}
            _check_outputs(OmegaConf.to_container(given, resolve=False), str(path), replaced)
        typed = _from_overrides(overrides or [])
        renamed = [
            OmegaConf.create(_with_new_names(OmegaConf.to_container(part, resolve=False), source))
            for part, source in ((given, str(path)), (typed, COMMAND_LINE))
        ]
        _refuse_unknown_keys(OmegaConf.to_container(renamed[1], resolve=False), Config, "", COMMAND_LINE)
        plain = OmegaConf.to_container(OmegaConf.merge(*renamed), resolve=False)
    except BadInput:
        raise
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        raise BadInput(f"{path}{where} cannot be read as YAML: {error.problem}.") from error
    except Exception as error:  # OmegaConf passes on the YAML library's many error types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path} cannot be read as YAML: {reason}.") from error
    return config_from_dict(plain, str(path))


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """Return the checked `Config` of nested plain `values`; `source` names them in errors."""
    values = _with_new_names(values, source)
    _refuse_unknown_keys(values, Config, "", source)
    _refuse_odd_values(values, "", source)
    data = values.get("data") or {}
    if data.get("rate") is not None and "interval" not in data:  # the default interval gives way
        values = values | {"data": data | {"interval": None}}
    try:
        config = OmegaConf.to_object(OmegaConf.merge(_schema(), OmegaConf.create(values)))
    except Exception as error:  # OmegaConf's errors, and those that odd values raise inside it
        key = getattr(error, "full_key", None) or "a key"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{source}: {key} has a value that does not fit: {reason}.") from error
    check_config(config, source)
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return nested plain values, such that `config_from_dict` gives the same config back."""
    return asdict(config)


def save_config(config: Config, path: Path) -> None:
    """Write the whole config, defaults included, as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config))), encoding="utf-8")


@functools.cache
def _schema() -> DictConfig:
    return OmegaConf.structured(Config)


def _with_new_names(values: Any, source: str) -> Any:
    """Return `values` with former names replaced; raises `BadInput` where a key has both of its names."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    for new, key in all_keys().items():
        section, name = new.split(".")
        inner = values.get(section)
        if not (key.was and isinstance(inner, dict) and key.was in inner):
            continue
        if name in inner:
            raise BadInput(f"{source}: {section}.{key.was} is the former name of {new}; give one of them.")
        logger.warning("%s: %s.%s is now named %s.", source, section, key.was, new)
        values[section] = {name if old == key.was else old: value for old, value in inner.items()}
    return values


def _refuse_unknown_keys(values: Any, schema: type, prefix: str, source: str) -> None:
    if not isinstance(values, dict):
        return
    known = get_type_hints(schema)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            near = " or ".join(f"'{full}'" for full in _nearest(str(key), value, list(known), prefix))
            raise BadInput(f"{source}: there is no key '{name}'; did you mean {near}?")
        inner = known[key]
        if is_dataclass(inner):
            if not isinstance(value, dict):
                raise BadInput(f"{source}: '{name}' is a section of keys, not the value {value!r}.")
            _refuse_unknown_keys(value, inner, f"{name}.", source)
        elif isinstance(value, list):
            for number, entry in enumerate(value):
                for part in get_args(inner):
                    if is_dataclass(part):
                        _refuse_unknown_keys(entry, part, f"{name}[{number}].", source)


def _nearest(key: str, value: Any, known: list[str], prefix: str) -> list[str]:
    """Return full names that an unknown `key` may mean: that name in any section, else similar names."""
    anywhere: dict[str, list[str]] = {}
    for full, rules in all_keys().items():
        section, name = full.split(".")
        entries = get_args(get_type_hints(get_type_hints(Config)[section])[name])
        of_entries = [
            each for part in entries for each in (get_type_hints(part) if is_dataclass(part) else ())
        ]
        for word in filter(None, (name, rules.was, *of_entries)):
            anywhere.setdefault(word, []).append(f"{full}[0].{word}" if word in of_entries else full)
    if "[" in prefix:  # an entry of a list has keys of its own
        anywhere = {}
    inside = list(value) if isinstance(value, dict) and not prefix else []
    if len(inside) == 1 and inside[0] in anywhere:  # a key that is right, of a section that there is not
        return anywhere[inside[0]]
    if key in anywhere:
        return anywhere[key]
    words = known if prefix else [*known, *anywhere]
    nearest = difflib.get_close_matches(key, words, n=1, cutoff=0.0)[0]
    return [prefix + nearest] if nearest in known else anywhere[nearest]


def _read_bounded(path: Path) -> str:
    """Return the text of a YAML file whose values, aliases written out, are few enough to be a config."""
    if read_patiently(Path.stat, path).st_size > MAX_BYTES:
        raise BadInput(f"{path} is larger than {MAX_BYTES} bytes: that is no config.")
    text = read_patiently(Path.read_bytes, path).decode()
    sizes: dict[int, int] = {}  # size of each node by identity: an alias is its node

    def written_out(node: yaml.Node | None, depth: int) -> int:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if depth > MAX_DEPTH:  # a node inside itself too
            raise BadInput(f"{path} is nested more than {MAX_DEPTH} deep: that is no config.")
        if id(node) not in sizes:
            parts = (
                node.value
                if isinstance(node, yaml.SequenceNode)
                else [n for pair in node.value for n in pair]
            )
            sizes[id(node)] = 1 + sum(written_out(part, depth + 1) for part in parts)
        return sizes[id(node)]

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if written_out(root, 0) > MAX_NODES:
        raise BadInput(f"{path} stands for more than {MAX_NODES} values: that is no config.")
    _refuse_other_readings(root, "", lambda node: f"{path}, line {node.start_mark.line + 1}")
    return text


def _from_overrides(overrides: list[str]) -> DictConfig:
    """Return `key=value` words as a config: text literally, null and quoted values as in YAML."""
    typed = OmegaConf.create()
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise BadInput(f"'{override}' is no override; write key=value, for example data.size=64.")
        if not value.strip():
            raise BadInput(f"'{override}' has no value; write {key}=null if you mean none.")
        if len(value) > MAX_CHARACTERS:
            raise BadInput(f"{COMMAND_LINE}: {key} has {len(value)} characters, more than any value needs.")
        quoted = value[0] in "'\"" and value[-1] == value[0]
        if key in text_keys() and not quoted and value.lower() not in NULLS:
            OmegaConf.update(typed, key, value, force_add=True)
            continue
        try:
            root = yaml.compose(value, Loader=yaml.SafeLoader)
            _refuse_other_readings(root, key, lambda node: COMMAND_LINE)
            cut = not quoted and isinstance(root, yaml.ScalarNode) and root.value != value.strip()
            if cut and root.style is None:
                raise BadInput(f"{COMMAND_LINE}: {override!r} would be read as {key}={root.value}.")
            typed = OmegaConf.merge(typed, OmegaConf.from_dotlist([override]))
        except yaml.MarkedYAMLError as error:
            raise BadInput(f"{COMMAND_LINE}: {override!r} cannot be read: {error.problem}.") from error
    return typed


def _refuse_other_readings(node: yaml.Node | None, key: str, place: Callable[[yaml.Node], str]) -> None:
    """Refuse plain values that YAML takes for others than were written; `key` names the node in messages."""
    if isinstance(node, yaml.MappingNode):
        for name, inner in node.value:
            _refuse_other_readings(inner, f"{key}.{name.value}" if key else str(name.value), place)
    elif isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _refuse_other_readings(inner, key, place)
    elif isinstance(node, yaml.ScalarNode) and node.style is None:
        is_number = node.tag.endswith((":int", ":float"))
        if key not in text_keys():
            if is_number and READ_OTHERWISE.match(node.value):
                raise BadInput(f"{place(node)}: {key} is {node.value}, which YAML does not read as decimal.")
        elif not all_keys()[text_keys()[key]].choices:
            read = OmegaConf.create(f"value: {node.value}").value
            if read is not None and str(read) != node.value:
                raise BadInput(
                    f"{place(node)}: {key} is {node.value}, which YAML takes for {read}; put it in quotes."
                )


def _check_outputs(values: Any, source: str, replaced: set[str]) -> None:
    for key in OUTPUTS:
        if key in replaced:
            continue
        section, name = key.split(".")
        inner = values.get(section)
        place = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(place, str) and (PurePath(place).is_absolute() or ".." in PurePath(place).parts):
            raise BadInput(
                f"{source}: {key} is '{place}', but a config file writes only below the folder it is run "
                f"from; to allow it, set {key}={place} on the command line."
            )


def _refuse_odd_values(value: Any, name: str, source: str) -> None:
    """Refuse what no key can mean: interpolations (they read the environment), NaN, unprintable text."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in entries:
            _refuse_odd_values(inner, f"{name}.{key}" if name else str(key), source)
    elif isinstance(value, str) and ("${" in value or not value.isprintable()):
        raise BadInput(f"{source}: {name} is {value!r}, but values are plain text, written out in full.")
    elif isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:  # nor is NaN
        raise BadInput(f"{source}: {name} is {value!s:.50}, which is no number to compute with.")
