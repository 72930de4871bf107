"""The ways a command ends, and the exit status of each (0 success, 1 error, 2 invalid input, 75 interrupted).

Leaves (`vae`, `flow_prior`, `kernels`) raise plain `ValueError` or `OSError` with one clear sentence;
`bad_input_from_errors()` turns those into `BadInput` while a command sets itself up, so that a user never
meets a traceback for a misspelt key, while a genuine bug inside the training loop still shows one.

Of several processes only the main one prints the sentence, unless it is the one that cannot.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class BadInput(ValueError):
    """The user's input cannot be used; the message is one sentence with the remedy. Exit status 2."""


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the run was saved and stopped. Exit status 1."""


class NonFiniteVideo(RuntimeError):
    """Sampled latents or frames are NaN or infinite; nothing was made of them. Exit status 1."""


class LostProcess(RuntimeError):
    """Another process of the run, or one that loads its data, is gone; nothing was saved. Exit status 1."""

    def __init__(self, sentence: str, *, reported_elsewhere: bool = False) -> None:
        super().__init__(sentence)
        self.reported_elsewhere = reported_elsewhere  # by the main process, which is alive and finds it too


class Interrupted(Exception):
    """The run received a stop request, finished its step and saved its state. Exit status 75."""


@contextmanager
def bad_input_from_errors() -> Iterator[None]:
    """Turn `ValueError` and `OSError` raised while a command reads its input into `BadInput`."""
    try:
        yield
    except BadInput:
        raise
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error


def check_limits(options: Namespace, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise `BadInput` for a command's option, or one of its values, outside (least, most); None is none."""
    for name, (least, most) in limits.items():
        given = getattr(options, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not least <= value <= most:
                bounds = f"at least {least}" if most == math.inf else f"{least} to {most}"
                raise BadInput(f"--{name.replace('_', '-')} is {value} but must be {bounds}.")


def one_line(text: str) -> str:
    """Return `text` with unprintable characters escaped: file names may contain line ends and worse."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )
