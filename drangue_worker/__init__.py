"""drangue: durable AI agents on Postgres, Redis and Celery.

    from drangue_worker import Agent, tool

An agent is a model plus tools. `Agent(...).run_sync("...")` runs it here; `DRANGUE_AGENTS` and `drangue worker`
let a fleet run it. The client's words are here too, so that one import serves.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drangue_worker.public import *  # noqa: F403 (its `__all__` says which)


def __getattr__(name: str) -> Any:
    # Loaded when a name is asked for: a module below, such as the console, is imported without all the others.
    if name == "__all__" or not (name.startswith("__") or find_spec(f"{__name__}.{name}")):
        public = import_module("drangue_worker.public")
        if name == "__all__" or name in public.__all__:
            return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(import_module("drangue_worker.public").__all__)
