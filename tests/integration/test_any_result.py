"""Whatever a tool returns or raises, the run goes on and its log can be read, on Postgres.

A result that the database refuses is refused after the tool has run, so that every resume would run it again. The
author of a tool returns what a library gave, raises what a driver raised, and is not there to prevent it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drangue_client.events import normalise
from drangue_worker import Agent, Done, PostgresStore, Tool, ToolPolicy
from drangue_worker.testing import FakeModel
from tests.kit.anything import JSON, TEXT, Unprintable, asks, deep, ended, endless, finished, some
from tests.kit.naming import shown

OPEN = {"type": "object"}


@pytest.fixture(scope="module")
def log(addresses: Any) -> Iterator[PostgresStore]:
    """One Postgres for all runs of this module; their ids are fresh."""
    store = PostgresStore(addresses.database_url)
    yield store
    store.close()


def agent_of(log: PostgresStore, tools: list[Tool]) -> Agent:
    """An agent whose model calls each of its tools once, all together, and then says that it is done."""
    calls = asks(*((one.name, one.name, {}) for one in tools))
    return Agent(FakeModel([calls, "done"]), tools, store=log)


def contents_of(log: PostgresStore, *functions: Any, **policy: Any) -> list[str]:
    """What the model reads of one call of each function. Fails unless the run goes on to its answer."""
    tools = [Tool(f"t{i}", "", OPEN, one, policy=ToolPolicy(**policy)) for i, one in enumerate(functions)]
    result = finished(agent_of(log, tools))
    assert result.output == "done"
    return [message["content"] for message in result.messages if message["role"] == "tool"]


def content_of(log: PostgresStore, function: Any, **policy: Any) -> Any:
    """What the model reads of a call of this function, which is JSON."""
    (content,) = contents_of(log, function, **policy)
    return json.loads(content)


def giver(value: Any) -> Any:
    """A function that returns this."""
    return lambda: value


def raiser(error: BaseException) -> Any:
    """A function that raises this."""

    def fail() -> None:
        raise error

    return fail


@some
@given(values=st.lists(JSON, min_size=1, max_size=8))
@example(values=["\x00\ud800" * 100_000])
def test_any_result_of_a_tool_is_what_the_model_reads(log: PostgresStore, values: list[Any]) -> None:
    """Text as it is, everything else as JSON, both made strict."""
    contents = contents_of(log, *map(giver, values))
    told = [one if isinstance(value, str) else json.loads(one) for one, value in zip(contents, values, strict=True)]
    assert told == normalise(values)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\xff\x00", "\\xff\\u0000"),
        ({"b", "a"}, ["a", "b"]),
        ((1, (2,)), [1, [2]]),
        ({None: 1, 5: 2}, {"None": 1, "5": 2}),
        (Decimal("NaN"), "NaN"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02 00:00:00+00:00"),
        (range(3), "range(0, 3)"),
    ],
    ids=shown,
)
def test_results_that_json_does_not_know_have_their_plain_form(log: PostgresStore, value: Any, expected: Any) -> None:
    """A tool returns what its own code works with."""
    assert content_of(log, giver(value)) == expected


def test_a_generator_is_shown_and_not_run(log: PostgresStore) -> None:
    """It could be endless; its author meant to return a list."""
    assert content_of(log, giver(n for n in iter(int, 1))).startswith("<generator object")


UNWRITABLE = [Unprintable(), [Unprintable()], {Unprintable(): 1}, endless(), deep(5_000)]


@pytest.mark.parametrize("value", UNWRITABLE, ids=lambda value: type(value).__name__)
def test_a_result_that_cannot_be_written_is_a_failed_call(log: PostgresStore, value: Any) -> None:
    """The effect has taken place; the run must not fail for it, nor the call be made again."""
    answer = content_of(log, giver(value))
    assert (answer["ok"], answer["error"]["category"]) == (False, "error")


@some
@given(value=JSON)
def test_any_fallback_is_shown_beside_the_failure(log: PostgresStore, value: Any) -> None:
    """It comes from a cache or a default of the author's."""
    answer = content_of(log, raiser(ValueError("down")), fallback=value)
    assert (answer["degraded"], answer["fallback"]) == (True, normalise(value))


@pytest.mark.parametrize("value", UNWRITABLE, ids=lambda value: type(value).__name__)
def test_a_fallback_that_cannot_be_written_is_told_beside_the_failure(log: PostgresStore, value: Any) -> None:
    """As a fallback that raises is: the failed call stays a failed call."""
    answer = content_of(log, raiser(ValueError("down")), fallback=value)
    assert set(answer["error"]) == {"category", "message", "fallback_error"}


@some
@given(texts=st.lists(TEXT, min_size=1, max_size=8))
@example(texts=["\x00\ud800" * 100_000])
def test_any_text_of_an_exception_is_told(log: PostgresStore, texts: list[str]) -> None:
    """Drivers quote the bytes they stumbled over."""
    told = [json.loads(one)["error"] for one in contents_of(log, *(raiser(ValueError(text)) for text in texts))]
    assert told == [{"category": "error", "message": normalise(text) or "ValueError"} for text in texts]


@pytest.mark.parametrize(
    "value",
    [
        "\x00\ud800",
        *(one for one in UNWRITABLE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_reconcile_finds_the_run_goes_on(log: PostgresStore, value: Any) -> None:
    """An interrupted call that cannot be undone has been settled elsewhere; its answer is only told here."""

    async def go(run_id: str) -> None:
        begun = asyncio.Event()

        async def pay() -> None:
            begun.set()
            await asyncio.Event().wait()

        tool = Tool("pay", "", OPEN, pay, reversible=False, reconcile=lambda key: Done(value))
        agent = agent_of(log, [tool])
        work = asyncio.create_task(agent.run("go", run_id=run_id))
        await begun.wait()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await agent.resume(run_id)

    assert ended(log, lambda run_id: asyncio.run(go(run_id))).output == "done"


class Mute(Exception):
    """An exception that cannot say what is wrong."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Deadly(Exception):
    """An exception that ends the process when it is asked what is wrong."""

    def __str__(self) -> str:
        raise SystemExit("\x00")


@pytest.mark.parametrize(
    "error",
    [
        Mute(),
        ExceptionGroup("\x00", [ValueError("\ud800")]),
        SystemExit("\x00"),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        StopIteration("\x00"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "\x00"),
        OSError(5, "\udc80"),
        RecursionError(),
        MemoryError(),
        Deadly(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_exception_of_a_tool_is_a_failed_call(log: PostgresStore, error: BaseException) -> None:
    """None of them may reach the process that drives the run."""
    assert content_of(log, raiser(error))["ok"] is False
