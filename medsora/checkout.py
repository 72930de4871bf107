"""Import names in a checkout, where `kernels`, `vae` and `flow_prior` lie beside this package, not inside it.

A wheel carries them as `medsora.kernels`, `medsora.vae` and `medsora.flow_prior`; the finder below gives them
the same names in a checkout. Their folders' own names stay importable there and give the same module objects,
never a second copy. A foreign package called `kernels` (Hugging Face publishes one, which transformers and
diffusers import) is found wherever it is installed, although the checkout's root comes first on `sys.path`.
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
FOLDERS = ("flow_prior", "kernels", "vae")


class CheckoutFinder(MetaPathFinder):
    """Finds `medsora.kernels` in `kernels/`, and `kernels` where another distribution has it, else ours."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return where `name` is, or None."""
        top, _, rest = name.partition(".")
        if top == "medsora" and rest in FOLDERS:
            folder = ROOT / rest
            return spec_from_file_location(
                name, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
        if top not in FOLDERS:
            return None
        foreign = foreign_spec(top)
        if foreign is not None:
            return None if rest else foreign
        try:
            real = find_spec(f"medsora.{name}")
        except ModuleNotFoundError:
            return None
        package = real is not None and real.submodule_search_locations is not None
        return real and spec_from_loader(name, SameModule(real), is_package=package)


class SameModule(Loader):
    """Gives the module of `real` under a second name."""

    def __init__(self, real: ModuleSpec) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module itself, imported if it was not."""
        return import_module(self.real.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it is: importlib has put the second name's spec on it, which is taken back."""
        module.__spec__ = self.real

    def get_code(self, name: str) -> CodeType | None:
        """Return the module's code, for `python -m`."""
        return self.real.loader.get_code(self.real.name)


def foreign_spec(name: str) -> ModuleSpec | None:
    """Return the spec of a top-level package `name` that another distribution installed, or None."""
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    return PathFinder.find_spec(name, elsewhere)


def install() -> None:
    """Put the finder first, once, unless this copy of MedSora has the three packages inside."""
    inside = (ROOT / "medsora" / FOLDERS[0]).is_dir()
    if not inside and not any(isinstance(finder, CheckoutFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, CheckoutFinder())


def import_again(name: str) -> None:
    """Import `name`, which began as a folder's own name before the finder was there, as the finder has it."""
    install()
    del sys.modules[name]
    import_module(name)
