"""`FakeModel`: the model of users' tests, and of ours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drangue_client.messages import ModelResponse, ToolCall
from drangue_worker.testing.fake import FakeModel
from drangue_worker.tools.tool import tool


def answers(model: FakeModel, count: int) -> list[ModelResponse]:
    async def ask() -> list[ModelResponse]:
        return [await model.generate(system="", messages=[], tools=[]) for _ in range(count)]

    return asyncio.run(ask())


def test_the_nth_call_gets_the_nth_response_and_the_last_one_repeats() -> None:
    """A test writes down what matters and lets the rest go on."""
    assert [one.text for one in answers(FakeModel(["a", "b"]), 4)] == ["a", "b", "b", "b"]


@pytest.mark.parametrize("responses", [None, []])
def test_without_a_script_it_answers_at_once(responses: Any) -> None:
    """The shortest agent of all."""
    assert [one.text for one in answers(FakeModel(responses, final="fine"), 2)] == ["fine", "fine"]


def test_a_response_may_be_a_text_a_list_of_calls_or_the_thing_itself() -> None:
    """Calls get ids that differ over the whole script, as a provider's do."""
    own = ModelResponse("own")
    model = FakeModel(["a", [("read", {"n": 1}), ("now", {})], own])
    first, second, third = answers(model, 3)
    assert (first.text, first.tool_calls, first.stop_reason) == ("a", [], "stop")
    assert second.tool_calls == [ToolCall("call_2_1", "read", {"n": 1}), ToolCall("call_2_2", "now", {})]
    assert (second.stop_reason, third) == ("tool_calls", own)
    assert first.usage == second.usage == {"input_tokens": 10, "output_tokens": 5}


def test_it_remembers_what_it_was_given() -> None:
    """That is what a test of instructions and history looks at."""

    @tool
    def now() -> None: ...

    model = FakeModel()
    messages = [{"role": "user", "content": "hi"}]
    asyncio.run(model.generate(system="Be brief.", messages=messages, tools=[now], idempotency_key="r1:1"))
    assert model.calls == [
        {"system": "Be brief.", "messages": messages, "tools": ["now"], "idempotency_key": "r1:1"},
    ]
