"""Whatever comes over a provider's wire, the run ends and its log can be read, on Postgres and through the real SDKs.

What an SDK makes of odd JSON is not what a test's own model object would hand over, and what is sent back to a provider
is refused by it for reasons of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drangue_client.events import normalise
from drangue_client.result import Result
from drangue_worker import Agent, PostgresStore, Tool
from drangue_worker.testing import Provider, Reply
from tests.kit.anything import OBJECTS, SAID, TEXT, deep, ended, some
from tests.kit.ways import WAYS, Way, every_way

WHOLE = [way for way in WAYS if not way.streamed]
ECHO = Tool("echo", "Give it back.", {"type": "object"}, lambda **arguments: arguments)
SILENT_S = 10.0  # a provider that has lost its way is not waited for any longer


@pytest.fixture(scope="module")
def log(addresses: Any) -> Iterator[PostgresStore]:
    """One Postgres for all runs of this module; their ids are fresh."""
    store = PostgresStore(addresses.database_url)
    yield store
    store.close()


def run_on(log: PostgresStore, way: Way, *replies: Reply, timeout: float = 30.0) -> Result:
    """A run whose provider gives these replies."""

    async def go(run_id: str) -> None:
        async with way.model(provider, timeout=timeout) as model:
            agent = Agent(model, [ECHO], store=log, model_retries=0)
            if way.streamed:
                async for _ in agent.stream("go", run_id=run_id):
                    pass
            else:
                await agent.run("go", run_id=run_id)

    with Provider(replies) as provider:
        return ended(log, lambda run_id: asyncio.run(go(run_id)))


def contents(result: Result) -> list[Any]:
    """What the model read of its calls."""
    return [json.loads(message["content"]) for message in result.messages if message["role"] == "tool"]


@every_way
@some
@given(calls=st.lists(st.tuples(OBJECTS, TEXT), min_size=1, max_size=4), said=SAID)
@example(calls=[({"x": 1}, ""), ({"x": 2}, ""), ({"x": 3}, "a_2"), ({"x": 4}, "a"), ({"x": 5}, "a")], said="x")
@example(calls=[({"x": 1}, "é x"), ({"x": 2}, "é_x"), ({"x": 3}, "\ud800"), ({"x": 4}, "x" * 5_000)], said="x")
def test_any_calls_over_the_wire_are_answered(log: PostgresStore, way: Way, calls: list[Any], said: str) -> None:
    """The next request tells the provider of its calls and their results in a form that it takes."""
    asked = Reply(text=said, tool_calls=tuple(("echo", arguments, call_id) for arguments, call_id in calls))
    result = run_on(log, way, asked, Reply(text="done"))
    assert result.output == "done"
    sent = json.loads(json.dumps([arguments for arguments, _ in calls]))  # two halves of a character become one
    assert contents(result) == normalise(sent)


READABLE = [
    ("", {}),
    (" ", {}),
    ('{"x": 1, "x": 2}', {"x": 2}),
    ('{"x": NaN}', {"x": "nan"}),
    ('{"x": -1e999}', {"x": "-inf"}),
    ('{"\\u0000": "\\ud800"}', {"\\u0000": "\\ud800"}),
    ('{"x": ' + "9" * 4_000 + "}", {"x": int("9" * 4_000)}),
    ('{"a":' * 100 + "{}" + "}" * 100, deep(100)),
]


@every_way
def test_arguments_that_can_be_read_are_read(log: PostgresStore, way: Way) -> None:
    """Models write what parsers disagree about; what they meant is what the tool gets."""
    asked = Reply(tool_calls=tuple(("echo", raw) for raw, _ in READABLE))
    result = run_on(log, way, asked, Reply(text="done"))
    assert contents(result) == [expected for _, expected in READABLE]


UNREADABLE = [
    "[1]",
    "5",
    "null",
    '"text"',
    "{",
    '{"x": 1}}',
    "\x00",
    '{"x": "\x00"}',
    "\ufeff{}",
    '{"x": ' + "9" * 5_000 + "}",
]


@every_way
def test_arguments_that_are_no_object_are_told_to_the_model(log: PostgresStore, way: Way) -> None:
    """It can correct itself; a run that fails needs a person."""
    asked = Reply(tool_calls=tuple(("echo", raw) for raw in UNREADABLE))
    result = run_on(log, way, asked, Reply(text="done"))
    assert result.output == "done"
    assert [one["error"]["category"] for one in contents(result)] == ["invalid_arguments"] * len(UNREADABLE)


@every_way
@pytest.mark.parametrize("levels", [700, 3_000])
def test_arguments_nested_too_deeply_are_told_to_the_model(log: PostgresStore, way: Way, levels: int) -> None:
    """However deep they are: a model that has begun to repeat itself writes brackets until it is cut off."""
    asked = Reply(tool_calls=(("echo", '{"a":' * levels + "1" + "}" * levels),))
    result = run_on(log, way, asked, Reply(text="done"), timeout=SILENT_S)
    assert [one["error"]["category"] for one in contents(result)] == ["invalid_arguments"]


@pytest.mark.parametrize("way", WHOLE, ids=str)
def test_a_megabyte_of_what_no_store_takes_is_kept(log: PostgresStore, way: Way) -> None:
    """Somebody's tool reads a binary file, and the model quotes it."""
    text = "\x00" * 1_000_000
    result = run_on(log, way, Reply(text=text, tool_calls=(("echo", {"x": text}),)), Reply(text=text))
    assert result.output == normalise(text)
    assert contents(result) == [{"x": normalise(text)}]
