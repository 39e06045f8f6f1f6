"""What callers trip over elsewhere: turns, endings, answers of a form, functions that are awaited, and waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import InFlightError, RateLimitError
from drangue_worker import Agent, Autonomy, Budget, Guardrails, MemoryItem, tool
from drangue_worker.testing import FakeModel
from tests.kit.inline import PLACES, RUN, Scripted, calls, categories, contents, copy_of, kinds, leave, opened

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
ANSWER = ("final_answer", {"n": 1})


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from opened(request.param, request, tmp_path)


@tool
def look() -> str:
    """Needs nobody."""
    return "seen"


@pytest.mark.parametrize(
    ("options", "script", "ending"),
    [
        ({}, ["hello"], ("completed", "answered", "hello", None)),
        ({"output_schema": NUMBER}, [[ANSWER]], ("completed", "answered", '{"n": 1}', {"n": 1})),
        ({"output_schema": NUMBER}, ["no"], ("completed", "schema", "no", None)),
        ({"max_steps": 2}, [[("look", {})]], ("completed", "max_steps", "(stopped: reached max_steps=2)", None)),
        (
            {"budget": Budget(max_tokens=1)},
            [[("look", {})]],
            ("completed", "budget", "(stopped: budget exhausted)", None),
        ),
        ({"guardrails": Guardrails(input_guard=lambda t: "no")}, [], ("completed", "blocked", "(blocked: no)", None)),
        (
            {"budget": Budget(max_usd=1, prices={"other": {"input": 1}})},
            [[("look", {})]],
            (
                "completed",
                "budget",
                "(stopped: budget unenforceable: no price for model 'fake'. Add it to prices.)",
                None,
            ),
        ),
    ],
    ids=["answered", "structured", "schema", "max_steps", "budget", "blocked", "unpriced"],
)
def test_an_ending_says_why_in_a_word_for_machines(options: Any, script: Any, ending: Any) -> None:
    """Nobody has to match on the text of an answer to know that there is none."""
    result = Agent(FakeModel(script), [look], **options).run_sync("go", run_id=RUN)
    assert (result.status, result.reason, result.output, result.output_parsed) == ending
    finish = result.events[-1]
    assert (finish.type, finish.payload["reason"], finish.step) == ("run_finished", ending[1], result.run.last_step)


def test_every_turn_of_a_conversation_has_a_status_and_an_end_of_its_own(store: Any) -> None:
    """A loop that waits while a run is paused must not end because an earlier turn was finished."""
    asking = calls(("look", {}))
    model = Scripted("one", asking, "two", RuntimeError("down"), "three")
    agent = Agent(model, [copy_of(look, requires_approval=True)], store=store)
    seen = [agent.run_sync("first", run_id=RUN), agent.run_sync("second", run_id=RUN)]
    asyncio.run(agent.approve(RUN))
    seen.append(agent.run_sync(run_id=RUN))
    with pytest.raises(RuntimeError):
        agent.run_sync("third", run_id=RUN)
    assert store.look(RUN).row.status == "failed"
    seen.append(agent.run_sync(run_id=RUN))
    assert [(one.status, one.output) for one in seen] == [
        ("completed", "one"),
        ("paused", "(paused: awaiting approval)"),
        ("completed", "two"),
        ("completed", "three"),
    ]
    assert kinds(store).count("run_finished") == 3


def test_turns_are_told_apart_by_their_ids_and_not_by_what_is_said(store: Any) -> None:
    """ "Yes" may be said twice, and a request that is repeated over a bad line is still one turn."""
    model = FakeModel(["one", "two", "three"])
    agent = Agent(model, store=store)
    said = [("yes", "a"), ("yes", "b"), ("yes", "b"), ("yes", "c"), ("yes", "a")]
    outputs = [agent.run_sync(text, run_id=RUN, turn_id=turn_id).output for text, turn_id in said]
    assert outputs == ["one", "two", "two", "three", "three"]
    assert [message["content"] for message in model.calls[-1]["messages"]] == ["yes", "one", "yes", "two", "yes"]


def test_a_turn_that_was_interrupted_is_gone_on_with_by_its_id(store: Any) -> None:
    """The caller repeats what it asked for, and it is the same turn however often."""
    asked = asyncio.Event()

    class Slow(FakeModel):
        async def generate(self, **given: Any) -> Any:
            if len(self.calls) == 1 and not asked.is_set():
                asked.set()
                await asyncio.Event().wait()
            return await super().generate(**given)

    agent = Agent(Slow(["one", "two"]), store=store)
    agent.run_sync("first", run_id=RUN)
    leave(agent, asked, "second", turn_id="t")
    with pytest.raises(InFlightError):
        agent.run_sync("third", run_id=RUN, turn_id="u")
    assert agent.run_sync("second", run_id=RUN, turn_id="t").output == "two"
    assert kinds(store).count("user_message") == 1


def test_calls_do_not_survive_their_turn(store: Any) -> None:
    """An answer beside other calls ends the turn when they are done; nothing of it is executed in the next one."""
    ran: list[str] = []

    @tool
    def act(name: str) -> str:
        """Has an effect."""
        ran.append(name)
        return name

    model = FakeModel([[ANSWER, ("act", {"name": "sibling"})], [("final_answer", {"n": 2})]])
    agent = Agent(model, [act], store=store, output_schema=NUMBER)
    assert agent.run_sync("first", run_id=RUN).output_parsed == {"n": 1}
    assert ran == ["sibling"]
    assert agent.run_sync("second", run_id=RUN).output_parsed == {"n": 2}
    assert ran == ["sibling"]
    roles = [message["role"] for message in model.calls[1]["messages"]]
    assert roles == ["user", "assistant", "tool", "tool", "user"]


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_an_answer_waits_for_the_calls_beside_it_that_wait_for_a_person(store: Any, verdict: str) -> None:
    """It may be an answer to what they come to."""
    model = FakeModel([[ANSWER, ("look", {})], "never"])
    agent = Agent(model, [look], store=store, output_schema=NUMBER, autonomy=Autonomy(default="assisted"))
    waiting = agent.run_sync("go", run_id=RUN)
    assert (waiting.status, waiting.output_parsed) == ("paused", None)
    assert [request["tool"] for request in waiting.pending_approvals] == ["look"]  # nobody is asked about an answer
    asyncio.run(getattr(agent, verdict)(RUN))
    assert agent.run_sync(run_id=RUN).output_parsed == {"n": 1}
    assert len(model.calls) == 1


def test_a_schema_may_name_its_parts(store: Any) -> None:
    """What pydantic makes of nested models: definitions, and references to them, also at the root and to itself."""
    tree = {
        "$defs": {
            "Tree": {
                "type": "object",
                "properties": {"n": {"type": "integer"}, "parts": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
                "required": ["n"],
            }
        },
        "$ref": "#/$defs/Tree",
    }
    wrong, right = {"n": 1, "parts": [{"n": "x"}]}, {"n": 1, "parts": [{"n": 2}]}
    model = FakeModel([[("final_answer", {"value": wrong})], [("final_answer", {"value": right})]])
    result = Agent(model, store=store, output_schema=tree).run_sync("go", run_id=RUN)
    assert (result.output_parsed, result.reason) == (right, "answered")
    assert "$.parts[0].n: expected integer" in contents(store)[0]


def test_without_a_schema_there_is_no_tool_to_answer_with(store: Any) -> None:
    """A model that remembers one from elsewhere is told so, and answers in words."""
    result = Agent(FakeModel([[ANSWER], "in words"]), store=store).run_sync("go", run_id=RUN)
    assert (result.output, result.output_parsed, categories(store)) == ("in words", None, ["unknown_tool"])


def test_a_form_is_asked_for_in_a_stream_too() -> None:
    """Every way to run takes every option."""

    async def collect() -> list[str]:
        agent = Agent(FakeModel([[ANSWER]]))
        return [event.type async for event in agent.stream("go", output_schema=NUMBER)]

    assert asyncio.run(collect()) == ["run_started", "model_decision", "tool_result", "run_finished"]


class Awaited:
    """An object whose call must be awaited."""

    def __init__(self, result: Any) -> None:
        self.result = result

    async def __call__(self, *about: Any) -> Any:
        await asyncio.sleep(0)
        return self.result


class Handed:
    """An object whose call hands out something to await, as a plain function may."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __call__(self, *about: Any) -> Any:
        return Awaited(self.result)()


