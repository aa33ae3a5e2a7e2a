"""The configs that come with jaxmm: found by their names, from any folder, also by another config that imports them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import jaxmm

PACKAGES = ("configs", "jaxmm.configs")  # by whose names they are imported, besides by their own


def folder() -> Path:
    """Where they lie: in the package, or beside it in a clone."""
    package = Path(jaxmm.__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """What ``--config`` may name without a path."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def path_of(name: str) -> Path | None:
    """The file of the config of that name, or None."""
    return folder() / f"{name}.py" if name in names() else None


class _Finder:
    """Finds ``base``, ``configs.base`` and ``jaxmm.configs.base``; asked last, so that what is the user's wins."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in PACKAGES:
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(folder())]
            return spec
        package, _, name = fullname.rpartition(".")
        file = path_of(name) if package in ("", *PACKAGES) else None
        return importlib.util.spec_from_file_location(fullname, file) if file else None


@contextmanager
def importable() -> Iterator[None]:
    """Within it configs can be imported; what was, is forgotten afterwards."""
    finder, known = _Finder(), set(sys.modules)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for module in set(sys.modules) - known:
            origin = getattr(sys.modules[module], "__file__", None) or ""
            if module in PACKAGES or Path(origin).parent == folder():
                del sys.modules[module]
