"""Mutated configurations against the config loader: text, structure, and names that lead elsewhere."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from medsora.config.load import OUTPUTS, config_to_dict, load_config
from medsora.config.schema import Config, all_keys
from medsora.errors import BadInput
from tests.faults.guarded import report, try_all
from tests.faults.mutate import ODD_VALUES, mutate_bytes, mutate_tree
from tests.support.paths import CONFIGS

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = (
    BOMB,
    "a: &a [*a]\n",
    "[" * 5000,
    "{a: " * 2000,
    "!!python/object/apply:os.system ['true']",
    "a: !!set {b}",
)


def fuzz_config(inputs: int, seed: int) -> int:
    """Try `inputs` mutated configurations; print what came of them; return the exit status."""
    originals = {path.name: path.read_text() for path in sorted(CONFIGS.glob("*.yaml"))}
    originals["defaults"] = OmegaConf.to_yaml(OmegaConf.create(config_to_dict(Config())))
    with tempfile.TemporaryDirectory(prefix="medsora-fuzz-") as folder:
        trees = {name: yaml.safe_load(text) for name, text in originals.items()}
        tally = try_all(inputs, lambda number: attempt(number, seed, originals, trees, Path(folder)))
    return report(tally, "past", "configurations")


def attempt(number: int, seed: int, texts: dict[str, str], trees: dict[str, Any], folder: Path) -> str:
    """Load the mutated configuration `number`; return how far that came."""
    draw = random.Random(f"{seed}/{number}")
    name = draw.choice(sorted(texts))
    kind = draw.random()
    overrides, own_place = [], True
    if kind < 0.3:
        text = mutate_bytes(texts[name].encode(), draw)
    elif kind < 0.31:
        text = draw.choice(TEXTS).encode()
    elif kind < 0.9:
        tree = mutate_tree(trees[name], draw)
        text = yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)).encode()
    else:
        text = texts[name].encode()
        key = draw.choice(sorted(all_keys()))
        overrides, own_place = [f"{key}={draw.choice(ODD_VALUES)}"], key not in OUTPUTS
    path = folder / f"mutated-{os.getpid()}.yaml"
    path.write_bytes(text)
    try:
        config = load_config(path, overrides)
    except BadInput as error:
        error.how_far = (
            "refused: not YAML" if "cannot be read as YAML" in str(error) else "past YAML, refused"
        )
        raise
    assert isinstance(config, Config)
    if own_place:  # nobody typed another one
        for place in outputs(config):
            assert Path.cwd() in Path(os.path.abspath(place)).parents, f"{place} lies elsewhere"
    return "past YAML, accepted"


def outputs(config: Config) -> list[Path]:
    """Return the folders that a run of `config` writes, TensorBoard's among them."""
    runs = [config.vae_dir, config.dit_dir]
    logs = [run / "tensorboard" / config.tracking.project for run in runs]
    return [*runs, *logs, Path(config.cache.dir, "latents-0"), Path(f"{config.phantom.folder}-1")]
