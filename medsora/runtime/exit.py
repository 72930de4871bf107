"""Exit statuses of the commands: 0 success, 1 error, 2 invalid input, 75 interrupted and saved."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from medsora.errors import BadInput, Interrupted, LostProcess, NonFiniteLoss, NonFiniteVideo, one_line
from medsora.runtime.extras import missing_package

EXIT_STATUSES = (
    "exit status: 0 success, 1 error, 2 invalid input, 75 interrupted (state saved, rerun to resume)"
)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
WAIT_FOR_MAIN_S = 5.0  # most errors are also the main process's, which prints them


def is_main_process() -> bool:
    """Return whether this is the process that prints for all; launchers number them in RANK."""
    return os.environ.get("RANK", "0") == "0"


def exit_with_status(main: Callable[[], None]) -> None:
    """Run `main` and leave the process with the documented status, one sentence on stderr if it failed.

    Ctrl-C and SIGTERM outside a training loop, which has its own way (`runtime.interruption`), end in a
    sentence and status 75 as well: what was saved is complete, and the same command resumes.
    """
    before = {number: signal.signal(number, _stop_here) for number in STOP_SIGNALS}
    try:
        main()
    except BadInput as error:
        _leave(2, f"error: {error}")
    except ModuleNotFoundError as error:
        problem = missing_package(error)
        if problem is None:
            raise
        _leave(2, f"error: {problem}")
    except NonFiniteLoss as error:  # which all processes find together, like `Interrupted`
        _leave(1, f"error: {error}", all_know=True)
    except NonFiniteVideo as error:
        _leave(1, f"error: {error}")
    except LostProcess as error:
        _leave(1, f"error: {error}", all_know=error.reported_elsewhere, at_once=not error.reported_elsewhere)
    except Interrupted as error:
        _leave(75, f"interrupted: {error}", all_know=True)
    except KeyboardInterrupt as error:
        reason = str(error) or "received SIGINT"
        _leave(75, f"interrupted: {reason}; what was saved before is intact; rerun to resume.", all_know=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_here(number: int, frame: FrameType | None) -> None:
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_DFL)  # a second signal ends at once
    raise KeyboardInterrupt(f"received {signal.Signals(number).name}")


def _leave(status: int, sentence: str, *, all_know: bool = False, at_once: bool = False) -> None:
    """Exit with `status`; the main process prints why, another one only if the main one is not leaving too.

    Launchers end the other processes as soon as one has failed, so a process that still runs after
    `WAIT_FOR_MAIN_S` seconds has an error that the main process does not have.
    """
    if not is_main_process() and not at_once:
        if not all_know:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            time.sleep(WAIT_FOR_MAIN_S)
            print(one_line(sentence), file=sys.stderr)
    else:
        print(one_line(sentence), file=sys.stderr)
    sys.exit(status)
