"""Whatever a model asks for or answers, the run ends and its log can be read, on Postgres.

A run that neither ends nor fails is tried again for ever; one that a reader stumbles over is lost. No model can be
relied on to prevent it, nor the author of a model object of one's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drangue_client.events import normalise
from drangue_worker import Agent, Budget, ModelResponse, PostgresStore, Tool, tool
from drangue_worker.testing import FakeModel
from tests.kit.anything import (
    HUGE,
    OBJECTS,
    TEXT,
    Says,
    asks,
    deep,
    endless,
    finished,
    some,
)

OPEN = {"type": "object"}


@pytest.fixture(scope="module")
def log(addresses: Any) -> Iterator[PostgresStore]:
    """One Postgres for all runs of this module; their ids are fresh."""
    store = PostgresStore(addresses.database_url)
    yield store
    store.close()


@tool
def add(number: int, names: list[str] | None = None) -> str:
    """A tool that is particular about its arguments."""
    return f"{number} {names}"


ECHO = Tool("echo", "Give it back.", OPEN, lambda **arguments: arguments)


def agent_of(log: PostgresStore, *answers: Any, tools: Any = (ECHO, add), **options: Any) -> Agent:
    """An agent whose model gives these answers, and then says that it is done."""
    return Agent(FakeModel([*answers, "done"]), list(tools), store=log, model_retries=0, **options)


@some
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from(["", "a", "call_2", "call_3", None]) | TEXT,
            st.sampled_from(["echo", "add", "final_answer"]) | TEXT,
            OBJECTS,
        ),
        min_size=1,
        max_size=4,
    )
)
@example(calls=[("a", "echo", {"x": 1}), ("a", "echo", {"x": 2}), ("a", "echo", {"x": 3})])
@example(calls=[(None, "echo", {}), ("", "echo", {}), ("call_2", "echo", {}), ("call_2", "echo", {})])
def test_any_calls_of_a_model_are_answered_each_by_its_own_result(log: PostgresStore, calls: list[Any]) -> None:
    """Ids that are missing or repeated, tools that do not exist, arguments beyond reason: all of it has been sent."""
    result = finished(agent_of(log, asks(*calls)))
    assert (result.status, result.output) == ("completed", "done")
    told = [json.loads(message["content"]) for message in result.messages if message["role"] == "tool"]
    expected = [normalise(arguments) if name == "echo" else False for _, name, arguments in calls]
    assert [one if name == "echo" else one["ok"] for one, (_, name, _) in zip(told, calls, strict=True)] == expected


def test_ids_that_only_look_alike_once_written_are_told_apart(log: PostgresStore) -> None:
    """A NUL is written as its visible escape, which the id beside it may have been all along."""
    result = finished(agent_of(log, asks(("a\x00", "echo", {"x": 1}), ("a\\u0000", "echo", {"x": 2}))))
    assert result.output == "done"


@pytest.mark.parametrize(
    "arguments",
    [
        {"x": 10**400, "y": 1e308},
        {"x": [float("nan"), float("inf"), -float("inf")]},
        {"\x00": "\ud800", "\\u0000": "\udfff"},
        {"__raw_arguments__": {"x": object()}},
        {"idempotency_key": 1, "self": 2, "func": 3},
        {"x": "\x00" * 200_000},
        {"x": deep(100)},
        {"x": deep(5_000)},
        {"x": endless()},
        {5: (1, {2}), None: b"\xff"},
        {"x": HUGE},
        None,
        [{}],
        '{"x": 1}',
        5,
    ],
    ids=lambda value: f"{type(value).__name__} of {', '.join(map(ascii, value)) if isinstance(value, dict) else ''}",
)
def test_odd_arguments_end_in_a_finished_run(log: PostgresStore, arguments: Any) -> None:
    """A model object of one's own may hand over what no provider's SDK would."""
    finished(agent_of(log, asks(("c1", "echo", arguments), ("c2", "add", arguments))))


def test_arguments_nested_too_deeply_are_sent_back_to_the_model(log: PostgresStore) -> None:
    """It can do better when it is told, as it is of text that is no JSON; a failed run needs a person."""
    result = finished(agent_of(log, asks(("c1", "echo", deep(5_000)))))
    assert json.loads(result.messages[2]["content"])["error"]["category"] == "invalid_arguments"


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        (None, {}),
        ("text", {}),
        (ModelResponse(text="x", tool_calls=None), {}),  # type: ignore[arg-type]
        (ModelResponse(text="x", stop_reason=["length"], reasoning=object()), {}),  # type: ignore[arg-type]
        (ModelResponse(text=5), {}),  # type: ignore[arg-type]
        (ModelResponse(text=5), {"output_schema": OPEN}),  # type: ignore[arg-type]
        (ModelResponse(text="x", usage=5), {}),  # type: ignore[arg-type]
        (ModelResponse(text="x", usage={"input_tokens": 10**400}), {}),
        (
            ModelResponse(text="x", usage={"input_tokens": 1}, model=["a"]),
            {"budget": Budget(max_usd=1, prices={"a": {"input": 1}})},
        ),
    ],
)
def test_an_odd_answer_of_a_model_ends_in_a_finished_run(log: PostgresStore, answer: Any, options: Any) -> None:
    """A run that neither ends nor fails is tried again for ever, and its model is paid each time."""
    finished(Agent(Says(answer, answer, answer), store=log, model_retries=0, **options))


@some
@given(
    usage=st.dictionaries(st.sampled_from(["input_tokens", "output_tokens"]) | TEXT, st.integers() | st.floats() | TEXT)
)
def test_any_usage_that_a_provider_reports_is_recorded(log: PostgresStore, usage: dict[str, Any]) -> None:
    """It is counted where it is a count, and does no harm where it is none."""
    result = finished(Agent(Says(ModelResponse(text="x", usage=usage)), store=log))
    assert result.events[1].payload["usage"] == normalise(usage)
