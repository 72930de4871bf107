"""Functions whose tests pass although they return None: `python -m tools.untested [MODULE ...]`.

Every public function and method of the modules (all, or those whose names begin with a MODULE) is replaced in
turn by one that returns None, and the test files that belong to its module run up to the first failure, each
time in a process forked from this one, which has imported everything. Functions whose tests still pass are
listed. What tests call only in processes of their own is listed too: the replacement does not reach those.

Outcomes are appended to a file, and those of an unchanged module with unchanged tests are taken from there.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("medsora", "vae", "flow_prior", "kernels", "benchmarks", "tools")
LEAVES = ("vae", "flow_prior", "kernels")  # imported as medsora.vae and so on
RESULTS = Path("runs") / "untested.jsonl"
NAME = re.compile(r"\b(?:medsora|benchmarks|tools)(?:\.\w+)+")
UNTESTED, NOTICED, SLOW = "untested", "noticed", "too slow"
QUIET = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return the file of every module of the product by import name, packages' `__init__` left out."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            if path.name != "__init__.py":
                name = ".".join(path.relative_to(root).with_suffix("").parts)
                found[f"medsora.{name}" if folder in LEAVES else name] = path
    return found


def find_tests(root: Path = ROOT) -> dict[str, list[Path]]:
    """Return the test files of every module: `tests/X/test_Y.py` for `X/Y.py`, then those that name it.

    A test file names modules in its docstring's first paragraph, before the first colon.
    """
    found: dict[str, list[Path]] = {}
    by_path = {path.relative_to(root): name for name, path in modules(root).items()}
    for path in sorted((root / "tests").rglob("test_*.py")):
        folder = path.parent.relative_to(root / "tests")
        for stem in (path.stem.removeprefix("test_"), f"__{path.stem.removeprefix('test_')}__"):
            if own := by_path.get(folder / f"{stem}.py"):
                found.setdefault(own, []).insert(0, path)
        for name in named_in(path):
            if path not in found.setdefault(name, []):
                found[name].append(path)
    return found


def named_in(test_file: Path) -> list[str]:
    """Return the modules that a test file's docstring names."""
    doc = ast.get_docstring(ast.parse(test_file.read_text(encoding="utf-8"))) or ""
    head, colon, _ = doc.partition("\n\n")[0].partition(":")
    return NAME.findall(head) if colon else []


def public_functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions and methods that `module` defines under a public name, as `f` or `Class.f`."""
    for name, value in list(vars(module).items()):
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            if getattr(value, "_is_protocol", False):
                continue
            for method, member in list(vars(value).items()):
                function = _function(member)
                if function and (not method.startswith("_") or method == "__call__"):
                    yield f"{name}.{method}", function
        elif function := _function(value):
            yield name, function


def return_none(function: FunctionType) -> None:
    """Let `function` return None, whoever holds it and under whichever name."""
    code = (lambda *arguments, **options: None).__code__
    function.__code__ = code.replace(co_freevars=function.__code__.co_freevars)


def outcome_of(change: Callable[[], object], test_files: Sequence[Path], limit_s: float) -> str:
    """Run test files in a forked process after `change`; return UNTESTED if they pass, NOTICED or SLOW."""
    with tempfile.TemporaryDirectory(prefix="untested-") as scratch:
        if (child := os.fork()) == 0:
            status = 1
            try:
                os.setsid()
                sink = os.open(os.devnull, os.O_RDWR)
                for stream in range(3):
                    os.dup2(sink, stream)
                change()
                arguments = [*QUIET, f"--basetemp={scratch}/tests", *map(str, test_files)]
                status = int(pytest.main(arguments))
            finally:
                os._exit(status)
        return _wait(child, time.monotonic() + limit_s)


def main() -> int:
    """Try what the command line names; print and count what is untested."""
    parser = argparse.ArgumentParser(prog="python -m tools.untested", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("modules", nargs="*", metavar="MODULE", help="such as medsora.runtime (default: all)")
    add("--limit", type=float, default=120, metavar="S", help="for a module's tests (default: %(default)s)")
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="(default: %(default)s)")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # a forked process does not inherit the threads of a pool
    options.results.parent.mkdir(parents=True, exist_ok=True)
    test_files, listed = find_tests(), []
    for name, path in modules().items():
        if not options.modules or any(f"{name}.".startswith(f"{wanted}.") for wanted in options.modules):
            listed += try_module(name, path, test_files.get(name, []), options.limit, options.results)
    print(f"\n{len(listed)} untested", *listed, sep="\n  ")
    return 1 if listed else 0


def try_module(name: str, path: Path, test_files: Sequence[Path], limit_s: float, results: Path) -> list[str]:
    """Return the functions of one module that no test notices, and print the outcome of each."""
    if not _defines_functions(path):
        return []
    fixtures = {folder / "conftest.py" for file in test_files for folder in file.parents}
    for file in (path, *filter(Path.exists, sorted(fixtures)), *test_files):
        _import(file)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in (path, *test_files))).hexdigest()[:16]
    known, listed = _known(results, digest), []

    def outcome(function: str, change: Callable[[], object]) -> str:
        if function not in known:
            began = time.monotonic()
            known[function] = outcome_of(change, test_files, limit_s) if test_files else UNTESTED
            line = {"digest": digest, "function": function, "outcome": known[function]}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"seconds": round(time.monotonic() - began, 1)}) + "\n")
        return known[function]

    unchanged = outcome(name, lambda: None)
    if unchanged != UNTESTED:
        print(f"{name}: skipped, its tests {'fail' if unchanged == NOTICED else 'take too long'} as it is")
        return []
    for function_name, function in public_functions(sys.modules[name]):
        found = outcome(f"{name}.{function_name}", lambda function=function: return_none(function))
        print(f"{name}.{function_name}: {found}", flush=True)
        if found == UNTESTED:
            listed.append(f"{name}.{function_name}")
    return listed


def _function(value: object) -> FunctionType | None:
    """Return the plain function inside a function, decorated function, method or property."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, cached_property):
        value = value.func
    value = inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, FunctionType) else None


def _wait(child: int, until: float) -> str:
    try:
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                passed = os.waitstatus_to_exitcode(status) == pytest.ExitCode.OK
                return UNTESTED if passed else NOTICED
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
    with suppress(pytest.skip.Exception):
        import_module(f"medsora.{name}" if name.split(".")[0] in LEAVES else name)


def _known(results: Path, digest: str) -> dict[str, str]:
    if not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return {line["function"]: line["outcome"] for line in lines if line["digest"] == digest}


if __name__ == "__main__":
    sys.exit(main())
