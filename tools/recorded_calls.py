"""What the processes of tests do for `tools.untested`: record which functions are called, or replace one.

Processes that tests start load this file by its path (`follow_children`), so it needs the standard library
alone.
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

RECORD, CALLER, REPLACED = "UNTESTED_RECORD", "UNTESTED_CALLER", "UNTESTED_REPLACED"  # read by every process

_seen: dict[int, CodeType] = {}  # code that the present caller has called, held so that no other gets its id


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


def return_none(function: FunctionType) -> None:
    """Make `function` return None wherever it is referred to, under any name."""
    code = (lambda *arguments, **options: None).__code__
    function.__code__ = code.replace(co_freevars=function.__code__.co_freevars)


def follow() -> None:
    """Record calls or replace a function, as the environment requests, in a process that a test started."""
    if RECORD in os.environ:
        follow_calls()
    if REPLACED in os.environ:
        sys.meta_path.insert(0, _Replacing(*os.environ[REPLACED].split("\t")))


class _Replacing(MetaPathFinder):
    """Replace a function as soon as its module is imported."""

    def __init__(self, module: str, function: str) -> None:
        self.module, self.function = module, function

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                return_none(dict(public_functions(module))[self.function])

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def set_caller(name: str) -> None:
    """Name the test or fixture that calls from now on."""
    os.environ[CALLER] = name
    _seen.clear()


def follow_calls() -> None:
    """Append to the record which functions of the product are called, once for every caller."""
    calls, root, *names = os.environ[RECORD].split(os.pathsep)
    sink = os.open(calls, os.O_WRONLY | os.O_APPEND)
    folders = tuple(os.path.join(root, name, "") for name in names)

    def called(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and id(frame.f_code) not in _seen:
            _seen[id(frame.f_code)] = frame.f_code
            if frame.f_code.co_filename.startswith(folders):
                with suppress(OSError):
                    os.write(sink, f"{os.environ.get(CALLER, '')}\t{place_of(frame.f_code, root)}\n".encode())

    threading.setprofile(called)
    sys.setprofile(called)


def follow_children() -> None:
    """Let Python processes that are started from here call `follow`."""
    folder = tempfile.mkdtemp(prefix="untested-")
    Path(folder, "sitecustomize.py").write_text(
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        f"spec = spec_from_file_location('recorded_calls', {str(Path(__file__).resolve())!r})\n"
        "module = module_from_spec(spec)\nspec.loader.exec_module(module)\nmodule.follow()\n",
        encoding="utf-8",
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))


def place_of(code: CodeType, root: str) -> str:
    """Return `file:line` of a function, the file's name below `root`."""
    return f"{code.co_filename.removeprefix(root)}:{code.co_firstlineno}"
