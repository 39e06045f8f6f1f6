"""An irreversible call in one process of which nobody knows whether it took effect, and the person who finds out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import LeaseHeldError, NotUnknownError
from drangue_worker import Agent, Done, InMemoryStore, NotDone, tool
from drangue_worker.testing import FakeModel
from tests.contract.log_scenes import elapse
from tests.kit.inline import PLACES, RUN, Scripted, calls, categories, contents, copy_of, kinds, leave, opened, until


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from opened(request.param, request, tmp_path)


@pytest.fixture
def memory() -> Iterator[Any]:
    made = InMemoryStore()
    yield made
    made.close()


@pytest.fixture
def made() -> list[str]:
    """The keys of the calls that were made in this test."""
    return []


def lost(made: list[str], reached: asyncio.Event | None = None, **options: Any) -> Any:
    """A tool that cannot be undone and whose answer never comes; with `reached` it waits for it without an end."""

    @tool(reversible=False, timeout=None if reached else 0.1, **options)
    async def wire(idempotency_key: str) -> str:
        """Sends money, and hears nothing of it."""
        made.append(idempotency_key)
        if reached:
            reached.set()
        await asyncio.Event().wait()
        return "never"

    return wire


def told(model: FakeModel, call: int = -1) -> list[str]:
    """What a model was told of its calls."""
    return [message["content"] for message in model.calls[call]["messages"] if message["role"] == "tool"]


@pytest.mark.parametrize("happened", [True, False])
def test_a_person_who_is_asked_settles_it_and_the_run_goes_on(store: Any, made: list[str], happened: bool) -> None:
    """Nothing is executed again, and the model reads what the person found as the call's own result."""
    model = Scripted(calls(("wire", {}, "a"), ("wire", {}, "b")), "done")
    agent = Agent(model, [lost(made, on_unknown="ask")], store=store)
    waiting = agent.run_sync("go", run_id=RUN)
    assert (waiting.status, waiting.output) == ("paused", "(paused: awaiting word of an unknown outcome)")
    (item,) = waiting.unknown_outcomes
    assert (item["step"], item["call_id"], item["tool"], item["arguments"], item["asked"]) == (2, "a", "wire", {}, True)
    assert asyncio.run(agent.unknown_outcomes(RUN)) == [item]
    assert [row.run_id for row in store.runs(unknown=True)] == [RUN]
    assert asyncio.run(agent.resume(RUN)).status == "paused"
    assert made == [f"{RUN}:2"]
    asyncio.run(agent.give_outcome(RUN, happened=happened, note="entry 4711", by="ann", reason="asked the bank"))
    assert store.runs(unknown=True) == []
    assert asyncio.run(agent.resume(RUN)).status == "paused"  # the second transfer is lost as well
    assert made == [f"{RUN}:2", f"{RUN}:3"]
    asyncio.run(agent.give_outcome(RUN, "b", happened=True))
    done = asyncio.run(agent.resume(RUN))
    assert (done.output, done.unknown_outcomes, len(made)) == ("done", [], 2)
    first, second = told(model)
    if happened:
        assert first == "entry 4711"
    else:
        error = json.loads(first)["error"]
        assert (error["category"], error["note"]) == ("not_done", "entry 4711")
    assert json.loads(second)["ok"] is True
    assert "outcome_corrected" not in kinds(store)  # nothing was told before that would be to correct
    given = next(event.payload for event in done.events if event.type == "outcome_given")
    assert given == {"call_id": "a", "happened": happened, "by": "ann", "reason": "asked the bank"}


def test_by_default_the_model_is_told_and_nobody_is_asked(store: Any, made: list[str]) -> None:
    """The run goes on by itself; the outcome is on the list of those that somebody may look for."""
    model = Scripted(calls(("wire", {})), "done")
    done = Agent(model, [lost(made)], store=store).run_sync("go", run_id=RUN)
    assert (done.output, categories(store), len(made)) == ("done", ["unknown_outcome"], 1)
    assert [(item["step"], item["asked"]) for item in done.unknown_outcomes] == [(2, False)]
    assert json.loads(told(model)[0])["error"]["category"] == "unknown_outcome"


@pytest.mark.parametrize(("recorded", "today"), [("ask", "model"), ("model", "ask"), ("ask", "ask")])
def test_the_stricter_of_then_and_today_says_who_is_told(
    memory: Any, made: list[str], recorded: str, today: str
) -> None:
    """A deploy in between lets no doubt pass that a person was promised to be asked about."""
    wire = lost(made)
    started = [copy_of(wire, requires_approval=True, on_unknown=recorded)]
    Agent(FakeModel([[("wire", {})], "done"]), started, store=memory).run_sync("go", run_id=RUN)
    agent = Agent(FakeModel(["done"]), [copy_of(wire, requires_approval=True, on_unknown=today)], store=memory)
    asyncio.run(agent.approve(RUN))
    assert asyncio.run(agent.resume(RUN)).status == "paused"
    assert [item["asked"] for item in asyncio.run(agent.unknown_outcomes(RUN))] == [True]


