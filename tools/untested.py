"""Functions whose tests pass although they return None: `python -m tools.untested [MODULE ...]`.

Every test file runs once with a record of which test calls which function, also in the processes that it
starts. Then every public function and method of the modules (all, or those whose names begin with a MODULE)
is replaced in turn by one that returns None, and those tests run that call it, the quickest first and up to
the first failure: those of its module's test files, then all that are recorded. Each try runs
in a process forked from one that has collected the tests. Functions whose tests still pass, and those that no
test calls, are listed unless `EXPLAINED` says why; "not reached" are those whose record took too long.

Records and outcomes are appended to a file; those of unchanged modules and tests are taken from there.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from tools.recorded_calls import (
    CALLER,
    RECORD,
    REPLACED,
    follow_calls,
    follow_children,
    place_of,
    public_functions,
    return_none,
    set_caller,
)

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("medsora", "vae", "flow_prior", "kernels", "benchmarks", "tools")
LEAVES = ("vae", "flow_prior", "kernels")  # imported as medsora.vae and so on
RESULTS = Path("runs") / "untested.jsonl"
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
NAME = re.compile(r"\b(?:medsora|benchmarks|tools)(?:\.\w+)+")
UNTESTED, NOTICED, SLOW, UNKNOWN = "untested", "noticed", "too slow", "not reached"
QUIET = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
FIXTURE, CACHED = "fixture ", type(cache(print))
# Why no test notices that these functions return None.
EXPLAINED = dict.fromkeys(
    (f"medsora.config.schema.{name}" for name in ("key", "section", "epochs_key", "betas_key")),
    "describes the keys while the module is imported, before it can be replaced",
)


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return the file of every module of the product by import name, packages' `__init__` left out."""
    paths = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            if path.name != "__init__.py":
                name = ".".join(path.relative_to(root).with_suffix("").parts)
                paths[f"medsora.{name}" if folder in LEAVES else name] = path
    return paths


def find_tests(root: Path = ROOT) -> dict[str, list[Path]]:
    """Return the test files of every module: `tests/X/test_Y.py` for `X/Y.py`, then those that name it.

    A test file names modules in its docstring's first paragraph, before the first colon.
    """
    tests: dict[str, list[Path]] = {}
    by_path = {path.relative_to(root): name for name, path in modules(root).items()}
    for path in sorted((root / "tests").rglob("test_*.py")):
        folder = path.parent.relative_to(root / "tests")
        for stem in (path.stem.removeprefix("test_"), f"__{path.stem.removeprefix('test_')}__"):
            if own := by_path.get(folder / f"{stem}.py"):
                tests.setdefault(own, []).insert(0, path)
        for name in named_in(path):
            if path not in tests.setdefault(name, []):
                tests[name].append(path)
    return tests


def named_in(test_file: Path) -> list[str]:
    """Return the modules that a test file's docstring names."""
    doc = DOCSTRING.match(test_file.read_text(encoding="utf-8"))
    head, colon, _ = doc[1].partition("\n\n")[0].partition(":") if doc else ("", "", "")
    return NAME.findall(head) if colon else []


def in_session(tests: Sequence[Path | str], work: Callable[[list[Any]], object]) -> None:
    """Let a forked process collect tests and call `work` with pytest's items, which it may run."""
    import pytest

    class Loop:
        def pytest_runtestloop(self, session: pytest.Session) -> bool:
            work(session.items)
            return True

    def run() -> int:
        arguments = [*QUIET, f"--basetemp={tempfile.gettempdir()}/tests", *map(str, tests)]
        return int(pytest.main(arguments, plugins=[Loop()]))

    _in_child(run, float("inf"))


def outcome_of(change: Callable[[], object], items: Sequence[Any], limit_s: float) -> str:
    """Run collected tests in a process of their own after `change`; return UNTESTED if all pass."""

    def run() -> int:
        change()
        return _failed(items, stop=True)

    return _in_child(run, limit_s)


def record(items: Sequence[Any], limit_s: float) -> tuple[dict[str, tuple[float, list[str]]], bool]:
    """Return seconds and called functions (`file:line`) of tests that pass, and whether all ran in time."""
    with tempfile.TemporaryDirectory(prefix="untested-") as folder:
        calls, passed = Path(folder, "calls"), Path(folder, "passed")
        calls.touch()
        passed.touch()

        def run() -> int:
            items[0].config.pluginmanager.register(_recorder(passed))
            _forget(*(name for name in modules() if name in sys.modules))
            os.environ[RECORD] = os.pathsep.join((str(calls), str(ROOT), *FOLDERS))
            follow_children()
            follow_calls()
            return min(_failed(items, stop=False), 1)

        complete = _in_child(run, limit_s) != SLOW
        called: dict[str, set[str]] = {}
        for line in calls.read_text(encoding="utf-8").splitlines():
            caller, _, function = line.rpartition("\t")
            called.setdefault(caller, set()).add(function)
        lines = [json.loads(line) for line in passed.read_text(encoding="utf-8").splitlines()]
    records = {}
    for test, seconds, fixtures in lines:
        callers = (test, *(FIXTURE + name for name in fixtures))
        records[test] = (seconds, sorted(set().union(*(called.get(caller, ()) for caller in callers))))
    return records, complete


