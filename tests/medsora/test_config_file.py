"""Every shipped config loads; whatever is wrong with one is answered with one sentence that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsora.config_file import config_from_dict, config_to_dict, load_config, save_config
from medsora.errors import BadInput

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
PHANTOM = Path(__file__).resolve().parents[2] / "configs" / "phantom.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config_from_dict(config_to_dict(config), "again") == config
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_hold_relative_paths_only(path: Path) -> None:
    values = config_to_dict(load_config(path))
    strings = [value for section in values.values() for value in section.values() if isinstance(value, str)]
    assert not [value for value in strings if value.startswith(("/", "~")) or ".." in value]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.framse=3", "did you mean 'data.frames'"),
        ("dataa.frames=3", "did you mean 'data'"),
        ("data.frames=abc", "data.frames"),
        ("vae.compensation=Ture", "vae.compensation"),
        ("data.frames=0", "greater than 0"),
        ("train_dit.error_of=speed", "noise, velocity"),
        ("data.size=big", "data.size"),
        ("images.encoding=loose", "packed, single"),
        ("images.encoding=packed", "multiple of 8"),
        ("data=3", "section"),
        ("data.holdout=1.5", "data.holdout"),
        ("nonsense", "key=value"),
        ("train_dit.phases=[{lr: 1, batch: 2, until_epoch: 3}]", "until_epoch"),
        ("train_dit.phases=[{lrr: 1}]", "did you mean 'train_dit.phases\\[0\\].lr'"),
    ],
)
def test_bad_values_are_one_sentence_that_names_the_key(override: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected) as caught:
        load_config(PHANTOM, [override])
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("data: {frames: [1, 2\n")
    with pytest.raises(BadInput, match="cannot be read as YAML"):
        load_config(broken)
    broken.write_text("- a list\n")
    with pytest.raises(BadInput, match="sections"):
        load_config(broken)
