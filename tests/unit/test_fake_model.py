"""`FakeModel`: the model of users' tests, and of ours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drangue_client.messages import ModelResponse, ToolCall
from drangue_worker import Agent, InMemoryStore
from drangue_worker.testing.fake import FakeModel, Shown
from drangue_worker.tools.tool import tool


def answers(model: FakeModel, count: int) -> list[ModelResponse]:
    async def ask() -> list[ModelResponse]:
        return [await model.generate(system="", messages=[], tools=[]) for _ in range(count)]

    return asyncio.run(ask())


def asked_after(model: FakeModel, decisions: int) -> str:
    """The text of its answer in a conversation that holds this many already."""
    messages = [{"role": "user", "content": "hi"}, *[{"role": "assistant", "content": "said"}] * decisions]
    return asyncio.run(model.generate(system="", messages=messages, tools=[])).text


@tool
def now() -> None:
    """What time it is."""


def test_the_nth_call_gets_the_nth_response_and_the_last_one_repeats() -> None:
    """A test writes down what matters and lets the rest go on."""
    model = FakeModel(["a", "b"])
    assert [one.text for one in answers(model, 4)] == ["a", "b", "b", "b"]
    assert (model.model, len(model.calls)) == ("fake", 4)


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
    model = FakeModel()
    messages = [{"role": "user", "content": "hi"}]
    asyncio.run(model.generate(system="Be brief.", messages=messages, tools=[now], idempotency_key="r1:1"))
    assert model.calls == [
        {"system": "Be brief.", "messages": messages, "tools": ["now"], "idempotency_key": "r1:1"},
    ]
    assert model.shown == [Shown("Be brief.", messages, [now.to_schema()])]


def test_what_it_was_shown_stays_as_it_was() -> None:
    """A list that its owner goes on writing to would tell of the end of the run, whichever call one looks at."""
    model = FakeModel()
    messages = [{"role": "user", "content": "hi"}]
    asyncio.run(model.generate(system="", messages=messages, tools=[now]))
    messages[0]["content"] = "changed"
    messages.append({"role": "user", "content": "more"})
    assert model.shown[0].messages == model.calls[0]["messages"] == [{"role": "user", "content": "hi"}]


def test_who_watches_is_shown_the_answer_word_by_word() -> None:
    """What an application does with pieces can be tested without a provider."""
    shown: list[str] = []

    async def show(text: str) -> None:
        shown.append(text)

    model = FakeModel(["  All is  well.\n", [("now", {})], ModelResponse("")])

    async def ask() -> list[str]:
        return [(await model.generate(system="", messages=[], tools=[], on_delta=show)).text for _ in range(3)]

    assert asyncio.run(ask()) == ["  All is  well.\n", "", ""]
    assert shown == ["  ", "All ", "is  ", "well.\n"]


def test_a_stream_of_an_agent_shows_its_words() -> None:
    """The engine finds out by itself that it streams."""

    async def pieces() -> list[str]:
        stream = Agent(FakeModel(["all is well"])).stream("go")
        return [event.payload["text"] async for event in stream if event.type == "model_delta"]

    assert asyncio.run(pieces()) == ["all ", "is ", "well"]


class TestStrict:
    def test_a_script_that_is_used_up_passes(self) -> None:
        """Strict or not, the script is the same."""
        model = FakeModel(["a", "b"], strict=True)
        assert [one.text for one in answers(model, 2)] == ["a", "b"]
        model.verify()
        model.verify()

    def test_a_call_beyond_the_script_fails(self) -> None:
        """An agent that thinks once more than expected costs money in production."""
        model = FakeModel(["a"], strict=True)
        message = "the script holds 1 response, and the model was asked for number 2; the last it was shown is nothing"
        with pytest.raises(AssertionError, match=message):
            answers(model, 2)
        with pytest.raises(AssertionError, match=message):  # whoever swallowed the first one
            model.verify()

    def test_responses_left_over_fail(self) -> None:
        """An agent that stopped too early did not do what its test describes."""
        model = FakeModel(["a", "b", [("now", {})]], strict=True)
        answers(model, 1)
        with pytest.raises(AssertionError, match=r"response 2 .* 'b'; response 3 was never asked for: \[ToolCall"):
            model.verify()

    def test_without_a_script_it_answers_once(self) -> None:
        """`final` is the one response there is."""
        model = FakeModel(strict=True)
        answers(model, 1)
        model.verify()
        with pytest.raises(AssertionError):
            answers(model, 1)

    def test_a_surprise_fails_the_run_that_caused_it(self) -> None:
        """It is raised where the test asked for the run, and it is not tried again."""
        model, store = FakeModel([[("now", {})]], strict=True), InMemoryStore()
        with pytest.raises(AssertionError, match="asked for number 2; the last it was shown is 'null'"):
            Agent(model, [now], store=store).run_sync("go", run_id="r")
        assert store.events("r")[-1].type == "run_failed"
        assert len(model.calls) == 2


class TestByTurn:
    def test_the_place_in_the_conversation_decides(self) -> None:
        """A process that takes over from a dead one asks for the same answer again, of another model object."""
        script = ["a", "b"]
        assert [asked_after(FakeModel(script, by_turn=True), decisions) for decisions in (0, 0, 1, 2)] == [
            *("a", "a", "b", "b")
        ]

    def test_it_can_be_strict_as_well(self) -> None:
        """A response that was asked for twice is used, and the one after the last is not there."""
        model = FakeModel(["a", "b"], strict=True, by_turn=True)
        assert [asked_after(model, 0), asked_after(model, 0)] == ["a", "a"]
        with pytest.raises(AssertionError, match="response 2 was never asked for"):
            model.verify()
        assert asked_after(model, 1) == "b"
        model.verify()
        with pytest.raises(AssertionError, match="asked for number 3; the last it was shown is 'said'"):
            asked_after(model, 2)
