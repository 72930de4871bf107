"""What is cut off frames: as a config names it, as a command line does, and of which clips."""

from __future__ import annotations

import pytest

from medsora.config.crop import checked_crop, crop_in_words, crop_of_generated, crop_of_text
from medsora.errors import BadInput


@pytest.mark.parametrize(
    ("text", "crop"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("0.1,0,0.25,0", (0.1, 0, 0.25, 0)),
        ("[0, 0, 0.25, 0]", (0, 0, 0.25, 0)),
    ],
)
def test_a_command_line_names_what_a_config_does(text: str, crop: object) -> None:
    assert checked_crop(crop_of_text(text), "--crop") == crop


@pytest.mark.parametrize("text", ["", "black", "0.1", "0.1,0,0", "0.5,0.45,0,0", "-0.1,0,0,0", "nan,0,0,0"])
def test_anything_else_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(BadInput, match=r"^--crop is .* but must be auto, none, or four parts .*\.$"):
        checked_crop(crop_of_text(text), "--crop")


def test_generated_clips_never_had_fixed_parts() -> None:
    assert [crop_of_generated(crop) for crop in ("auto", "none", (0, 0, 0.25, 0))] == ["auto", "none", "none"]
    assert "(left 0.25)" in crop_in_words((0, 0, 0.25, 0))
