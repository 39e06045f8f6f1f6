"""A run in one process whose time is over, wherever its log lives and whatever it is at."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import NotPendingError, RateLimitError, RunFailedError, TransientError
from drangue_client.store.values import NewRun
from drangue_worker import Agent, Autonomy, InMemoryStore, ModelResponse, tool
from drangue_worker.testing import FakeModel
from tests.kit.inline import PLACES, RUN, Scripted, calls, categories, contents, kinds, opened, until

TIME_S = 0.6
ROOMY_S = 1.5  # where something must have begun, or a database have been asked a few times, before it is over
SOON_S = 4.0  # about a second beyond its time, on a machine that has much to do
OVER = "(stopped: its time was over)"


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from opened(request.param, request, tmp_path)


@pytest.fixture
def memory() -> Iterator[Any]:
    made = InMemoryStore()
    yield made
    made.close()


class Thinking(Scripted):
    """A model that thinks until it is stopped."""

    def __init__(self) -> None:
        super().__init__("never")
        self.stopped = False

    async def generate(self, **given: Any) -> ModelResponse:
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped = True
        raise AssertionError("nobody sets it")


@tool
async def dawdle() -> str:
    """Never ends by itself."""
    await asyncio.Event().wait()
    return "never"


def ended(agent: Agent, text: str = "go", run_id: str = RUN) -> tuple[Any, float]:
    """A run that must end by its deadline, and how long that took."""
    began = time.monotonic()
    result = agent.run_sync(text, run_id=run_id)
    took = time.monotonic() - began
    assert (result.status, result.reason, result.output) == ("completed", "deadline", OVER)
    return result, took


def test_a_slow_tool_is_ended(store: Any) -> None:
    """Its call is told as cancelled in the next turn; nothing else of the turn is begun."""
    agent = Agent(FakeModel([[("dawdle", {})], "too late"]), [dawdle], store=store, deadline=ROOMY_S)
    _, took = ended(agent)
    assert ROOMY_S <= took < ROOMY_S + SOON_S
    assert kinds(store) == ["run_started", "model_decision", "run_finished", "tool_result"]
    assert categories(store) == ["cancelled"]
    assert [(row.status, row.wake_at) for row in store.runs()] == [("completed", None)]


def test_a_slow_thought_is_ended(store: Any) -> None:
    """The provider sees its client go; the number of the thought is not given to another."""
    model = Thinking()
    agent = Agent(model, store=store, deadline=ROOMY_S)
    _, took = ended(agent)
    assert ROOMY_S <= took < ROOMY_S + SOON_S
    assert model.stopped
    assert kinds(store) == ["run_started", "run_finished", "step_stopped"]
    again = Agent(Scripted("hello"), store=store, deadline=30.0).run_sync("well?", run_id=RUN)
    assert [event.step for event in again.events if event.type == "model_decision"] == [2]


def test_a_sync_tool_that_hangs_is_left_behind(memory: Any) -> None:
    """In one process it cannot be stopped, only abandoned: whoever asked has the answer all the same."""
    release = threading.Event()

    @tool
    def hang() -> str:
        """Hears nothing."""
        release.wait(30)
        return "never"

    try:
        _, took = ended(Agent(FakeModel([[("hang", {})], "too late"]), [hang], store=memory, deadline=TIME_S))
    finally:
        release.set()
    assert took < TIME_S + SOON_S
    assert categories(memory) == ["cancelled"]


@pytest.mark.parametrize("of", ["a tool", "a model"])
def test_a_backoff_does_not_outlast_it(memory: Any, of: str) -> None:
    """A minute's wait for another attempt is no reason to answer a minute late."""
    made: list[int] = []

    @tool(retries=3, backoff=60.0)
    async def flaky() -> str:
        """Out of reach."""
        made.append(1)
        raise TransientError("come again")

    script = [calls(("flaky", {}))] if of == "a tool" else [RateLimitError("slow down", retry_after=60.0)]
    model = Scripted(*script, "too late")
    _, took = ended(Agent(model, [flaky], store=memory, deadline=ROOMY_S))
    assert took < ROOMY_S + SOON_S
    assert (len(model.calls), len(made)) == (1, 1 if of == "a tool" else 0)


