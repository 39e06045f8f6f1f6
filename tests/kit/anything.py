"""Anything that JSON, a person or a program can say, and what must hold of a run whatever was said in it."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from rich.console import Console

from drangue_client.console.one_run import run_view
from drangue_client.messages import Message
from drangue_client.result import Result
from drangue_worker import Agent, AnthropicModel, ModelResponse, OpenAIModel, Store, ToolCall
from drangue_worker.testing.anthropic_messages import AnthropicMessages
from drangue_worker.testing.chat_completions import ChatCompletions
from drangue_worker.testing.script import Wire

# Each example is a whole run on Postgres, so there are few, the same ones every time, and none is made smaller.
some = settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])

HUGE = 10**5_000  # more digits than a JSON writer takes: it is kept as hexadecimal text
AWKWARD = st.sampled_from(["\x00", "\ud800", "\udfff", "\\u0000", "\u2028", "\x1b[31m", "[/red]", "<<<", "\U0001f600"])
TEXT = st.lists(st.characters(exclude_categories=()) | AWKWARD, max_size=6).map("".join)
SAID = TEXT.map(lambda text: f"x{text}")  # an input with something in it
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, -(2**64), 10**400, -(10**4000), 1e308, 5e-324])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=4)


class Unprintable:
    """An object of somebody's that cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def deep(levels: int) -> dict[str, Any]:
    """An object in an object in an object."""
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def endless() -> list[Any]:
    """A list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


class Says:
    """A model object of somebody's own, which gives these answers one after the other, whatever they are."""

    model = "says"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    async def generate(self, **_: Any) -> Any:
        return self.answers.pop(0)


def asks(*calls: tuple[Any, Any, Any]) -> ModelResponse:
    """A decision that asks for these calls: (id, tool, arguments)."""
    return ModelResponse(tool_calls=[ToolCall(*call) for call in calls])


def finished(agent: Agent, text: str = "go", **options: Any) -> Result:
    """Run an agent to its end and read the run back, as `ended` does."""
    return ended(agent.store, lambda run_id: agent.run_sync(text, run_id=run_id, **options))


def ended(log: Store, work: Callable[[str], object]) -> Result:
    """Let `work` drive the run of an id and read it back. Fails unless it ended, and says why if it failed."""
    run_id = uuid.uuid4().hex
    raised: Exception | None = None
    try:
        work(run_id)
    except Exception as error:
        raised = error
    result = read_back(log, run_id)
    assert result.status in ("completed", "failed"), f"the run is {result.status}; {type(raised)} was raised"
    assert (result.status == "failed") == (raised is not None)
    if raised is not None:
        assert result.error
        assert result.reason
    return result


def read_back(log: Store, run_id: str) -> Result:
    """A run as its log tells it. Fails unless everybody who reads logs can read this one."""
    row, events = log.look(run_id).row, log.events(run_id)
    result = Result.from_events(run_id, events)
    assert [event.seq for event in events] == list(range(len(events)))
    for event in events:
        written = json.dumps(event.to_json(), allow_nan=False, ensure_ascii=False).encode()
        assert json.loads(written) == event.to_json()
    assert (row.status, row.error, row.head_seq) == (result.status, result.error, len(events) - 1)
    assert set(result.usage) >= {"input_tokens", "output_tokens"}
    assert result.cost({}, strict=False) == 0.0
    assert result.trace.render().startswith("run")
    Console(file=io.StringIO(), width=100).print(run_view(row, result))
    if any(event.payload.get("structured") for event in events):
        assert json.loads(result.output, parse_constant=pytest.fail) == result.output_parsed
    _providers_take(result.messages, whole=result.status == "completed")
    return result


def _providers_take(messages: list[Message], *, whole: bool) -> None:
    """The conversation is one that either provider would take, and go on from."""
    requests: list[tuple[Wire, dict[str, Any]]] = [
        (ChatCompletions(), OpenAIModel("gpt-4o")._request("", messages, (), None)),
        (AnthropicMessages(), AnthropicModel("claude-x")._request("", messages, ())),
    ]
    for wire, request in requests:
        body = json.loads(json.dumps(request, allow_nan=False, ensure_ascii=False).encode())
        _, read, _ = wire.read(body)
        if whole:
            _check_calls(messages)
            _check_calls(read)


def _check_calls(messages: Sequence[Message]) -> None:
    """Every call has an id of its own and one result, in the order of the calls."""
    waiting: list[str] = []
    for message in [*messages, {"role": "end"}]:
        if message["role"] == "tool":
            assert message["call_id"] == waiting.pop(0)
        else:
            assert waiting == []
            waiting = [call["id"] for call in message.get("tool_calls", ())]
            assert len(set(waiting)) == len(waiting)
            assert all(waiting)
