"""A run's folder: config, command, versions, log, messages; what it checks before a run is resumed.

config.yaml  command.txt  versions.json     what was run
videos.json                                 each video's side of the split, kept when the run is resumed
log.jsonl                                   one line of metrics per logged step
messages.txt                                messages to the user
lock.txt                                    held by the process that writes here
saved.txt                                   there once a checkpoint was: if that is lost, no run starts over
checkpoints/  samples/  tensorboard/        see `checkpoint.py` and the loops
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import logging
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from medsora.config.load import config_to_dict, load_config, save_config
from medsora.config.schema import FIXED, Config, all_keys
from medsora.errors import BadInput, one_line
from medsora.runtime.digests import sealed, unsealed
from medsora.runtime.files import (
    is_file,
    is_folder,
    make_folder,
    read_patiently,
    remove_leftovers,
    write_bytes,
    write_json,
    write_text,
    written_beside,
)
from medsora.runtime.versions import library_versions
from medsora.saved.checkpoint import Checkpoint, checkpoint_folders, latest_checkpoint
from medsora.training.schedule import of_total
from medsora.vae.choices import DEFAULT_COMPENSATION

log = logging.getLogger(__name__)

LOCK, SAVED = "lock.txt", "saved.txt"
PATIENCE_S = 10.0  # a process that received a stop signal may still be saving
MAX_LOGGED = 2**53  # larger whole numbers are damage
ELAPSED = "speed/elapsed_s"  # seconds in this and earlier processes, without starts and discarded steps


class RunFolder:
    """One stage's folder. Only the main process writes."""

    def __init__(self, path: Path, config: Config, stage: str, accelerator: Accelerator) -> None:
        """Open or make the folder of `stage` ("train_vae", "train_dit" or "train_ar").

        Raises `BadInput` if it cannot be written or read, has lost its checkpoints, or holds a run whose
        config differs in a way that matters.
        """
        self.path, self.stage, self.accelerator = path, stage, accelerator
        self.main = accelerator.is_main_process
        self._opened, self._elapsed_before_s = time.monotonic(), 0.0
        self.checkpoints, self.samples = path / "checkpoints", path / "samples"
        if self.main:  # before the config is read: the former holder may have written it
            with self.writing():
                make_folder(path)
                self._lock = hold_folder(path)
        refuse_lost(path)
        self.previous = previous_config(path)
        if self.previous is not None:
            refuse_changes(self.previous, config, stage, path)
        if self.main:
            with self.writing():
                remove_leftovers(path)
                remove_leftovers(self.samples, below="step-*")
                with written_beside(path / "config.yaml") as beside:  # other processes may be reading it
                    save_config(config, beside)
                write_text(path / "command.txt", shlex.join(sys.argv) + "\n")
                write_json(path / "versions.json", library_versions())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an `OSError` while something is written to the folder into `BadInput`."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error).rstrip(".")
            raise BadInput(
                f"the run folder {self.path} cannot be written ({reason}); make room and start "
                "the same command again, or set run.dir to another place."
            ) from error

    def restart_clock(self) -> None:
        """Count this process's seconds from here on: building models and opening caches is no training."""
        self._opened = time.monotonic()

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None; what was logged after it is dropped.

        The main process looks for it, sets damaged ones aside, and broadcasts it.
        """
        newest = [None]
        if self.main:
            newest = [latest_checkpoint(self.checkpoints, self.notify)]
            self._cut_log(newest[0].step if newest[0] else 0)
        return broadcast_object_list(newest)[0]

    def note_saved(self) -> None:
        """Remember that there was a checkpoint (main process)."""
        if not is_file(self.path / SAVED):
            with self.writing():
                write_text(self.path / SAVED, "This run has had a checkpoint.\n")

    def announce(self, checkpoint: Checkpoint, total_steps: int) -> None:
        """Print where the run resumes, and whether its result still equals that of an uninterrupted run."""
        if checkpoint.step > total_steps:
            self.notify(
                f"nothing left to train: the run has done {checkpoint.step} steps and ends after "
                f"{total_steps} ({self.stage}.max_steps or {self.stage}.epochs); raise that to train on, "
                "or take another run.name to begin anew."
            )
        else:
            self.notify(f"resuming after step {checkpoint.step}{of_total(total_steps)}.")
        before, now = checkpoint.state.get("processes"), self.accelerator.num_processes
        if before not in (None, now):
            self.notify(
                f"the number of processes was {before} and is {now}: every clip comes in the same order, but "
                "sums are rounded differently: the result is not bit for bit that of a run with one number."
            )

    def has_logged(self, step: int, prefix: str) -> bool:
        """Return whether metrics whose names start with `prefix` were logged at `step` (main process)."""
        return any(
            line["step"] == step and any(name.startswith(prefix) for name in line)
            for line in read_log(self.path)
        )

    def notify(self, sentence: str) -> None:
        """Print one sentence and keep it in messages.txt."""
        if self.main:
            sentence = one_line(sentence)
            tqdm.write(sentence, file=sys.stderr)  # not into the line of a progress bar
            self._append_message(sentence)

    def keep(self, sentences: Iterable[str]) -> None:
        """Keep sentences that were printed before there was a folder in messages.txt, each only once."""
        path = self.path / "messages.txt"
        before = read_patiently(Path.read_bytes, path) if self.main and is_file(path) else b""
        kept = before.decode(errors="replace").splitlines()
        for sentence in dict.fromkeys(sentences):
            if self.main and sentence not in kept:
                self._append_message(sentence)

    def _append_message(self, sentence: str) -> None:
        with self.writing(), (self.path / "messages.txt").open("a", encoding="utf-8") as file:
            file.write(sentence + "\n")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to log.jsonl, with the seconds that the run has taken, and inform the trackers."""
        if self.main:
            elapsed_s = self._elapsed_before_s + time.monotonic() - self._opened
            line = sealed({"step": step, **metrics, ELAPSED: round(elapsed_s, 1)})
            with self.writing(), (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        with self.writing():
            self.accelerator.log(
                {key: value for key, value in metrics.items() if math.isfinite(value)}, step=step
            )

    def _cut_log(self, step: int) -> None:
        """Drop the lines of steps after `step`, which are taken again; with 0 all: nothing was saved."""
        path = self.path / "log.jsonl"
        if is_file(path):
            kept = [(text, line) for text, line in _log_lines(self.path) if line["step"] <= step != 0]
            write_bytes(path, b"".join(text + b"\n" for text, _ in kept))
            self._elapsed_before_s = max((line.get(ELAPSED, 0.0) for _, line in kept), default=0.0)


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the metrics that a run logged, one dictionary per line; damaged lines are left out.

    Raises `BadInput` if the log cannot be read.
    """
    return [line for _, line in _log_lines(run)]


def _log_lines(run: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the sound lines of a run's log, as they stand there and their contents."""
    path = run / "log.jsonl"
    texts = read_patiently(Path.read_bytes, path).split(b"\n") if is_file(path) else []
    return [(text, line) for text in texts if (line := _log_line(text)) is not None]


def _log_line(text: bytes) -> dict[str, Any] | None:
    """Return the contents of a line of the log; None for one that is half written or damaged."""
    try:
        line = unsealed(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    if type(line.get("step")) is not int or line["step"] < 0:
        return None
    sound = all(type(n) is float or (type(n) is int and abs(n) <= MAX_LOGGED) for n in line.values())
    return line if sound else None


def previous_config(path: Path) -> Config | None:
    """Return the config of the run in the folder `path`, None if none was begun there.

    Runs that do not name their `vae.compensation_kind` were begun before there was a choice: they are causal.
    """
    if not (is_folder(path / "checkpoints") and is_file(path / "config.yaml")):
        return None
    return _with_kind(load_config(path / "config.yaml", outputs_anywhere=True), "causal")


def with_compensation_kind(config: Config) -> Config:
    """Return stage 1's `config` with "auto" resolved: to the continued run's kind, or the default."""
    previous = previous_config(config.vae_dir)
    return _with_kind(config, previous.vae.compensation_kind if previous else DEFAULT_COMPENSATION)


def _with_kind(config: Config, kind: str) -> Config:
    if config.vae.compensation_kind != "auto":
        return config
    return dataclasses.replace(config, vae=dataclasses.replace(config.vae, compensation_kind=kind))


def refuse_changes(before: Config, now: Config, stage: str, path: Path) -> None:
    """Raise `BadInput`, naming the key, if `stage` of the run in `path` is not what `now` describes."""
    old, new, keys = _flat(config_to_dict(before)), _flat(config_to_dict(now)), all_keys()
    for name in sorted(old.keys() | new.keys()):
        key = keys[".".join(name.split(".")[:2])]  # values may be mappings
        if key.is_read_by(stage) and key.resume == FIXED and old.get(name) != new.get(name):
            raise BadInput(
                f"{path} holds a run with {name}={old.get(name)}, but now it is {new.get(name)}; "
                "take another run.name, or put the value back to resume that run."
            )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        flat = {}
        for key, value in values.items():
            flat |= _flat(value, f"{prefix}{key}.")
        return flat
    return {prefix[:-1]: values}


def refuse_lost(path: Path) -> None:
    """Raise `BadInput` if a run folder had checkpoints and holds none now."""
    checkpoints = path / "checkpoints"
    if is_file(path / SAVED) and not checkpoint_folders(checkpoints):
        raise BadInput(
            f"{path} had checkpoints but {checkpoints} holds none now: put them back, check that its file "
            f"system is mounted, or take another run.name; without {path / SAVED} the run begins anew."
        )


def hold_folder(folder: Path, patience_s: float = PATIENCE_S) -> TextIO:
    """Take `folder` for this process until the returned file is closed or the process ends, however it ends.

    Raises `BadInput` naming the holder if another process keeps it for longer than `patience_s` seconds. A
    file system without locks is only warned of.
    """
    file = (folder / LOCK).open("a+", encoding="utf-8")
    give_up = time.monotonic() + patience_s
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning("%s cannot be locked (%s): see to it that only one run uses it.", folder, error)
                return file
            if time.monotonic() > give_up:
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                raise BadInput(
                    f"{folder} is in use by {holder}; wait until that run ends or stop it, or take another "
                    "run.name."
                ) from None
            time.sleep(0.2)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    return file