@pytest.mark.parametrize("kind", [Awaited, Handed])
def test_whatever_must_be_awaited_is_awaited(kind: Any) -> None:
    """In no place of a conversation stands the text of a coroutine object, and no guard passes for being one."""

    def fails() -> str:
        """Fails."""
        raise ValueError("no")

    class Memory:
        recall = staticmethod(kind([MemoryItem("k", "remembered")]))
        remember = staticmethod(kind(None))

    checked = tool(name="checked", validate=kind("checked"))(lambda: "raw")
    soft = tool(name="soft", fallback=kind("instead"))(fails)
    gated = tool(name="gated", requires_approval=True)(lambda: "granted")
    silent = {name: kind(None) for name in ("input_guard", "output_guard", "result_guard")}
    guards = Guardrails(approver=kind(True), **silent)
    model = FakeModel([[("checked", {}), ("soft", {}), ("gated", {})], "done"])
    agent = Agent(model, [checked, soft, gated], memory=Memory(), guardrails=guards)
    assert agent.run_sync("go", run_id=RUN).output == "done"
    first, second, third = contents(agent.store)
    assert (first, '"fallback": "instead"' in second, third) == ("checked", True, "granted")
    assert "- remembered" in model.calls[0]["system"]


@pytest.mark.parametrize("kind", [Awaited, Handed])
def test_a_refusal_that_must_be_awaited_refuses(kind: Any) -> None:
    """A coroutine is true: it must not be taken for a reason, nor for none."""
    agent = Agent(FakeModel(["never"]), guardrails=Guardrails(input_guard=kind("because")))
    assert agent.run_sync("go").output == "(blocked: because)"


@pytest.mark.parametrize(
    "wish",
    ["0", 0, "-3", format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)],
    ids=["text", "number", "past", "date"],
)
def test_a_tool_may_hand_on_the_wait_it_was_asked_for_as_it_came(wish: Any) -> None:
    """A Retry-After header is seconds or a date; either is obeyed, and neither ends the run."""
    tries: list[int] = []

    @tool(retries=1, backoff=3600)
    def ask() -> str:
        """Is refused once."""
        tries.append(1)
        if len(tries) == 1:
            raise RateLimitError(retry_after=wish)
        return "answered"

    result = Agent(FakeModel([[("ask", {})], "done"]), [ask]).run_sync("go")
    assert [event.payload["content"] for event in result.events if event.type == "tool_result"] == ["answered"]


def test_a_turn_with_an_id_may_say_nothing() -> None:
    """A client that takes an empty message must not be given the answer to the one before."""
    agent = Agent(FakeModel(["one", "two"]))
    agent.run_sync("first", run_id=RUN, turn_id="a")
    assert agent.run_sync("", run_id=RUN, turn_id="b").output == "two"
