"""The structure of the repository: import directions, no cycles, folders one can overlook."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LEAVES = ("vae", "flow_prior", "kernels")
# Rooms of medsora from the ground up; a file may import from its own room and from those on lower floors.
FLOORS = (
    {"errors", "version", "checkout"},
    {"runtime"},
    {"config"},
    {"diffusion", "tables"},
    {"sampler", "spiral"},
    {"denoiser", "data", "html_report"},
    {"baselines"},
    {"saved"},
    {"sampling"},
    {"training", "evaluation"},
    {"project", "studies"},
    {"downstream"},
    {"demo", "app"},
    {"__main__"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MAX_FILES = 14  # Python files directly in one folder, `__init__.py` apart
MAX_LOOSE = 10  # modules directly in medsora/


def modules() -> dict[str, Path]:
    """Every module of the package by its import name."""
    found = {}
    for top in ("medsora", *LEAVES):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name if top == "medsora" else f"medsora.{name}"] = path
    return found


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    """What a file imports, late imports and `import_module("...")` included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found


ARROWS = {name: imports_of(path) & set(MODULES) for name, path in MODULES.items()}


def room(module: str) -> str | None:
    """The second part of a module's name; None for medsora itself."""
    return module.split(".")[1] if "." in module else None


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in MODULES} - set(FLOOR_OF) - set(LEAVES) == {None}


def test_leaves_import_nobody() -> None:
    wrong = {
        (name, other)
        for name, others in ARROWS.items()
        for other in others
        if room(name) in LEAVES and room(other) != room(name) and other != "medsora.checkout"
    }
    assert not wrong


def test_medsora_imports_downwards_only() -> None:
    wrong = set()
    for name, others in ARROWS.items():
        own = room(name)
        for other in map(room, others):
            if own in FLOOR_OF and other in FLOOR_OF and other != own and FLOOR_OF[other] >= FLOOR_OF[own]:
                wrong.add((name, other))
    assert not wrong


def test_no_cycles_between_modules() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a cycle: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for other in sorted(ARROWS[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in ARROWS:
        visit(name, ())


@pytest.mark.parametrize("package", ["medsora", *LEAVES, "benchmarks"])
def test_packages_never_import_tests_or_scripts(package: str) -> None:
    above = {"tests", "tools", "train_vae", "train_dit", "sample_ddim", "evaluate"} | (
        {"benchmarks"} - {package}
    )
    for path in (ROOT / package).rglob("*.py"):
        assert not {name.split(".")[0] for name in imports_of(path)} & above, path


def test_no_folder_is_crowded() -> None:
    tops = ("medsora", *LEAVES, "benchmarks", "tests", "tools", "configs")
    files = [path for top in tops for path in (ROOT / top).rglob("*.py") if path.name != "__init__.py"]
    counts = Counter(path.parent.relative_to(ROOT) for path in files)
    assert not {str(folder): count for folder, count in counts.items() if count > MAX_FILES}
    assert counts[Path("medsora")] <= MAX_LOOSE
