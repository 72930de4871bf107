"""Errors of the input become one sentence; all others stay what they are."""

from __future__ import annotations

import math
from argparse import Namespace

import pytest

from medsora.errors import BadInput, LostProcess, bad_input_from_errors, check_limits, one_line


@pytest.mark.parametrize("error", [ValueError("no such key"), OSError("no such key")])
def test_what_a_leaf_raises_about_the_input_becomes_bad_input(error: Exception) -> None:
    with pytest.raises(BadInput, match=r"^no such key$") as caught, bad_input_from_errors():
        raise error
    assert caught.value.__cause__ is error


def test_bad_input_and_bugs_pass_unchanged() -> None:
    first = BadInput("a sentence")
    with pytest.raises(BadInput) as caught, bad_input_from_errors():
        raise first
    assert caught.value is first
    with pytest.raises(KeyError), bad_input_from_errors():
        raise KeyError("a bug")


def test_names_that_do_not_print_are_written_out() -> None:
    assert one_line("a\nb\x1b[31m") == r"a\nb\x1b[31m"
    assert one_line("Darm ü 腸") == "Darm ü 腸"


def test_a_lost_process_names_whether_another_reports_it() -> None:
    assert not LostProcess("process 1 is gone").reported_elsewhere
    assert LostProcess("process 1 is gone", reported_elsewhere=True).reported_elsewhere


@pytest.mark.parametrize(
    ("value", "most", "bounds"), [(0, 9, "1 to 9"), (10, 9, "1 to 9"), (0, math.inf, "at least 1")]
)
@pytest.mark.parametrize("listed", [False, True])
def test_an_option_outside_its_limits_is_named(value: int, most: float, bounds: str, listed: bool) -> None:
    options = Namespace(max_clips=[1, value] if listed else value)
    with pytest.raises(BadInput, match=f"^--max-clips is {value} but must be {bounds}\\.$"):
        check_limits(options, {"max_clips": (1, most)})


def test_options_within_their_limits_or_left_out_pass() -> None:
    check_limits(
        Namespace(clips=9, rates=[1.0, 9.0], seeds=None), dict.fromkeys(("clips", "rates", "seeds"), (1, 9))
    )