def main() -> int:
    """Try what the command line names; print and count what is untested."""
    parser = argparse.ArgumentParser(prog="python -m tools.untested", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("modules", nargs="*", metavar="MODULE", help="such as medsora.runtime (default: all)")
    add(
        "--limit",
        type=float,
        default=120,
        metavar="S",
        help="time limit for a function's tests (default: %(default)s)",
    )
    add(
        "--record-limit",
        type=float,
        default=1200,
        metavar="S",
        help="time limit for a test file (default: %(default)s)",
    )
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="(default: %(default)s)")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # a forked process does not inherit the threads of a pool
    options.results.parent.mkdir(parents=True, exist_ok=True)
    test_files, listed = find_tests(), []
    for name, path in modules().items():
        if not options.modules or any(f"{name}.".startswith(f"{wanted}.") for wanted in options.modules):
            limits_s = (options.limit, options.record_limit)
            listed += try_module(name, path, test_files.get(name, []), *limits_s, options.results)
    for function in sorted(set(listed) & set(EXPLAINED)):
        print(f"{function}: {EXPLAINED[function]}")
    listed = [
        function
        for function in listed
        if function not in EXPLAINED and not noticed_elsewhere(function, options.limit, options.results)
    ]
    print(f"\n{len(listed)} untested", *listed, sep="\n  ")
    return 1 if listed else 0


def try_module(
    name: str, path: Path, test_files: Sequence[Path], limit_s: float, record_limit_s: float, results: Path
) -> list[str]:
    """Return the functions of one module that no test of its own notices, and print the outcome of each."""
    if not _defines_functions(path):
        return []
    fixtures = {folder / "conftest.py" for file in test_files for folder in file.parents}
    for file in (path, *filter(Path.exists, sorted(fixtures)), *test_files):
        _import(file)
    digest = _digest(path, *test_files)
    functions = dict(public_functions(sys.modules[name]))
    known = _known(results, "function", digest)

    def work(items: list[Any]) -> None:
        calls, complete = {}, True
        for file in test_files:
            own = [item for item in items if item.path == file]
            recorded, whole = _recorded(file, own, record_limit_s, results)
            calls |= recorded
            complete = complete and whole
        for function in functions:
            if f"{name}.{function}" not in known:
                place = place_of(functions[function].__code__, str(ROOT))
                outcome = _try(name, function, _callers(place, calls, items), limit_s)
                outcome = UNKNOWN if outcome == UNTESTED and not complete else outcome
                _append(results, {"digest": digest, "function": f"{name}.{function}", "outcome": outcome})

    if test_files and any(f"{name}.{function}" not in known for function in functions):
        in_session(test_files, work)
        known = _known(results, "function", digest)
    outcomes = {f"{name}.{function}": known.get(f"{name}.{function}", UNTESTED) for function in functions}
    for function, outcome in outcomes.items():
        print(f"{function}: {outcome}", flush=True)
    return [function for function, outcome in outcomes.items() if outcome == UNTESTED]


def noticed_elsewhere(full_name: str, limit_s: float, results: Path) -> bool:
    """Return whether any recorded test notices that a function of an imported module returns None."""
    name = next(name for name in modules() if full_name.startswith(f"{name}."))
    function = full_name.removeprefix(f"{name}.")
    place = place_of(dict(public_functions(sys.modules[name]))[function].__code__, str(ROOT))
    records = {(line["test_file"], line["digest"]): line["outcome"] for line in _lines(results, "test_file")}
    calls = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        calls |= records.get((str(file.relative_to(ROOT)), _digest(file)), ({},))[0]
    files = sorted({ROOT / test.partition("::")[0] for test, (_, called) in calls.items() if place in called})
    digest = _digest(Path(sys.modules[name].__file__ or ""), *files)
    if full_name not in (known := _known(results, "elsewhere", digest)) and files:
        for file in files:
            _import(file)

        def work(items: list[Any]) -> None:
            outcome = _try(name, function, _callers(place, calls, items), limit_s)
            _append(results, {"digest": digest, "elsewhere": full_name, "outcome": outcome})

        in_session(files, work)
        known = _known(results, "elsewhere", digest)
    return known.get(full_name) == NOTICED


