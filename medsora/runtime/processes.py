"""A command in several processes that trains nothing: each does its share, the main one decides."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from medsora.errors import BadInput, building
from medsora.runtime.together import join, losses_said, part, start_heartbeat

Result = TypeVar("Result")


@contextmanager
def working_together() -> Iterator[PartialState]:
    """Give this process's place among those that a launcher started; meanwhile they watch each other.

    One that has left regularly is not missed. Raises `LostProcess` if another one is gone.
    """
    with losses_said():
        state = join()
        start_heartbeat()
        yield state
        part()


def on_main(state: PartialState, work: Callable[[], Result]) -> Result:
    """Do `work` in the main process alone and give its result, which must pickle, to every process.

    If it fails on bad input, the main process raises `BadInput`; the others leave with its exit status.
    """
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            with building():
                outcome[0] = work()
        except BadInput as error:
            outcome[1] = str(error)
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    result, problem = outcome
    if problem is not None and state.is_main_process:
        raise BadInput(problem)
    if problem is not None:
        sys.exit(2)
    return result


def share_of(state: PartialState, count: int) -> list[int]:
    """Return the numbers below `count` that are this process's."""
    return list(range(state.process_index, count, state.num_processes))
