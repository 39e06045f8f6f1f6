"""A run in one process is ended from outside it, wherever its log lives."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import InFlightError, UnknownRunError
from drangue_client.store.values import Ask, NewRun
from drangue_worker import Agent, Autonomy, ModelResponse, tool
from drangue_worker.engine.coordinate import coordinate
from drangue_worker.testing import FakeModel
from tests.contract.log_scenes import elapse
from tests.kit.fleet import wait_until
from tests.kit.inline import PLACES, RUN, Scripted, calls, kinds, opened


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from opened(request.param, request, tmp_path)


class Thinking(Scripted):
    """A model that thinks until it is stopped; `asked` is set when it begins."""

    def __init__(self) -> None:
        super().__init__("never")
        self.asked, self.stopped = asyncio.Event(), False

    async def generate(self, **given: Any) -> ModelResponse:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.stopped = True
            raise
        raise AssertionError("nobody sets it")


async def cancelled_when(reached: asyncio.Event, agent: Agent) -> Any:
    """The run of an agent that is cancelled by another one, on the same store, once it has got so far."""
    work = asyncio.create_task(agent.run("go", run_id=RUN))
    await reached.wait()
    assert await Agent(FakeModel(), store=agent.store).cancel(RUN, by="ann", reason="enough")
    return await work


def test_a_thought_is_given_up_and_the_run_goes_on_with_another_turn(store: Any) -> None:
    """The number of the step that was given up is not used again: its key stands for another conversation."""
    model = Thinking()
    result = asyncio.run(cancelled_when(model.asked, Agent(model, store=store)))
    assert (result.status, result.reason, model.stopped) == ("cancelled", "cancelled", True)
    assert kinds(store) == ["run_started", "run_cancelled", "step_stopped"]
    after = Scripted("hello again")
    again = Agent(after, store=store).run_sync("well?", run_id=RUN)
    assert again.output == "hello again"
    assert [event.step for event in again.events if event.type == "model_decision"] == [2]
    assert [message["content"] for message in after.calls[0]["messages"]] == ["go", "well?"]


def test_calls_that_were_given_up_are_answered_in_the_next_turn(store: Any) -> None:
    """A provider refuses a conversation in which a call has no result."""
    reached, release = asyncio.Event(), threading.Event()

    @tool(reversible=False)
    def wire() -> str:
        """Cannot be undone."""
        loop.call_soon_threadsafe(reached.set)
        assert release.wait(30)
        return "wired"

    @tool
    async def look() -> str:
        """Takes its time."""
        await asyncio.Event().wait()
        return "never"

    async def go() -> Any:
        nonlocal loop
        loop = asyncio.get_running_loop()
        work = asyncio.create_task(cancelled_when(reached, agent))
        await asyncio.wait({asyncio.create_task(_is_cancelled(store)), work}, return_when="FIRST_COMPLETED")
        with pytest.raises(InFlightError):
            await agent.run("too early", run_id=RUN)
        release.set()
        return await work

    loop: Any = None
    asked = calls(("wire", {}, "a"), ("look", {}, "b"), ("wire", {}, "c"))
    agent = Agent(FakeModel([asked, "unused"]), [wire, look], store=store)
    assert asyncio.run(go()).status == "cancelled"
    after = Scripted("hello again")
    Agent(after, [wire, look], store=store).run_sync("well?", run_id=RUN)
    told = [message for message in after.calls[0]["messages"] if message["role"] == "tool"]
    assert [message["call_id"] for message in told] == ["a", "b", "c"]
    assert told[0]["content"] == "wired"
    assert [json.loads(message["content"])["error"]["category"] for message in told[1:]] == ["cancelled", "cancelled"]


async def _is_cancelled(store: Any) -> None:
    await asyncio.to_thread(wait_until, lambda: [row.status for row in store.runs()] == ["cancelled"])


def test_a_run_that_waits_for_a_person_waits_no_longer(store: Any) -> None:
    """Nobody is asked about it any more, and a late verdict finds nothing to decide."""

    @tool
    def pay() -> str:
        """Never called."""
        raise AssertionError("it had no leave")

    agent = Agent(FakeModel([[("pay", {})], "done"]), [pay], store=store, autonomy=Autonomy("assisted"))
    assert agent.run_sync("go", run_id=RUN).status == "paused"
    assert asyncio.run(agent.cancel(RUN, by="ann"))
    assert asyncio.run(agent.pending_approvals(RUN)) == []
    assert agent.run_sync(run_id=RUN).status == "cancelled"
    assert not asyncio.run(agent.cancel(RUN))


def test_what_a_process_that_died_had_begun_does_not_block_the_next_turn(store: Any) -> None:
    """Its claim lapses; whoever speaks next records what is known of it: nothing."""

    @tool(reversible=False)
    def wire() -> str:
        """Cannot be undone."""
        raise AssertionError("it must not be called again")

    model = Thinking()
    agent = Agent(FakeModel([[("wire", {})], "done"]), [wire], store=store, autonomy=Autonomy("assisted"))
    agent.run_sync("go", run_id=RUN)
    asyncio.run(agent.approve(RUN))
    runtime = agent._runtime(trace=False)
    coordinate(runtime, RUN)
    runtime.close()
    (claimed,) = store.claim([Ask(RUN, 2, "token", "a process that dies", "inline")], 15)
    assert claimed is not None
    asyncio.run(agent.cancel(RUN))
    with pytest.raises(InFlightError):
        Agent(model, store=store).run_sync("well?", run_id=RUN)
    elapse(store, 60)
    assert Agent(Scripted("hello"), store=store).run_sync("well?", run_id=RUN).output == "hello"
    results = [event for event in store.events(RUN) if event.type == "tool_result"]
    assert [json.loads(event.payload["content"])["error"]["category"] for event in results] == ["cancelled"]


def test_a_run_that_has_not_begun_is_cancelled_too(store: Any) -> None:
    """Its only event says so."""
    store.submit([NewRun(RUN, "a", "go", executor="inline")])
    agent = Agent(FakeModel(), store=store)
    assert asyncio.run(agent.cancel(RUN, by="ann", reason="wrong number"))
    result = agent.run_sync(run_id=RUN)
    assert (result.status, kinds(store), result.events[0].payload["reason"]) == (
        "cancelled",
        ["run_cancelled"],
        "wrong number",
    )
    with pytest.raises(UnknownRunError):
        asyncio.run(agent.cancel("nobody"))
