"""Things that nobody should give an agent, and what must hold of its run all the same."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from drangue_client.result import Result
from drangue_worker import Agent
from tests.kit.inline import RUN


class Unspeakable:
    """An object that cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
DEEP: Any = []
for _ in range(600):
    DEEP = [DEEP]
UNWRITABLE = (Unspeakable(), ENDLESS, DEEP)


def kind(value: object) -> str:
    """What names such a value in a test's id."""
    return type(value).__name__


def ended(agent: Agent) -> Result:
    """The run after it was run and, unless that ended it, resumed.

    It must have ended or wait for a person both times, with no step claimed by nobody, and everything that a reader may
    ask of it must be there.
    """
    for text in ("go", None):
        with suppress(Exception):
            agent.run_sync(text, run_id=RUN)
        status = agent.store.look(RUN).row.status
        claimed = [ref.step for ref, _, live in agent.store.open_steps(RUN) if live]
        assert (status in ("completed", "failed", "paused"), claimed) == (True, []), status
    result = Result.from_events(RUN, agent.store.events(RUN))
    for name in ("status", "reason", "error", "steps", "usage", "usage_estimated", "output_parsed", "truncated"):
        getattr(result, name)
    assert isinstance(result.output, str)
    assert result.trace.render()
    return result
