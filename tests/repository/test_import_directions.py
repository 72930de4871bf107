"""The arrows of the house: scripts -> medsora -> {vae, flow_prior, kernels}, and no cycles inside medsora."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("medsora", "vae", "flow_prior", "kernels")
LEAVES = ("vae", "flow_prior", "kernels")
# Rooms of medsora from the ground up; a file may import from its own room and from those before it.
STOREYS = (
    {"errors", "name_guard", "choices", "presets", "config", "config_checks", "config_file", "cli", "crop"}
    | {"config_reference", "spiral", "tables", "synthetic", "hub", "progress_bar"},
    {"denoiser", "diffusion", "data", "report"},
    {"model_folder", "model_card", "conditions", "saved_pipeline", "pipeline"},
    {"training", "evaluation", "sampling_run"},
    {"demo", "demo_pace", "demo_proof", "demo_report", "project_fit", "new_project", "export_model", "app"},
    {"__main__"},
)


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {value.value for value in node.args if isinstance(value, ast.Constant)}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_import_nobody(leaf: str) -> None:
    files = files_of(leaf)
    assert files
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in files
        for name in imported_modules(path)
        if name.split(".")[0] != leaf
    }
    assert not wrong


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def test_medsora_imports_downwards_only() -> None:
    height = {name: storey for storey, names in enumerate(STOREYS) for name in names}
    wrong = set()
    for path in files_of("medsora"):
        relative = path.relative_to(ROOT / "medsora")
        own = relative.parts[0].removesuffix(".py")
        if own == "__init__":
            continue  # its names load on first use
        assert own in height, f"medsora/{relative}: which storey does it belong to?"
        for name in imported_modules(path):
            other = room(name) if name.startswith("medsora") else None
            if other in height and height[other] > height[own]:
                wrong.add((str(relative), name))
    assert not wrong


def test_no_cycles_between_rooms_of_one_storey() -> None:
    arrows = {}
    for path in files_of("medsora"):
        own = path.relative_to(ROOT / "medsora").parts[0].removesuffix(".py")
        names = {room(name) for name in imported_modules(path) if name.startswith("medsora.")}
        arrows.setdefault(own, set()).update(names - {own, None})
    assert_no_cycle({name: others for name, others in arrows.items() if name != "__init__"})


@pytest.mark.parametrize("leaf", LEAVES)
def test_no_cycles_between_files_of_a_leaf(leaf: str) -> None:
    """Late imports count. A package's `__init__.py` is left out: whoever imports a file of it runs that."""
    imports = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): imported_modules(path)
        for path in files_of(leaf)
        if path.stem != "__init__"
    }
    assert_no_cycle({name: others & imports.keys() for name, others in imports.items()})


def assert_no_cycle(imports: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for other in sorted(imports.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(imports):
        visit(name, ())


def test_packages_never_import_tests_or_scripts() -> None:
    for package in PACKAGES:
        for path in files_of(package):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                named += [node.module] if isinstance(node, ast.ImportFrom) else []
                tops = {name.split(".")[0] for name in named}
                assert not tops & {"tests", "train_vae", "train_dit", "sample_ddim", "evaluate"}, path