def test_a_run_that_waits_for_a_person_ends_too(store: Any) -> None:
    """Whoever goes on with it finds it over, and a late verdict finds nothing to decide; the call is never made."""

    @tool
    def pay() -> str:
        """Never called."""
        raise AssertionError("it had no leave in time")

    agent = Agent(
        FakeModel([[("pay", {})], "done"]), [pay], store=store, autonomy=Autonomy("assisted"), deadline=ROOMY_S
    )
    assert agent.run_sync("go", run_id=RUN).status == "paused"
    asyncio.run(until(lambda: _is_over(store)))
    _, took = ended(agent, "go")
    assert took < SOON_S
    with pytest.raises(NotPendingError):
        asyncio.run(agent.approve(RUN))
    assert asyncio.run(agent.pending_approvals(RUN)) == []


def test_leave_that_comes_too_late_lets_nothing_run(memory: Any) -> None:
    """The verdict was recorded before anybody noticed that the time was over."""

    @tool
    def pay() -> str:
        """Never called."""
        raise AssertionError("it had no leave in time")

    agent = Agent(
        FakeModel([[("pay", {})], "done"]), [pay], store=memory, autonomy=Autonomy("assisted"), deadline=ROOMY_S
    )
    assert agent.run_sync("go", run_id=RUN).status == "paused"
    asyncio.run(until(lambda: _is_over(memory)))
    asyncio.run(agent.approve(RUN))
    assert asyncio.run(agent.resume(RUN)).reason == "deadline"
    assert kinds(memory)[-2:] == ["approval_granted", "run_finished"]


def test_the_next_turn_has_its_own_time(store: Any) -> None:
    """And may be late itself; the calls of the first are answered in the conversation it begins with."""
    model = Scripted(calls(("dawdle", {}, "a")), "Sorry.", calls(("dawdle", {}, "b")), "never")
    agent = Agent(model, [dawdle], store=store, deadline=ROOMY_S)
    ended(agent)
    second = agent.run_sync("why so slow?", run_id=RUN)
    assert (second.reason, second.output) == ("answered", "Sorry.")
    assert [message["role"] for message in model.calls[1]["messages"]] == ["user", "assistant", "tool", "user"]
    _, took = ended(agent, "once more")
    assert ROOMY_S <= took < ROOMY_S + SOON_S
    begins = [event.payload["deadline_at"] for event in store.events(RUN) if "deadline_at" in event.payload]
    assert len(begins) == 3
    assert begins == sorted(begins)
    steps = [event.step for event in store.events(RUN) if event.type == "model_decision"]
    assert len(set(steps)) == len(steps) >= 2  # on a slow machine the third turn is over before its first thought is


def test_an_irreversible_call_that_has_begun_is_let_finish(store: Any) -> None:
    """Its outcome is recorded when it comes: the money has moved, whether anybody waits for the answer or not."""

    @tool(reversible=False)
    async def wire() -> str:
        """Ends when the turn is over, and a halt would have come."""
        await until(lambda: _status(store) == "completed")
        await asyncio.sleep(1.2)  # beyond the second in which a halt is noticed
        return "wired"

    script = calls(("wire", {}, "a"), ("wire", {}, "b"))
    model = Scripted(script, "Sorry.")
    agent = Agent(model, [wire], store=store, deadline=ROOMY_S)
    ended(agent)
    assert kinds(store) == ["run_started", "model_decision", "step_started", "run_finished", "tool_result"]
    assert contents(store) == ["wired"]
    assert asyncio.run(agent.unknown_outcomes(RUN)) == []
    agent.run_sync("well?", run_id=RUN)
    told = [message["content"] for message in model.calls[1]["messages"] if message["role"] == "tool"]
    assert told[0] == "wired"
    assert json.loads(told[1])["error"]["category"] == "cancelled"


def test_one_that_may_be_stopped_is_and_nobody_knows_what_became_of_it(memory: Any) -> None:
    """`on_cancel="stop"`: its author would rather look it up than wait for it."""

    @tool(reversible=False, on_cancel="stop")
    async def wire() -> str:
        """Never ends by itself."""
        await asyncio.Event().wait()
        return "never"

    agent = Agent(FakeModel([[("wire", {})], "too late"]), [wire], store=memory, deadline=ROOMY_S)
    result, took = ended(agent)
    assert took < ROOMY_S + SOON_S
    assert categories(memory) == ["unknown_outcome"]
    (unknown,) = result.unknown_outcomes
    assert (unknown["tool"], unknown["asked"]) == ("wire", False)
    assert [row.run_id for row in memory.runs(unknown=True)] == [RUN]


