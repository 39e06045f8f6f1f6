"""What was done is not done again, and what was recorded is not lost, whatever happens to the process in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import RateLimitError
from drangue_worker import Agent, Done, Guardrails, tool
from drangue_worker.testing import FakeModel
from tests.kit.inline import PLACES, RUN, Scripted, contents, kinds, leave, opened, until


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from opened(request.param, request, tmp_path)


def test_a_call_keeps_its_key_whatever_is_written_between_its_attempts(store: Any) -> None:
    """The key is what lets the other side deduplicate: it must not move with the log's end."""
    keys: list[str] = []
    there, guard_is_down = asyncio.Event(), False

    @tool
    async def charge(idempotency_key: str) -> str:
        """The first attempt is interrupted after its effect."""
        keys.append(idempotency_key)
        if len(keys) == 1:
            there.set()
            await asyncio.Event().wait()
        return "charged"

    def guard(name: str, arguments: dict[str, Any]) -> None:
        if guard_is_down:
            raise ConnectionError("the guard is down")

    model = FakeModel([[("charge", {})], "done"])
    agent = Agent(model, [charge], store=store, guardrails=Guardrails(output_guard=guard))
    leave(agent, there)
    guard_is_down = True
    for _ in range(2):  # each writes that the run went on and that it failed
        with pytest.raises(ConnectionError):
            agent.run_sync(run_id=RUN)
    guard_is_down = False
    result = agent.run_sync(run_id=RUN)
    assert keys == ["r:2", "r:2"]
    assert [call["idempotency_key"] for call in model.calls] == ["r:1", "r:3"]
    assert kinds(store).count("run_failed") == 2
    assert (result.output, contents(store)) == ("done", ["charged"])


def test_a_model_call_keeps_its_key_when_the_failed_run_is_resumed(store: Any) -> None:
    """A provider that takes keys answers the second attempt from the first."""
    model = Scripted(RuntimeError("no"), RuntimeError("no"), "done")
    agent = Agent(model, store=store)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            agent.run_sync("go", run_id=RUN)
    assert agent.run_sync(run_id=RUN).output == "done"
    assert [call["idempotency_key"] for call in model.calls] == ["r:1"] * 3


def test_a_finished_sibling_is_not_repeated_when_the_run_is_interrupted(store: Any) -> None:
    """Each result is recorded as its call ends, not when the last one does."""
    ran: list[str] = []
    recorded = asyncio.Event()

    @tool
    def quick() -> str:
        """Ends at once."""
        ran.append("quick")
        return "q"

    @tool
    async def slow() -> str:
        """The first time, waits until its sibling is in the log, and is interrupted."""
        ran.append("slow")
        if ran.count("slow") == 1:
            await until(lambda: "tool_result" in kinds(store))
            recorded.set()
            await asyncio.Event().wait()
        return "s"

    agent = Agent(FakeModel([[("slow", {}), ("quick", {})], "done"]), [quick, slow], store=store)
    leave(agent, recorded)
    assert agent.run_sync(run_id=RUN).output == "done"
    assert sorted(ran) == ["quick", "slow", "slow"]
    assert contents(store) == ["s", "q"]


@pytest.mark.parametrize("reversible", [True, False])
def test_a_result_whose_guard_failed_is_judged_later_and_not_made_again(store: Any, reversible: bool) -> None:
    """The effect has taken place; only the judgement is missing, however often the guard fails and in what way."""
    ran: list[str] = []
    judged: list[str] = []
    failures = [
        RateLimitError(retry_after=0),
        RateLimitError(retry_after=0),
        ValueError("broken"),
        ValueError("broken"),
    ]

    @tool(reversible=reversible)
    def act() -> str:
        """Has an effect."""
        ran.append("act")
        return f"effect {len(ran)}"

    def guard(name: str, content: str) -> None:
        judged.append(content)
        if failures:
            raise failures.pop(0)

    model = FakeModel([[("act", {})], "done"])

    def agent() -> Agent:
        return Agent(model, [act], store=store, guardrails=Guardrails(result_guard=guard))

    with pytest.raises(ValueError, match="broken"):
        agent().run_sync("go", run_id=RUN)
    with pytest.raises(ValueError, match="broken"):
        agent().run_sync(run_id=RUN)
    assert agent().run_sync(run_id=RUN).status == "completed"
    assert (ran, judged, contents(store)) == (["act"], ["effect 1"] * 5, ["effect 1"])


@pytest.mark.parametrize("point", ["output_guard", "approver"])
def test_nothing_has_begun_before_guard_and_gate_have_let_it_pass(store: Any, point: str) -> None:
    """A service that is down for a moment must not turn a call that never ran into one of unknown outcome."""
    ran: list[str] = []
    down = [True]

    @tool(reversible=False, requires_approval=point == "approver")
    def wire() -> str:
        """Cannot be undone."""
        ran.append("wire")
        return "sent"

    def ask(name: str, arguments: dict[str, Any]) -> bool:
        if down:
            raise ConnectionError(down.pop())
        return point == "approver"

    model = FakeModel([[("wire", {})], "done"])
    agent = Agent(model, [wire], store=store, guardrails=Guardrails(**{point: ask}))
    with pytest.raises(ConnectionError):
        agent.run_sync("go", run_id=RUN)
    assert (ran, "step_started" in kinds(store)) == ([], False)
    agent.run_sync(run_id=RUN)
    assert (ran, contents(store)) == (["wire"], ["sent"])


