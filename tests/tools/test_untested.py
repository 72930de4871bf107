"""Functions that no test notices are found; tests are found by their path or by their first line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tools import untested
from tools.untested import find_tests, modules, named_in, outcome_of, public_functions, return_none

MODULE = """
from contextlib import contextmanager
from functools import lru_cache, partial
from os.path import join

@lru_cache
def seen(x, *, y=1): return x + y
def unseen(x): return x
def hangs(x): return x
@contextmanager
def opened(): yield 3
held = partial(seen, 1)

class Base:
    def start(self): return 1
class Part(Base):
    def __init__(self): self.value = super().start()
    def start(self): return 1 + super().start()
    @property
    def size(self): return 2
    @classmethod
    def made(cls): return cls()
    @staticmethod
    def constant(): return 5
    def __call__(self): return 6
    def _private(self): return 7
def _private(): return 8
"""
TESTS = """
import sample_to_test as m
def test_seen(): assert m.seen(1) == m.held() == 2
def test_unseen(): m.unseen(1)
def test_hangs():
    while m.hangs(1) is None: pass
def test_part(): assert (m.Part().start(), m.Part.made().size, m.Part.constant(), m.Part()()) == (2, 2, 5, 6)
def test_opened():
    with m.opened() as value: assert value == 3
"""


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "sample_to_test.py").write_text(MODULE)
    (tmp_path / "test_of_the_sample.py").write_text(TESTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("sample_to_test")
    del sys.modules["sample_to_test"]


def test_public_functions_are_those_that_a_module_defines(sample: ModuleType) -> None:
    methods = ("start", "size", "made", "constant", "__call__")
    names = {"seen", "unseen", "hangs", "opened", "Base.start", *(f"Part.{name}" for name in methods)}
    assert {name for name, _ in public_functions(sample)} == names


def test_a_replaced_function_returns_none_whoever_holds_it(sample: ModuleType) -> None:
    functions = dict(public_functions(sample))
    part, held, start = sample.Part(), sample.held, sample.Part.start
    for name in ("seen", "Part.start", "Part.size", "Part.made", "Part.constant", "Part.__call__"):
        return_none(functions[name])
    found = [held(), sample.seen(1, y=2), start(part), part.size, sample.Part.made(), part.constant(), part()]
    assert found == [None] * len(found)
    return_none(functions["opened"])
    with pytest.raises(TypeError), sample.opened():
        pass


def test_what_no_test_notices_is_distinguished_from_the_rest(sample: ModuleType, tmp_path: Path) -> None:
    test_files = [tmp_path / "test_of_the_sample.py"]
    outcomes = {
        name: outcome_of(lambda f=function: return_none(f), test_files, 1 if name == "hangs" else 60)
        for name, function in public_functions(sample)
        if name in ("seen", "unseen", "hangs", "opened", "Part.start")
    }
    assert outcomes == {
        "seen": "noticed",
        "unseen": "untested",
        "hangs": "too slow",
        "opened": "noticed",
        "Part.start": "noticed",
    }
    assert sample.seen(1) == 2, "this process is left as it was"


def test_outcomes_are_taken_from_the_file_while_nothing_changes(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(untested, "ROOT", tmp_path)
    path, results, tried = tmp_path / "sample_to_test.py", tmp_path / "results.jsonl", []

    def outcome(change: object, test_files: object, limit_s: float) -> str:
        tried.append(change)
        return "untested" if len(tried) in (1, 3) else "noticed"

    monkeypatch.setattr(untested, "outcome_of", outcome)
    test_files = [tmp_path / "test_of_the_sample.py"]
    first = untested.try_module("sample_to_test", path, test_files, 60, results)
    assert first == ["sample_to_test.unseen"]
    count = len(tried)
    assert count == 1 + len(list(public_functions(sample)))
    assert untested.try_module("sample_to_test", path, test_files, 60, results) == first
    assert len(tried) == count
    test_files[0].write_text(TESTS + "\n")
    assert untested.try_module("sample_to_test", path, test_files, 60, results) == []
    assert "skipped, its tests fail" in capsys.readouterr().out
    sys.modules.pop("test_of_the_sample", None)


def test_tests_are_found_by_path_and_by_their_first_line(tmp_path: Path) -> None:
    for name in ("medsora/a.py", "medsora/b.py", "medsora/c/__main__.py", "vae/d.py", "medsora/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    texts = {
        "medsora/test_a.py": '"""About a: medsora.b is a word of a sentence only."""',
        "medsora/c/test_main.py": '"""Commands."""',
        "vae/test_both.py": '"""medsora.vae.d,\nmedsora.b: both.\n\nmedsora.a: not here."""',
    }
    for name, text in texts.items():
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).write_text(text)
    tests = tmp_path / "tests"
    assert set(modules(tmp_path)) == {"medsora.a", "medsora.b", "medsora.c.__main__", "medsora.vae.d"}
    assert named_in(tests / "vae" / "test_both.py") == ["medsora.vae.d", "medsora.b"]
    assert find_tests(tmp_path) == {
        "medsora.a": [tests / "medsora" / "test_a.py"],
        "medsora.b": [tests / "vae" / "test_both.py"],
        "medsora.c.__main__": [tests / "medsora" / "c" / "test_main.py"],
        "medsora.vae.d": [tests / "vae" / "test_both.py"],
    }


def test_the_command_line_chooses_modules_and_prints_what_is_untested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = []

    def try_module(name: str, path: Path, test_files: list[Path], limit_s: float, results: Path) -> list[str]:
        chosen.append((name, path.name, limit_s))
        assert test_files
        return [f"{name}.f"] if name.endswith("tables") else []

    monkeypatch.setattr(untested, "try_module", try_module)
    command = ["untested", "medsora.tables", "vae", "medsora.vae.layout", "--limit", "7"]
    monkeypatch.setattr(sys, "argv", [*command, "--results", str(tmp_path / "runs" / "results.jsonl")])
    assert untested.main() == 1
    assert chosen == [("medsora.tables", "tables.py", 7), ("medsora.vae.layout", "layout.py", 7)]
    assert capsys.readouterr().out == "\n1 untested\n  medsora.tables.f\n"
    monkeypatch.setattr(sys, "argv", [*command[:1], "medsora.vae.layout"])
    monkeypatch.chdir(tmp_path)
    assert untested.main() == 0
