"""Import names in a checkout, where `kernels`, `vae` and `flow_prior` lie beside this package, not inside it.

A wheel holds them as `medsora.kernels`, `medsora.vae` and `medsora.flow_prior`; the finder below gives them
the same names in a checkout, and `configs` the name `medsora.configs`. Their old names (`import vae`) give
the same module objects, never a second copy. Another distribution's package of such a name is found first,
although the checkout's root precedes it on `sys.path`: transformers and diffusers import Hugging Face's
`kernels`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, spec_from_file_location, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parents[1]
RENAMED = ("flow_prior", "kernels", "vae")
BESIDE = ("configs", *RENAMED)
SCRIPTS = {
    "train-vae": "train_vae.py",
    "train-dit": "train_dit.py",
    "sample": "sample_ddim.py",
    "evaluate": "evaluate.py",
}


class CheckoutFinder(MetaPathFinder):
    """Finds `medsora.kernels` in `kernels/`, and `kernels` in another distribution, or else as ours."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the module's spec, or None for a name of other finders."""
        top, _, rest = name.partition(".")
        if top == "medsora" and rest in BESIDE:
            folder = ROOT / rest
            return spec_from_file_location(
                name, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
        if top not in RENAMED:
            return None
        if rest:
            ours = sys.modules.get(top) is sys.modules.get(f"medsora.{top}")
            return _second_name(name) if ours else None
        return _foreign_spec(top) or _second_name(name)


class SameModule(Loader):
    """Gives the module of the spec `real` a second name."""

    def __init__(self, real: ModuleSpec) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module itself, imported if it was not."""
        return import_module(self.real.name)

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec, which importlib has just replaced; the module has run already."""
        module.__spec__ = self.real

    def get_code(self, name: str) -> CodeType | None:
        """Return the module's code, for `python -m`."""
        return self.real.loader.get_code(self.real.name)


def _second_name(name: str) -> ModuleSpec | None:
    real = find_spec(f"medsora.{name}")
    package = real is not None and real.submodule_search_locations is not None
    return real and spec_from_loader(name, SameModule(real), origin=real.origin, is_package=package)


def _foreign_spec(name: str) -> ModuleSpec | None:
    """Return the spec of a package `name` on `sys.path` that is no checkout's of MedSora, or None."""
    entries = [entry for entry in sys.path if not is_checkout(Path(entry))]
    spec = PathFinder.find_spec(name, entries)
    return spec if spec is not None and spec.origin is not None else None  # a folder without code has none


def is_checkout(folder: Path) -> bool:
    """Return whether `folder` is a checkout's root, where MedSora's packages lie beside each other."""
    package = folder / "medsora"
    return (package / "checkout.py").is_file() and not (package / "kernels").is_dir()


def scripts_are_here() -> bool:
    """Return whether the working directory is this checkout: elsewhere `train_vae.py` names no script."""
    return is_checkout(ROOT) and Path.cwd() == ROOT


def command_name(command: str, *, launched: bool = False) -> str:
    """Return how to call `command`: as a script if the user started one, else as `medsora COMMAND`.

    `launched`: as it stands behind `accelerate launch`. Neither started: a script where the scripts lie.
    """
    started = Path(sys.argv[0]).name
    if started in SCRIPTS.values() or (started not in ("medsora", "__main__.py") and scripts_are_here()):
        return SCRIPTS[command]
    return f"-m medsora {command}" if launched else f"medsora {command}"


def install() -> bool:
    """Put the finder first, once, in a checkout; return whether this is one."""
    if not is_checkout(ROOT):
        return False
    if not any(isinstance(finder, CheckoutFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, CheckoutFinder())
    return True


def import_again(name: str) -> None:
    """Import `name` again, which was imported by its folder's name before the finder was installed."""
    in_checkout = install()
    del sys.modules[name]
    if in_checkout:
        import_module(name)
    else:  # MedSora itself is installed from a wheel, and a checkout comes later on `sys.path`
        sys.modules[name] = import_module(f"medsora.{name}")
