"""What takes long, or for ever, keeps nobody else waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import RateLimitError, TransientError
from drangue_worker import Agent, Guardrails, Settings, tool
from drangue_worker.testing import FakeModel
from tests.contract.log_scenes import elapse, open_rows
from tests.kit.inline import PLACES, RUN, Scripted, calls, categories, contents, kinds, opened, until


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from opened(request.param, request, tmp_path)


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Set when the test is over, for what hangs until then."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("what", ["model", "tool"])
def test_a_long_wait_between_attempts_holds_nothing(store: Any, what: str) -> None:
    """An hour that a provider asks for is waited in the log: no claim, no worker, and anybody may go on after it."""
    refusals = [RateLimitError(retry_after=3600)]

    @tool(retries=1)
    def ask() -> str:
        """Is refused once."""
        if what == "tool" and refusals:
            raise refusals.pop()
        return "answered"

    refused = [refusals[0]] if what == "model" else []
    agent = Agent(Scripted(*refused, calls(("ask", {})), "done"), [ask], store=store)
    step = 1 if what == "model" else 2

    async def until_it_waits() -> None:
        run = asyncio.create_task(agent.run("go", run_id=RUN))
        await until(lambda: open_rows(store).get(step, {}).get("failures") == 1)
        ((ref, delay_s, live),) = store.open_steps(RUN)
        assert (ref.step, live, 3590 < delay_s <= 3600) == (step, False, True)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(until_it_waits())
    elapse(store, 3600)
    assert agent.run_sync(run_id=RUN).output == "done"
    decided = next(event for event in store.events(RUN) if event.step == step)
    assert [one["category"] for one in decided.payload["retries"]] == ["rate_limit"]


def test_tools_that_hang_keep_no_result_from_being_recorded(store: Any) -> None:
    """They hang in threads of their own, not in those that everything else stands in line for."""

    @tool
    def hang() -> str:
        """Hangs until its sibling is in the log."""
        return str(asyncio.run(until(lambda: "tool_result" in kinds(store))))

    @tool
    def quick() -> str:
        """Is asked for last."""
        return "quick"

    agent = Agent(FakeModel([[("hang", {})] * 20 + [("quick", {})], "done"]), [hang, quick], store=store)
    assert agent.run_sync("go", run_id=RUN).output == "done"
    recorded = [event.payload["content"] for event in store.events(RUN) if event.type == "tool_result"]
    assert recorded[0] == "quick"


@pytest.mark.parametrize(("reversible", "category"), [(True, "timeout"), (False, "unknown_outcome")])
def test_a_sync_tool_past_its_time_is_not_waited_for(
    store: Any, released: threading.Event, reversible: bool, category: str
) -> None:
    """Here it can only be left behind, not stopped: of what cannot be undone nobody says that it did not happen."""

    @tool(timeout=0.1, reversible=reversible)
    def hang() -> str:
        """Hangs until the test is over."""
        released.wait(60)
        return "late"

    result = Agent(FakeModel([[("hang", {})], "done"]), [hang], store=store).run_sync("go", run_id=RUN)
    assert (result.output, categories(store), released.is_set()) == ("done", [category], False)


@pytest.fixture(params=["sync", "async"])
def forever(request: pytest.FixtureRequest, released: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that does not answer before the test is over, in an agent that gives it little time."""
    monkeypatch.setattr("drangue_worker.agent.Settings", lambda: Settings(call_timeout_s=0.2))
    for module in ("model_step", "step"):
        monkeypatch.setattr(f"drangue_worker.engine.{module}.MODEL_BACKOFF_S", 0.0)

    def wait(*about: Any, **more: Any) -> None:
        released.wait(60)

    async def wait_async(*about: Any, **more: Any) -> None:
        await asyncio.Event().wait()

    return wait if request.param == "sync" else wait_async


@pytest.mark.parametrize("where", ["model", "input_guard", "output_guard", "result_guard", "approver"])
def test_what_never_answers_fails_the_run_in_the_end(forever: Any, where: str) -> None:
    """A run that waits for ever is worse than one that has failed: nobody hears of it."""

    class Silent:
        generate = staticmethod(forever)

    @tool(requires_approval=where == "approver")
    def act() -> str:
        """Has an effect."""
        return "acted"

    model = Silent() if where == "model" else FakeModel([[("act", {})], "done"])
    agent = Agent(model, [act], guardrails=None if where == "model" else Guardrails(**{where: forever}))
    with pytest.raises(TransientError, match="no answer within"):
        agent.run_sync("go", run_id=RUN)
    assert agent.store.look(RUN).row.status == "failed"
    assert contents(agent.store) == []


def test_a_memory_that_never_answers_is_gone_on_without(forever: Any) -> None:
    """And the record says so."""

    class Memory:
        recall = remember = staticmethod(forever)

    result = Agent(FakeModel(["done"]), memory=Memory()).run_sync("go")
    (recalled,) = [event.payload for event in result.events if event.type == "memory_recalled"]
    assert (result.output, recalled["items"], "no answer within" in recalled["error"]) == ("done", [], True)


@pytest.mark.parametrize("option", ["validate", "fallback", "reconcile"])
def test_what_never_judges_softens_or_knows_a_call_leaves_a_failure(forever: Any, option: str) -> None:
    """The call has an end, also where the functions beside it have none."""
    begun = asyncio.Event()

    async def body() -> str:
        """Fails, or is interrupted."""
        begun.set()
        if option == "reconcile":
            await asyncio.Event().wait()
        if option == "fallback":
            raise ValueError("no")
        return "raw"

    agent = Agent(
        FakeModel([[("act", {})], "done"]),
        [tool(name="act", **{option: forever, "reversible": option != "reconcile"})(body)],
    )
    if option == "reconcile":

        async def leave_it() -> None:
            run = asyncio.create_task(agent.run("go", run_id=RUN))
            await begun.wait()
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run

        asyncio.run(leave_it())
    assert agent.run_sync("go", run_id=RUN).output == "done"
    assert "no answer within" in contents(agent.store)[0]