@pytest.mark.parametrize("how", ["its time was over", "its caller went away", "its process was not heard of again"])
@pytest.mark.parametrize("on_unknown", ["model", "ask"])
def test_not_done_is_no_proof_while_nobody_is_known_to_be_dead(
    memory: Any, made: list[str], how: str, on_unknown: Any
) -> None:
    """Whoever made the call may still be at it: what is not done yet may be done a second later."""
    asked: list[str] = []

    def not_done(key: str) -> NotDone:
        asked.append(key)
        return NotDone()

    reached = None if how == "its time was over" else asyncio.Event()
    wire = lost(made, reached, reconcile=not_done, on_unknown=on_unknown)
    agent = Agent(FakeModel([[("wire", {})], "done"], by_turn=True), [wire], store=memory)
    if reached is None:
        result = agent.run_sync("go", run_id=RUN)
    elif how == "its caller went away":
        leave(agent, reached)
        result = asyncio.run(agent.resume(RUN))
    else:
        result = asyncio.run(_taken_over(agent, memory, reached))
    assert (made, asked) == ([f"{RUN}:2"], [f"{RUN}:2"])
    assert [item["asked"] for item in result.unknown_outcomes] == [on_unknown == "ask"]
    assert result.status == ("paused" if on_unknown == "ask" else "completed")


@pytest.mark.parametrize("on_unknown", ["model", "ask"])
def test_what_can_be_looked_up_is_asked_of_nobody(memory: Any, made: list[str], on_unknown: Any) -> None:
    """`Done` is the result, also of a call whose time was over."""
    wire = lost(made, on_unknown=on_unknown, reconcile=lambda key: Done(f"found under {key}"))
    result = Agent(FakeModel([[("wire", {})], "done"]), [wire], store=memory).run_sync("go", run_id=RUN)
    assert (result.output, contents(memory), result.unknown_outcomes) == ("done", [f"found under {RUN}:2"], [])
    assert len(made) == 1


def test_a_reconcile_that_raises_knows_nothing(memory: Any, made: list[str]) -> None:
    """The person who is asked instead is told why it could not be looked up."""

    def away(key: str) -> Done:
        raise RuntimeError("the bank is closed")

    wire = lost(made, on_unknown="ask", reconcile=away)
    result = Agent(FakeModel([[("wire", {})], "done"]), [wire], store=memory).run_sync("go", run_id=RUN)
    assert result.status == "paused"
    (request,) = [event.payload for event in result.events if event.type == "outcome_requested"]
    assert "the bank is closed" in json.loads(request["content"])["error"]["reconcile_error"]


def test_an_outcome_that_the_model_has_not_read_yet_stands_in_its_place(store: Any, made: list[str]) -> None:
    """A sibling is still at work: the model never hears that it was unknown."""

    @tool
    async def look() -> str:
        """Ends when somebody has said what became of the transfer."""
        await until(lambda: "tool_result" in kinds(store))
        await agent.give_outcome(RUN, happened=True, note="it arrived", by="ann")
        return "seen"

    model = Scripted(calls(("wire", {}, "a"), ("look", {}, "b")), "done")
    agent = Agent(model, [lost(made), look], store=store)
    result = agent.run_sync("go", run_id=RUN)
    assert (result.output, told(model), result.unknown_outcomes) == ("done", ["it arrived", "seen"], [])
    assert kinds(store).count("outcome_corrected") == 1


def test_one_that_it_has_read_as_unknown_is_told_with_its_next_call(store: Any, made: list[str]) -> None:
    """What a model has answered to is not changed behind its back; the finished run is left finished."""
    model = Scripted(calls(("wire", {})), "I do not know.", "So it did not.")
    agent = Agent(model, [lost(made)], store=store)
    agent.run_sync("go", run_id=RUN)
    asyncio.run(agent.give_outcome(RUN, happened=False, note="no entry"))
    assert [row.status for row in store.runs()] == ["completed"]
    agent.run_sync("well?", run_id=RUN)
    shown = model.calls[-1]["messages"]
    assert [message["role"] for message in shown] == ["user", "assistant", "tool", "assistant", "user", "user"]
    assert json.loads(shown[2]["content"])["error"]["category"] == "unknown_outcome"
    assert any("no entry" in message["content"] for message in shown[4:])
    assert len(made) == 1


def test_a_true_outcome_that_comes_while_a_person_is_asked_is_the_answer(store: Any) -> None:
    """Taken for dead and alive after all: the run goes on by itself, and the person has nothing to look for."""
    began, asked, sent = asyncio.Event(), asyncio.Event(), []

    @tool(reversible=False, on_unknown="ask")
    async def wire() -> str:
        """Ends after somebody else has taken its step over and asked a person."""
        began.set()
        await asked.wait()
        sent.append(1)
        return "sent"

    model = FakeModel([[("wire", {})], "done"], by_turn=True)
    agent = Agent(model, [wire], store=store)

    async def play() -> Any:
        first = asyncio.create_task(agent.run("go", run_id=RUN))
        await began.wait()
        elapse(store, 60)
        waiting = await agent.resume(RUN)
        assert (waiting.status, len(waiting.unknown_outcomes)) == ("paused", 1)
        asked.set()
        with suppress(LeaseHeldError):
            await first
        with pytest.raises(NotUnknownError):
            await agent.give_outcome(RUN, happened=False)
        return await agent.resume(RUN)

    done = asyncio.run(play())
    assert (done.output, contents(store), sent, done.unknown_outcomes) == ("done", ["sent"], [1], [])
    assert "outcome_corrected" not in kinds(store)