def _recorder(results: Path) -> object:
    import pytest

    class Recorder:
        """Write down every passing test with its seconds and fixtures, and who calls what."""

        def __init__(self) -> None:
            self.fixture_s: dict[str, float] = {}
            self.fixtures: list[str] = []

        def pytest_runtest_setup(self, item: Any) -> None:
            set_caller(item.nodeid)
            self.fixtures = list(item.fixturenames)

        @pytest.hookimpl(wrapper=True)
        def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
            outer, began = os.environ.get(CALLER, ""), time.monotonic()
            set_caller(FIXTURE + fixturedef.argname)
            try:
                return (yield)
            finally:
                set_caller(outer)
                self.fixture_s[fixturedef.argname] = time.monotonic() - began

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" and report.passed:
                seconds = report.duration + sum(self.fixture_s.get(name, 0) for name in self.fixtures)
                _append(results, (report.nodeid, round(seconds, 3), self.fixtures))

    return Recorder()


def _failed(items: Sequence[Any], stop: bool) -> int:
    """Run collected tests and return how many fail."""
    session = items[0].session
    for item, following in zip(items, (*items[1:], None), strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if stop and session.testsfailed:
            break
    return session.testsfailed


def _in_child(run: Callable[[], int], limit_s: float) -> str:
    """Return UNTESTED if `run` returns 0 in a forked process, NOTICED if not, SLOW after the limit."""
    with tempfile.TemporaryDirectory(prefix="untested-") as scratch:
        if (child := os.fork()) == 0:
            status = 1
            try:
                os.setsid()
                sink = os.open(os.devnull, os.O_RDWR)
                for stream in range(3):
                    os.dup2(sink, stream)
                os.environ["TMPDIR"] = tempfile.tempdir = scratch
                status = run()
            finally:
                os._exit(status)
        return _wait(child, time.monotonic() + limit_s)


def _try(module: str, function: str, items: Sequence[Any], limit_s: float) -> str:
    def change() -> None:
        _forget(module)
        os.environ[REPLACED] = f"{module}\t{function}"
        follow_children()
        return_none(dict(public_functions(sys.modules[module]))[function])

    return outcome_of(change, items, limit_s) if items else UNTESTED


def _forget(*names: str) -> None:
    """Empty the caches of modules: what is kept in one is not computed again."""
    for value in [value for name in names for value in vars(sys.modules[name]).values()]:
        if isinstance(value, CACHED):
            value.cache_clear()


def _callers(place: str, calls: dict[str, Any], items: Sequence[Any]) -> list[Any]:
    """Return the collected tests that call the function at `place`, the quickest first."""
    callers = [item for item in items if place in calls.get(item.nodeid, (0, ()))[1]]
    return sorted(callers, key=lambda item: calls[item.nodeid][0])


def _recorded(test_file: Path, items: Sequence[Any], limit_s: float, results: Path) -> tuple[Any, bool]:
    """Return what `record` has found, from the results if they have it whole or under no shorter limit."""
    digest, name = _digest(test_file), str(test_file.relative_to(ROOT))
    recorded, complete, limit_before_s = _known(results, "test_file", digest).get(name, ({}, False, 0))
    if not complete and limit_before_s < limit_s:
        recorded, complete = record(items, limit_s) if items else ({}, True)
        _append(results, {"digest": digest, "test_file": name, "outcome": (recorded, complete, limit_s)})
    return recorded, complete


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _append(file: Path, line: object) -> None:
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(line) + "\n")


def _wait(child: int, until: float) -> str:
    try:
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return UNTESTED if os.waitstatus_to_exitcode(status) == 0 else NOTICED
            time.sleep(0.02)
        _end_group(child)
        os.waitpid(child, 0)
        return SLOW
    finally:
        _end_group(child)  # what its tests have started and left


def _end_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _defines_functions(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(
        isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") for node in body
    )


def _import(path: Path) -> None:
    """Import a file once for all forked processes; tests that skip themselves are left to these."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    import pytest

    with suppress(pytest.skip.Exception):
        import_module(f"medsora.{name}" if name.split(".")[0] in LEAVES else name)


def _known(results: Path, kind: str, digest: str) -> dict[str, Any]:
    return {line[kind]: line["outcome"] for line in _lines(results, kind) if line["digest"] == digest}


def _lines(results: Path, kind: str) -> list[dict[str, Any]]:
    text = results.read_text(encoding="utf-8") if results.exists() else ""
    return [line for line in map(json.loads, text.splitlines()) if kind in line]


if __name__ == "__main__":
    sys.exit(main())
