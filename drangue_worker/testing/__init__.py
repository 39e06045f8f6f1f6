"""For tests of agents, yours and ours: models that follow a script, here or behind a socket, a tracer that remembers,
checks of what you plug in, deaths at every point of a run, and a switch that keeps tests from asking real models.

`plugin` has all of it as pytest fixtures.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drangue_worker.testing.public import *  # noqa: F403 (its `__all__` says which)


def __getattr__(name: str) -> Any:
    # Loaded when a name is asked for: a module below, such as pytest's plugin, is imported without all the others.
    if name == "__all__" or not (name.startswith("__") or find_spec(f"{__name__}.{name}")):
        public = import_module("drangue_worker.testing.public")
        if name == "__all__" or name in public.__all__:
            return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(import_module("drangue_worker.testing.public").__all__)
