"""Import modules as if packages were absent.

`python -m tests.support.installing.hidden_packages HIDDEN MODULES`
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder


class Hiding:
    """Finds what `PathFinder` finds, except `hidden` packages."""

    hidden: frozenset[str] = frozenset()
    invalidate_caches = PathFinder.invalidate_caches
    find_distributions = PathFinder.find_distributions

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return None if name.split(".")[0] in cls.hidden else PathFinder.find_spec(name, path, target)


if __name__ == "__main__":
    Hiding.hidden = frozenset(sys.argv[1].split(","))
    sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
    for name in sys.argv[2].split(","):
        import_module(name)
