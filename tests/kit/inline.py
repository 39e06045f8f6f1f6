"""Runs in this process, for tests that break them: where their logs live, what thinks for them, how they are left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drangue_client.messages import Message, ModelResponse, ToolCall
from drangue_worker import Agent, InMemoryStore, PostgresStore, SQLiteStore, Tool
from drangue_worker.testing import FakeModel

PLACES = ("memory", "file", "postgres")  # every place a log can live
RUN = "r"


def opened(place: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    """An empty store in such a place, closed afterwards; the body of a fixture."""
    if place == "memory":
        made: Any = InMemoryStore()
    elif place == "file":
        made = SQLiteStore(folder / "runs.db")
    else:
        made = PostgresStore(request.getfixturevalue("database_url"))
    yield made
    made.close()


def calls(*asked: tuple[str, Any], usage: Any = None, **more: Any) -> ModelResponse:
    """An answer that asks for calls: (name, arguments) or (name, arguments, call id)."""
    made = [
        ToolCall(given[0] if given else f"id_{n}", name, arguments) for n, (name, arguments, *given) in enumerate(asked)
    ]
    return ModelResponse(tool_calls=made, usage=usage or {"input_tokens": 10, "output_tokens": 5}, **more)


class Scripted(FakeModel):
    """A FakeModel whose script may also hold exceptions, which are raised, and anything else, which is answered."""

    def __init__(self, *script: Any, ceiling: int | None = None) -> None:
        super().__init__([one if isinstance(one, str | list | ModelResponse) else "" for one in script])
        self.script = script
        if ceiling is not None:
            self.max_tokens = ceiling

    async def generate(self, *, messages: list[Message], **asked: Any) -> ModelResponse:
        answer = await super().generate(messages=messages, **asked)
        own = self.script[min(len(self.calls), len(self.script)) - 1]
        if isinstance(own, BaseException):
            raise own
        return answer if isinstance(own, str | list | ModelResponse) else own


def copy_of(tool: Tool, **changes: Any) -> Tool:
    """The same tool with other options."""
    return Tool(**{**{name: getattr(tool, name) for name in Tool.__slots__}, **changes})


def kinds(store: Any, run_id: str = RUN) -> list[str]:
    """What the log holds, by type."""
    return [event.type for event in store.events(run_id)]


def contents(store: Any, run_id: str = RUN) -> list[str]:
    """What the calls came to, in call order."""
    results = [event for event in store.events(run_id) if event.type == "tool_result"]
    return [event.payload["content"] for event in sorted(results, key=lambda event: event.step)]


def categories(store: Any, run_id: str = RUN) -> list[str]:
    """How the calls failed, in call order; every call must have."""
    return [json.loads(content)["error"]["category"] for content in contents(store, run_id)]


def leave(agent: Agent, reached: asyncio.Event, text: str | None = "go", **options: Any) -> None:
    """Run until `reached` is set from within, and go away: a caller that is cancelled, as by a deploy."""

    async def work() -> None:
        run = asyncio.create_task(agent.run(text, run_id=RUN, **options))
        arrived = asyncio.create_task(reached.wait())
        await asyncio.wait({run, arrived}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert arrived.done(), f"the run ended before it came so far: {run}"
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(work())


async def until(holds: Callable[[], Any]) -> Any:
    """The first true value of `holds`. AssertionError after half a minute."""
    for _ in range(3000):
        if value := holds():
            return value
        await asyncio.sleep(0.01)  # what is waited for announces itself to nobody
    raise AssertionError("waited in vain")