@pytest.mark.parametrize("on_unknown", ["model", "ask"])
def test_a_true_outcome_that_comes_while_reconcile_is_asked_is_known(memory: Any, on_unknown: Any) -> None:
    """It stands in the log before anybody says that it is unknown: nobody is asked, and it is on no list."""
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(key: str) -> None:
        go_on.set()
        await until(lambda: "outcome_corrected" in kinds(memory) or "tool_result" in kinds(memory))

    @tool(reversible=False, on_unknown=on_unknown, reconcile=slow)
    async def wire() -> str:
        """Ends while whoever has taken its step over looks for what it did."""
        began.set()
        await go_on.wait()
        return "sent"

    model = FakeModel([[("wire", {})], "done"], by_turn=True)
    agent = Agent(model, [wire], store=memory)

    async def play() -> Any:
        first = asyncio.create_task(agent.run("go", run_id=RUN))
        await began.wait()
        elapse(memory, 60)
        second = asyncio.create_task(agent.resume(RUN))
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [one for one in outcomes if isinstance(one, Exception) and not isinstance(one, LeaseHeldError)] == []
        return await agent.resume(RUN)

    done = asyncio.run(play())
    assert (done.status, done.unknown_outcomes, memory.runs(unknown=True)) == ("completed", [], [])
    assert [message["content"] for message in done.messages if message["role"] == "tool"] == ["sent"]


def test_two_people_who_answer_at_once_are_one_answer(store: Any, made: list[str]) -> None:
    """The first word holds, the other person hears that it is known by now, and the run goes on once."""
    agent = Agent(Scripted(calls(("wire", {})), "done"), [lost(made, on_unknown="ask")], store=store)
    agent.run_sync("go", run_id=RUN)

    async def answer(word: bool) -> Any:
        try:
            return await agent.give_outcome(RUN, "id_0", happened=word, note=str(word))
        except NotUnknownError as refused:
            return refused

    async def at_once() -> list[Any]:
        return list(await asyncio.gather(answer(True), answer(False)))

    heard = asyncio.run(at_once())
    assert sorted(isinstance(one, NotUnknownError) for one in heard) == [False, True]
    done = asyncio.run(agent.resume(RUN))
    (given,) = [event for event in done.events if event.type == "outcome_given"]
    assert given.payload["happened"] == (heard[0] is None)
    assert (done.output, len(contents(store)), len(made)) == ("done", 1, 1)


def test_a_run_that_is_cancelled_while_a_person_is_asked_still_takes_the_answer(memory: Any, made: list[str]) -> None:
    """The books must be put right whether the run goes on or not; the next turn is told what was found."""
    model = Scripted(calls(("wire", {})), "Thank you.")
    agent = Agent(model, [lost(made, on_unknown="ask")], store=memory)
    agent.run_sync("go", run_id=RUN)
    asyncio.run(agent.cancel(RUN))
    assert [item["asked"] for item in asyncio.run(agent.unknown_outcomes(RUN))] == [False]
    asyncio.run(agent.give_outcome(RUN, happened=True, note="it arrived"))
    assert memory.runs(unknown=True) == []
    assert asyncio.run(agent.resume(RUN)).status == "cancelled"
    agent.run_sync("well?", run_id=RUN)
    assert told(model) == ["it arrived"]


async def _taken_over(agent: Agent, store: Any, reached: asyncio.Event) -> Any:
    """What a process that takes the run over comes to, while the one that began it is still at it."""
    first = asyncio.create_task(agent.run("go", run_id=RUN))
    await reached.wait()
    elapse(store, 60)
    try:
        return await agent.resume(RUN)
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


def test_a_late_true_outcome_holds_against_what_a_person_said(memory: Any) -> None:
    """Ann found nothing at the bank yet and said so; the receipt that comes later must not be thrown away."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    @tool(reversible=False)
    async def pay() -> str:
        """Pay, late."""
        begun.set()
        await go_on.wait()
        return "paid, receipt 4711"

    agent, other = (Agent(Scripted(calls(("pay", {})), "end"), [pay], store=memory) for _ in range(2))

    async def story() -> None:
        first = asyncio.create_task(agent.run("go", run_id=RUN))
        await begun.wait()
        elapse(memory, 60)  # it is taken for dead
        second = asyncio.create_task(other.run(run_id=RUN))
        await until(lambda: "tool_result" in kinds(memory))
        await agent.give_outcome(RUN, happened=False, by="ann", note="not on the statement")
        go_on.set()
        await asyncio.gather(first, second, return_exceptions=True)

    asyncio.run(story())
    corrected = [event.payload["content"] for event in memory.events(RUN) if event.type == "outcome_corrected"]
    assert corrected[-1] == "paid, receipt 4711"
    assert memory.look(RUN).run.unknown == ()
