"""The ways a command ends, and the exit status of each (0 done, 1 failed, 2 bad input, 75 interrupted).

Leaves (`vae`, `flow_prior`, `kernels`) raise plain `ValueError` or `OSError` with one clear sentence;
`building()` turns those into `BadInput` while a command sets itself up, so that a user never meets a
traceback for a misspelt key, while a genuine bug inside the training loop still shows one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BadInput(ValueError):
    """The user's input cannot be used; the message is one sentence that says what to do. Exit status 2."""


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the run was saved and stopped. Exit status 1."""


class Interrupted(Exception):
    """The run was asked to stop, finished its step and saved itself. Exit status 75."""


@contextmanager
def building() -> Iterator[None]:
    """Turn `ValueError` and `OSError` raised while a command reads its input into `BadInput`."""
    try:
        yield
    except BadInput:
        raise
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error


def exit_with_status(main: Callable[[], None]) -> None:
    """Run `main` and leave the process with the documented status, one sentence on stderr if it failed."""
    try:
        main()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as error:
        print(f"interrupted: {error}", file=sys.stderr)
        sys.exit(75)
