"""How the benchmarks measure and keep what they find: turn by turn, medians, ratios with their range."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results.jsonl"
PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d", "diffusers")


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: the median over rounds, with the smallest and the largest round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f}-{self.high:.2f})"


Times = dict[str, list[float]]


def warm_ups(device: torch.device) -> int:
    """Return how often `take_turns` calls each work before it is timed."""
    return 2 if device.type == "cuda" else 1


def take_turns(works: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> Times:
    """Seconds of each work in each round, A B A B ..., after a warm-up of each."""
    times: Times = {name: [] for name in works}
    for _ in range(warm_ups(device)):
        for work in works.values():
            work()
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return times


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Duration of one call; on a GPU by events, until its work is done."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def ratio(slow: list[float], fast: list[float]) -> Ratio:
    """Summarise two works' seconds, round by round."""
    rounds = [a / b for a, b in zip(slow, fast, strict=True)]
    return Ratio(statistics.median(rounds), min(rounds), max(rounds))


def peak_bytes(work: Callable[[], object]) -> int:
    """Memory of the GPU that a call takes beyond what is held before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def peak_mib(work: Callable[[], object]) -> float:
    """`peak_bytes` in MiB."""
    return round(peak_bytes(work) / 2**20, 1)


def positive(text: str) -> int:
    """Return a whole number above 0 of a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text}")
    return int(text)


def median_ms(times: list[float]) -> float:
    """Milliseconds."""
    return 1e3 * statistics.median(times)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def _circumstances(device: torch.device) -> dict[str, Any]:
    """What a measured value depends on besides the code: machine, versions, commit, other work on it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "machine": device_name(device),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def keep(benchmark: str, device: torch.device, values: dict[str, Any], path: Path = RESULTS) -> None:
    """Append a line to the results."""
    entry = {"benchmark": benchmark, **_circumstances(device), "figures": values}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, default=_as_json) + "\n")


def _as_json(value: Any) -> Any:
    if isinstance(value, Ratio):
        return {key: round(number, 4) for key, number in asdict(value).items()}
    raise TypeError(f"{type(value).__name__} cannot be kept")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """The checkout's commit, marked if files differ from it; a copy without git names none."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", ":/", f":(exclude){RESULTS.name}")
        return git("rev-parse", "--short=12", "HEAD") + (" changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