def test_one_that_is_to_finish_finishes(memory: Any) -> None:
    """`on_cancel="finish"`: a reversible call whose half is worth nothing."""

    @tool(on_cancel="finish")
    async def copy() -> str:
        """Ends when the turn is over, and a halt would have come."""
        await until(lambda: _status(memory) == "completed")
        await asyncio.sleep(1.2)  # beyond the second in which a halt is noticed
        return "copied"

    ended(Agent(FakeModel([[("copy", {})], "too late"]), [copy], store=memory, deadline=ROOMY_S))
    assert contents(memory) == ["copied"]


def test_a_failed_run_that_is_taken_up_again_has_its_time_anew(memory: Any) -> None:
    """The cause was mended after the first deadline."""
    agent = Agent(Scripted(RuntimeError("gone"), "It is fine."), store=memory, deadline=ROOMY_S, model_retries=0)
    with pytest.raises((RunFailedError, RuntimeError)):
        agent.run_sync("go", run_id=RUN)
    asyncio.run(until(lambda: _is_over(memory)))
    result = asyncio.run(agent.resume(RUN))
    assert (result.reason, result.output) == ("answered", "It is fine.")


@pytest.mark.parametrize(("agents", "asked"), [(30.0, TIME_S), (TIME_S, 30.0), (None, TIME_S), (TIME_S, None)])
def test_the_shorter_of_the_agents_and_the_callers_holds(
    memory: Any, agents: float | None, asked: float | None
) -> None:
    """A caller may be in more of a hurry than the author, and may not overrule a limit."""
    agent = Agent(FakeModel([[("dawdle", {})], "too late"]), [dawdle], store=memory, deadline=agents, name="a")
    overrides = {} if asked is None else {"deadline_s": asked}
    memory.submit([NewRun(RUN, "a", "go", executor="inline", overrides=overrides)])
    result = asyncio.run(agent.resume(RUN))
    assert result.reason == "deadline"
    (config,) = [event.payload["config"] for event in result.events if event.type == "run_started"]
    assert config["deadline_s"] == TIME_S


def test_an_answer_in_time_is_the_answer(store: Any) -> None:
    """A deadline costs nothing where it is kept."""
    result = Agent(Scripted("It is 42."), store=store, deadline=30.0).run_sync("go", run_id=RUN)
    assert (result.reason, result.output) == ("answered", "It is 42.")


def test_a_clock_that_was_set_back_does_not_take_the_deadline_away(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database's clock is corrected now and then: a look that comes a moment too soon is not the last one."""
    ahead_s = 0.4
    look = memory.look

    def look_ahead(run_id: str) -> Any:
        seen = look(run_id)
        return replace(seen, now=seen.now + ahead_s)

    @tool
    async def slow() -> str:
        """Would end by itself, much later."""
        nonlocal ahead_s
        ahead_s = 0.0
        await asyncio.sleep(6)
        return "slow"

    monkeypatch.setattr(memory, "look", look_ahead)
    agent = Agent(FakeModel([[("slow", {})], "too late"]), [slow], store=memory, deadline=0.8)
    began = time.monotonic()
    assert agent.run_sync("go", run_id=RUN).reason == "deadline"
    assert time.monotonic() - began < 0.8 + SOON_S


def test_a_deadline_for_ever_is_refused_or_kept(store: Any) -> None:
    """`deadline=1e12` means that somebody wanted none: the run must not die of a date that no calendar has."""
    try:
        agent = Agent(Scripted("It is 42."), store=store, deadline=1e12)
    except ValueError:
        return
    assert agent.run_sync("go", run_id=RUN).output == "It is 42."


def _status(store: Any) -> str:
    return str(store.look(RUN).row.status)


def _is_over(store: Any) -> bool:
    """Whether the time of the run's turn is over, by the database's clock."""
    look = store.look(RUN)
    first = next(event for event in store.events(RUN) if event.type == "run_started")
    return bool(look.now > first.payload["deadline_at"])
