"""Where a run can be killed from inside: each place ends the process by a real SIGKILL, in mid-sentence.

A place is a function that arms the process that calls it, before training starts: the n-th time that the run
comes by, it dies there.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from medsora.data.clips import ClipDataset
from medsora.runtime import files
from medsora.saved import checkpoint
from medsora.training.cache import store as tensor_store
from medsora.training.cache.latents import LatentCache
from medsora.training.progress import Progress
from medsora.training.run import report as run_report
from medsora.training.run.folder import RunFolder
from medsora.training.stage1 import stage as vae_stage
from medsora.training.stage2 import stage as dit_stage


def die() -> None:
    """End this process at once, as a node that loses its power would."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(owner: Any, name: str, nth: int, before: Callable[..., None] | None, after: bool = False) -> None:
    """Let the n-th call (from 1) of `owner.name` die: in `before(*arguments)`, or right after the call."""
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def armed(*arguments: Any, **options: Any) -> Any:
        its_turn = next(calls) == nth
        if its_turn and before is not None:
            before(*arguments, **options)
            die()
        result = original(*arguments, **options)
        if its_turn and after:
            die()
        return result

    setattr(owner, name, armed)


def nothing(*arguments: Any, **options: Any) -> None:
    """Do nothing before dying."""


def half_a_tensor_file(tensors: dict[str, Any], path: Path, **options: Any) -> None:
    """Write the first half of a safetensors file."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    Path(path).write_bytes(b"\0" * (size // 2))


def half_a_line(self: RunFolder, step: int, metrics: dict[str, float]) -> None:
    """Write the first half of a line of log.jsonl."""
    line = json.dumps({"step": step, **metrics})
    with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(line[: len(line) // 2])


def half_a_deletion(folder: Path, **options: Any) -> None:
    """Delete one file of a folder that is to go."""
    next(path for path in sorted(folder.rglob("*")) if path.is_file()).unlink()


def half_a_picture(path: Path, *arguments: Any) -> None:
    """Write the first bytes of a picture beside its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f".{path.stem}.half{path.suffix}").write_bytes(b"\x89PNG")


def _in_rename(nth: int, *, after: bool) -> None:
    original, calls = Path.rename, iter(range(1, 10**6))

    def armed(self: Path, target: Path) -> Path:
        its_turn = self.name.startswith(".writing-step") and next(calls) == nth
        if its_turn and not after:
            die()
        moved = original(self, target)
        if its_turn:
            die()
        return moved

    Path.rename = armed


# The n-th passing, from 1; each n, 1 or 2, is one that a run of four steps comes by.
PLACES: dict[str, Callable[[int], None]] = {
    "in a fetch": lambda n: arm(ClipDataset, "load", 3 * n, nothing),
    "after a step": lambda n: arm(Progress, "count", n + 1, nothing),
    "in a line of the log": lambda n: arm(RunFolder, "log", 2 * n, half_a_line),
    "in the writing of a checkpoint": lambda n: arm(checkpoint, "save_file", n, half_a_tensor_file),
    "before an fsync": lambda n: arm(files, "_flush", 4 * n + 3, nothing),
    "after an fsync": lambda n: arm(files, "_flush", 4 * n + 3, None, after=True),
    "before the rename": lambda n: _in_rename(n, after=False),
    "after the rename": lambda n: _in_rename(n, after=True),
    "in the dropping of an old checkpoint": lambda n: arm(checkpoint.shutil, "rmtree", 1, half_a_deletion),
    "before an evaluation": lambda n: (
        arm(dit_stage.Stage2, "evaluate", n, nothing),
        arm(vae_stage.VaeStage, "evaluate", n, nothing),
    )[0],
    "in the writing of samples": lambda n: arm(run_report, "save_image", 2, half_a_picture),
    "in the writing of the cache": lambda n: arm(tensor_store, "save_file", n, half_a_tensor_file),
    "in the encoding for the cache": lambda n: arm(LatentCache, "_encode_clip", n, nothing),
    "at the end": lambda n: arm(Accelerator, "end_training", 1, nothing),
}
