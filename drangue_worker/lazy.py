"""Packages whose public names are loaded when one is asked for: a module below them is imported without the others."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def public_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose names stand in its module `public`, all of them in `__all__`.

    A module of the package is one of its names, too, as it would be had something imported it.
    """

    def get(name: str) -> Any:
        if name == "__all__":
            return import_module(f"{package}.public").__all__
        if not name.startswith("__"):
            if find_spec(f"{package}.{name}"):
                return import_module(f"{package}.{name}")
            public = import_module(f"{package}.public")
            if name in public.__all__:
                return getattr(public, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return list(import_module(f"{package}.public").__all__)

    return get, names