@pytest.mark.parametrize(
    ("reconciled", "told"), [(Done("sent after all"), "sent after all"), (None, "unknown_outcome")]
)
def test_an_interrupted_irreversible_call_is_asked_about_and_not_repeated(
    store: Any, reconciled: Any, told: str
) -> None:
    """Begun and not recorded: its author may know what came of it; if not, the model is told that nobody does."""
    ran: list[str] = []
    asked: list[str] = []
    begun = asyncio.Event()

    def reconcile(key: str) -> Any:
        asked.append(key)
        return reconciled

    @tool(reversible=False, reconcile=reconcile)
    async def wire() -> str:
        """Is interrupted after it has begun."""
        ran.append("wire")
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        return "sent twice"

    agent = Agent(FakeModel([[("wire", {})], "done"]), [wire], store=store)
    leave(agent, begun)
    assert agent.run_sync(run_id=RUN).status == "completed"
    assert (ran, asked) == (["wire"], ["r:2"])
    assert told in contents(store)[0]


@pytest.mark.parametrize("reversible", [True, False])
def test_what_is_under_way_when_a_sibling_fails_the_run_still_comes_to_its_end(store: Any, reversible: bool) -> None:
    """A guard that trips over one call is no reason to make another one twice, or not to know what came of it."""
    ran: list[str] = []
    down = [True]

    @tool(reversible=reversible)
    async def wire() -> str:
        """Ends after the run has failed."""
        ran.append("wire")
        await until(lambda: "run_failed" in kinds(store))
        await asyncio.sleep(0.3)  # the rest of its work
        return "sent"

    @tool
    def look() -> str:
        """Is tripped over."""
        return "seen"

    def guard(name: str, content: str) -> None:
        if name == "look" and down:
            raise ConnectionError(down.pop())

    model = FakeModel([[("wire", {}), ("look", {})], "done"])
    agent = Agent(model, [wire, look], store=store, guardrails=Guardrails(result_guard=guard))
    with pytest.raises(ConnectionError):
        agent.run_sync("go", run_id=RUN)
    assert agent.run_sync(run_id=RUN).output == "done"
    assert (ran, contents(store)) == (["wire"], ["sent", "seen"])


def test_closing_a_stream_leaves_a_run_that_can_be_gone_on_with(store: Any) -> None:
    """Whoever looks away stops the work here; nothing is held, and nothing that was recorded is lost."""
    ran: list[str] = []

    @tool
    async def act() -> str:
        """Is cut short the first time."""
        ran.append("act")
        if len(ran) == 1:
            await asyncio.Event().wait()
        return "acted"

    agent = Agent(FakeModel([[("act", {})], "done"]), [act], store=store)

    async def look_away_and_back() -> list[str]:
        stream = agent.stream("go", run_id=RUN)
        seen = [(await anext(stream)).type for _ in range(2)]
        await until(lambda: ran)
        await stream.aclose()
        assert [live for _, _, live in store.open_steps(RUN)] == [False]
        return seen + [event.type async for event in agent.stream(run_id=RUN) if event.seq >= 0]

    seen = asyncio.run(look_away_and_back())
    assert seen == ["run_started", "model_decision", "tool_result", "model_decision", "run_finished"] == kinds(store)
    assert ran == ["act", "act"]


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_tool_cannot_take_its_run_along(store: Any, raised: BaseException, kind: str) -> None:
    """Whatever a tool raises is the result of its call; its siblings and the run go on."""

    def leave_sync() -> str:
        """Raises what ends processes."""
        raise raised

    async def leave_async() -> str:
        """Raises what ends processes."""
        raise raised

    @tool
    def stay() -> str:
        """Returns."""
        return "stayed"

    going = tool(name="going")(leave_sync if kind == "sync" else leave_async)
    agent = Agent(FakeModel([[("going", {}), ("stay", {})], "done"]), [going, stay], store=store)
    assert agent.run_sync("go", run_id=RUN).output == "done"
    first, second = contents(store)
    assert ('"category": "error"' in first, second) == (True, "stayed")


def test_reading_a_finished_run_writes_nothing_whoever_reads_it(store: Any) -> None:
    """An agent that has changed since must not add to a log that is closed."""

    class Memory:
        async def recall(self, query: str, *, limit: int = 5) -> list[Any]:
            raise AssertionError("a finished run recalls nothing")

        async def remember(self, item: Any) -> None:
            raise AssertionError("nothing is remembered by itself")

    def never(*about: Any) -> str:
        raise AssertionError("a finished run is not judged again")

    Agent(FakeModel(["once"]), store=store).run_sync("hi", run_id=RUN)
    before = store.events(RUN), store.look(RUN).row
    model = FakeModel(["twice"])
    guards = Guardrails(input_guard=never, output_guard=never, result_guard=never, approver=never)
    changed = Agent(model, store=store, memory=Memory(), guardrails=guards, max_steps=1)
    for read in (lambda: changed.run_sync(run_id=RUN), lambda: changed.run_sync("hi", run_id=RUN)):
        assert read().output == "once"
    assert asyncio.run(changed.resume(RUN)).output == "once"
    assert (store.events(RUN), store.look(RUN).row) == before
    assert model.calls == []
