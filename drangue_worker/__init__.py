"""drangue: durable AI agents on Postgres, Redis and Celery.

    from drangue_worker import Agent, tool

An agent is a model plus tools. `Agent(...).run_sync("...")` runs it here; `DRANGUE_AGENTS` and `drangue worker`
let a fleet run it. The client's words are here too, so that one import serves.
"""

from typing import TYPE_CHECKING

from drangue_worker.lazy import public_names

if TYPE_CHECKING:
    from drangue_worker.public import *  # noqa: F403 (its `__all__` says which)

__getattr__, __dir__ = public_names(__name__)
