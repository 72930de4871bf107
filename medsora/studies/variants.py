"""The configs of `--vary` to compare, each checked before anything is trained."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medsora.config.load import load_config
from medsora.config.schema import FIXED, STAGE_1, STAGE_2, Config, all_keys
from medsora.errors import BadInput

MAX_VARIANTS = 64
REFERENCE = "as configured"
SHARED = ("run", "data", "phantom", "cache", "tracking")  # sections that all variants have in common
COMMANDS = {STAGE_1: "train-vae", STAGE_2: "train-dit"}
MAX_NAME = 72  # characters of a run's name before its seed


class Variant(NamedTuple):
    """A config to train: `changes` are overrides `key=value` of the study's config, none for itself."""

    changes: tuple[str, ...]
    config: Config
    name: str | None = None

    @property
    def title(self) -> str:
        """Its name, else the changes, for a table."""
        return self.name or ", ".join(self.changes) or REFERENCE

    def run_name(self, seed: int) -> str:
        """Return the name of its run with a seed."""
        text = self.name or "+".join(self.changes) or REFERENCE.replace(" ", "-")
        name = re.sub(r"[^\w.,+=@-]", "-", text)
        if name != text or len(name) > MAX_NAME:
            name = f"{name[:MAX_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return f"{name}-seed-{seed}"


def variants_of(
    config: str | Path, overrides: Sequence[str], vary: Sequence[str], *, grid: bool = False
) -> tuple[str, list[Variant]]:
    """Return the stage that the varied keys belong to, and the variants, the config itself first.

    `vary` holds `key=value,value`. One key is changed at a time, or, for a `grid`, all of them in every
    combination. Values that the config has already are the config itself.
    Raises `BadInput`, naming the key, if one cannot be varied or a value cannot be loaded.
    """
    choices = [_choices(text) for text in vary]
    names = [text.partition("=")[0] for text in vary]
    stage = _stage(names)
    for name in names:
        known = all_keys().get(".".join(name.split(".")[:2]))
        if known is not None and not known.is_read_by(stage):
            raise BadInput(f"--vary cannot change {name}: {COMMANDS[stage]} does not read it.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"--vary names {twice[0]} twice; give all its values at once, separated by commas.")
    if grid:
        combinations = list(itertools.product(*choices))
    else:
        combinations = [(change,) for of_key in choices for change in of_key]
    if len(combinations) > MAX_VARIANTS:
        raise BadInput(f"--vary gives {len(combinations)} variants; the maximum is {MAX_VARIANTS}.")
    variants = [Variant((), load_config(config, list(overrides)))]
    for changes in combinations:
        usual = variants[0].config
        kept = tuple(each for each in changes if load_config(config, [*overrides, each]) != usual)
        changed = load_config(config, [*overrides, *kept])
        if changed not in [variant.config for variant in variants]:
            variants.append(Variant(kept, changed))
    if len(variants) == 1:
        raise BadInput("--vary changes nothing: every value is the one that the config has already.")
    return stage, variants


def _choices(text: str) -> list[str]:
    """`key=a,b` -> `key=a`, `key=b`; commas inside brackets separate nothing."""
    name, equals, values = text.partition("=")
    parts = re.findall(r"(?:[^,\[\]{}]|\[[^\]]*\]|\{[^}]*\})+", values)
    if not equals or not parts or len(parts) != len(re.sub(r"\[[^\]]*\]|\{[^}]*\}", "", values).split(",")):
        raise BadInput(
            f"--vary {text!r} names no values; write key=value,value, such as denoiser.scan=raster."
        )
    known = all_keys().get(".".join(name.split(".")[:2]))
    if name.partition(".")[0] in SHARED:
        raise BadInput(f"--vary cannot change {name}: all variants share seeds, clips, caches and folders.")
    if known is not None and known.resume != FIXED:
        raise BadInput(f"--vary cannot change {name}: it does not change what a training step computes.")
    return [f"{name}={part.strip()}" for part in parts]


def _stage(names: Sequence[str]) -> str:
    """Return the stage to train; `vae.path` names what stage 2 takes, the rest of `vae` is stage 1's."""
    of_vae = [name for name in names if name.split(".")[0] in ("vae", STAGE_1)]
    of_vae = [name for name in of_vae if name.split(".")[1:] != ["path"]]
    others = [name for name in names if name not in of_vae]
    if of_vae and others:
        raise BadInput(
            f"--vary names {of_vae[0]} of stage 1 and {others[0]} of stage 2; study one after the other."
        )
    return STAGE_1 if of_vae else STAGE_2
