"""tools.untested, tools.recorded_calls: functions that no test notices, and the tests of a module."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tools import untested
from tools.recorded_calls import public_functions, return_none
from tools.untested import find_tests, in_session, modules, named_in, outcome_of, record

MODULE = """
from contextlib import contextmanager
from functools import lru_cache, partial
from os.path import join

@lru_cache
def seen(x, *, y=1): return x + y
def unseen(x): return x
def hangs(x): return x
def kept(): return 9
def elsewhere(): return 10
def uncalled(): return 11
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
import subprocess, sys
import pytest
import sample_to_test as m
def test_seen(): assert m.seen(1) == m.held() == 2
def test_unseen(): m.unseen(1)
def test_hangs():
    while m.hangs(1) is None: pass
def test_part(): assert (m.Part().start(), m.Part.made().size, m.Part.constant(), m.Part()()) == (2, 2, 5, 6)
def test_opened():
    with m.opened() as value: assert value == 3
@pytest.fixture(scope="module")
def kept(): return m.kept()
def test_kept(kept): pass
def test_kept_again(kept): assert kept == 9
def test_elsewhere():
    code = "import sample_to_test as m; assert m.elsewhere() == 10"
    subprocess.run([sys.executable, "-c", code], check=True)
def test_broken(): assert m.elsewhere() == 11
"""


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "sample_to_test.py").write_text(MODULE)
    (tmp_path / "test_of_the_sample.py").write_text(TESTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(untested, "ROOT", tmp_path)
    monkeypatch.setattr(untested, "FOLDERS", ("",))
    yield import_module("sample_to_test")
    for name in ("sample_to_test", "test_of_the_sample"):
        sys.modules.pop(name, None)


def test_public_functions_are_those_that_a_module_defines(sample: ModuleType) -> None:
    methods = ("start", "size", "made", "constant", "__call__")
    names = {"seen", "unseen", "hangs", "kept", "elsewhere", "uncalled", "opened", "Base.start"}
    names |= {f"Part.{name}" for name in methods}
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


def test_a_record_says_which_test_calls_what(sample: ModuleType, tmp_path: Path) -> None:
    def called(name: str) -> set[str]:
        place = f"/sample_to_test.py:{dict(public_functions(sample))[name].__code__.co_firstlineno}"
        return {test.partition("::")[2] for test, (_, places) in found[0].items() if place in places}

    result = tmp_path / "found.json"

    def work(items: list[pytest.Item]) -> None:
        result.write_text(json.dumps(record([item for item in items if item.name != "test_hangs"], 60)))

    in_session([tmp_path / "test_of_the_sample.py"], work)
    found = json.loads(result.read_text())
    assert found[1], "all have run"
    assert "test_of_the_sample.py::test_broken" not in found[0]
    assert called("seen") == {"test_seen"}
    assert called("kept") == {"test_kept", "test_kept_again"}, "both need what it made"
    assert called("elsewhere") == {"test_elsewhere"}, "in a process of its own"
    assert called("uncalled") == set()


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("seen", "noticed"),
        ("unseen", "untested"),
        ("hangs", "too slow"),
        ("kept", "noticed"),
        ("elsewhere", "noticed"),
        ("uncalled", "untested"),
        ("opened", "noticed"),
        ("Part.start", "noticed"),
    ],
)
def test_what_no_test_notices_is_distinguished_from_the_rest(
    name: str, outcome: str, sample: ModuleType, tmp_path: Path
) -> None:
    result = tmp_path / "outcome"

    def change() -> None:
        return_none(dict(public_functions(sample))[name])

    def work(items: list[pytest.Item]) -> None:
        if name == "elsewhere":
            items = [item for item in items if item.name == "test_elsewhere"]
            result.write_text(untested._try("sample_to_test", name, items, 60))
        else:
            items = [
                item for item in items if name == "hangs" or item.name not in ("test_hangs", "test_broken")
            ]
            result.write_text(outcome_of(change, items, 1 if name == "hangs" else 60))

    in_session([tmp_path / "test_of_the_sample.py"], work)
    assert result.read_text() == outcome
    assert sample.seen(1) == 2, "this process is left as it was"


def test_outcomes_are_taken_from_the_file_while_nothing_changes(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, results = tmp_path / "sample_to_test.py", tmp_path / "results.jsonl"
    test_files = [tmp_path / "test_of_the_sample.py"]
    test_files[0].write_text(TESTS.replace("while m.hangs(1) is None: pass", "m.hangs(1)"))

    def tried() -> list[str]:
        return untested.try_module("sample_to_test", path, test_files, 60, 60, results)

    assert tried() == ["sample_to_test.unseen", "sample_to_test.hangs", "sample_to_test.uncalled"]
    lines = results.read_text()
    monkeypatch.setattr(untested, "in_session", lambda *_: pytest.fail("everything is known"))
    assert len(tried()) == 3
    assert results.read_text() == lines


@pytest.mark.parametrize("outcome", [untested.NOTICED, untested.UNTESTED, untested.SLOW, None])
def test_only_a_test_that_fails_notices_a_function_elsewhere(
    outcome: str | None, sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, results = tmp_path / "sample_to_test.py", tmp_path / "results.jsonl"
    monkeypatch.setattr(untested, "modules", lambda: {"sample_to_test": path})
    line = {"digest": untested._digest(path), "elsewhere": "sample_to_test.seen", "outcome": outcome}
    results.write_text("" if outcome is None else json.dumps(line))
    noticed = untested.noticed_elsewhere("sample_to_test.seen", 60, results)
    assert noticed == (outcome == untested.NOTICED)


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

    def try_module(name: str, path: Path, test_files: list[Path], *limits_s_and_results: object) -> list[str]:
        chosen.append((name, path.name, *limits_s_and_results[:2]))
        assert test_files
        return [f"{name}.f"] if name.endswith("tables") else []

    monkeypatch.setattr(untested, "try_module", try_module)
    monkeypatch.setattr(untested, "noticed_elsewhere", lambda *_: False)
    command = [
        "untested",
        "medsora.tables",
        "vae",
        "medsora.vae.layout",
        "--limit",
        "7",
        "--record-limit",
        "9",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--results", str(tmp_path / "runs" / "results.jsonl")])
    assert untested.main() == 1
    assert chosen == [("medsora.tables", "tables.py", 7, 9), ("medsora.vae.layout", "layout.py", 7, 9)]
    assert capsys.readouterr().out == "\n1 untested\n  medsora.tables.f\n"
    monkeypatch.setattr(sys, "argv", [*command[:1], "medsora.vae.layout"])
    monkeypatch.chdir(tmp_path)
    assert untested.main() == 0


def test_what_is_explained_is_there() -> None:
    for name, reason in untested.EXPLAINED.items():
        module = next(module for module in modules() if name.startswith(f"{module}."))
        functions = dict(public_functions(import_module(module)))
        assert name.removeprefix(f"{module}.") in functions
        assert reason
