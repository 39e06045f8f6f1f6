"""The conformance checks of stores; `conformance` tells what holds for all checks and is where to import them from.

Runs are built through the Log port alone, as the engine builds them, and no check sleeps through a lease.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import uuid
from collections.abc import Callable
from contextlib import closing
from typing import Any

from drangue_client import checks
from drangue_client.errors import ConflictError, UnknownRunError
from drangue_client.events import Fact
from drangue_client.folding import fold
from drangue_client.store.port import Log
from drangue_client.store.values import Ask, Claimed, Executor, Look, Move, Moved, NewRun, Open, Release
from drangue_client.terms import Terms, ToolTerms
from drangue_worker.agent import Agent
from drangue_worker.testing.expected import equal, raises, that
from drangue_worker.testing.fake import FakeModel
from drangue_worker.tools.tool import tool

LEASE_S = 60.0
LAPSED_S = -1.0  # a lease that is over already

_TERMS = Terms(models=("fake",), tools={"look": ToolTerms("drangue.tool"), "pay": ToolTerms("drangue.tool", False)})
_STARTED = Fact("run_started", {"input": "go", "config": _TERMS.to_json()})
_MODEL = Open(1, "model", None, None)
_TOOL = Open(2, "tool", "look", None)


async def check_store(factory: Callable[[], Log]) -> None:
    """A store keeps each run's log: whole, in order, apart from other runs', and safe from whoever reads it.

    Also: an unknown run is empty (`events`, `load`) or UnknownRunError (`look`), and `look` tells what the log tells.
    """
    with _fresh(factory) as store:
        unknown = _new_id()
        equal([], store.events(unknown), "the events of an unknown run")
        equal([], await store.load(unknown), "the log of an unknown run, loaded")
        raises(UnknownRunError, lambda: store.look(unknown), "looking at an unknown run")
        run_id, other = _begun(store), _begun(store)
        payload: dict[str, Any] = {
            "text": "ünï \U0001f600",
            "tool_calls": [],
            "usage": {"input_tokens": 1},
            "a": [1, 2.5, None, {}],
        }
        said = Fact("model_decision", payload, 1, ts=1_700_000_000.25, duration_ms=12.5)
        _write(store, run_id, said)
        _write(store, run_id, Fact("run_finished", {"output": "x", "reason": "answered"}, 1))
        events = store.events(run_id)
        equal([0, 1, 2], [event.seq for event in events], "the places of three events, written one after the other")
        equal(["run_started", "model_decision", "run_finished"], [one.type for one in events], "their types, in order")
        read = events[1]
        equal((said.payload, 1, 12.5), (read.payload, read.step, read.duration_ms), "what was written of an event")
        that(
            read.ts is not None and abs(read.ts - 1_700_000_000.25) < 0.001, f"the time that was written, not {read.ts}"
        )
        that(
            bool(events[0].ts and events[0].ts > 1e9), "the store's own time, for an event that was written without one"
        )
        equal(["run_started"], [event.type for event in store.events(other)], "the log of another run")
        equal(events[2:], store.events(run_id, after=1), "the events after a place")
        equal(events, await store.load(run_id), "a log that is loaded")
        before = copy.deepcopy(events)
        read.payload["a"].append("changed")
        read.payload["text"] = "changed"
        equal(before, store.events(run_id), "a log whose reader has changed what he was given")
        look = store.look(run_id)
        equal((2, "completed"), (look.row.head_seq, look.row.status), "head and status of the run's row")
        equal(fold(before), look.run, "the run as it stands, which is its log folded")


async def check_store_idempotent_append(factory: Callable[[], Log]) -> None:
    """What is written twice is there once, and what was decided on an old log is not written at all.

    A submission that is repeated is the same run, as it was submitted first. A move is refused (`moved`, and `lost`
    with a claim that is not held) once the log has gone on, whole, and told where it stands. A step has one
    `model_decision` or `tool_result`, and one `step_started` per attempt: a second is a ConflictError.
    """
    with _fresh(factory) as store:
        new = NewRun(_new_id(), "agent", "first", executor="inline")
        row, created = store.submit([new])[0]
        again, twice = store.submit([NewRun(new.run_id, "other", "second")])[0]
        equal((True, False), (created, twice), "whether a run is new, submitted twice")
        equal(row, again, "a run that was submitted again with another input")

        run_id = _begun(store)
        old = store.look(run_id)
        _write(store, run_id, _decision(1, "look"), opens=(_TOOL,))
        late = _settle(store, old, Fact("outcome_requested", {}), opens=(Open(9, "tool", "look", None),))
        equal("moved", late.verdict, "the verdict on a move that was decided before the log went on")
        that(late.look is not None, "the run as it is now, with a move that was refused")
        equal(store.look(run_id).run, late.look.run if late.look else None, "the run that comes with a refused move")
        equal([1, 2], _opened(store, run_id), "the open steps after a refused move")

        _write(store, run_id, _result(2), _begins(2))
        before = store.events(run_id)
        for fact in (_decision(1), _result(2), _begins(2)):
            what = f"a second {fact.type} of one step"
            raises(ConflictError, functools.partial(_settle, store, store.look(run_id), fact), what)
            equal(before, store.events(run_id), f"the log after {what} was refused")

        claimed = _held(store, _ask(run_id), LEASE_S)
        stranger = _ask(run_id)
        lost = _settle(store, store.look(run_id), _decision(3), claim=stranger)
        equal("lost", lost.verdict, "the verdict on a move of somebody who does not hold the step")
        that(not store.begin(stranger, _begins(1)), "no beginning of a step by somebody who does not hold it")
        that(not store.keep(stranger, {"content": "x"}), "no outcome kept for somebody who does not hold the step")
        equal(before, store.events(run_id), "the log after all of that")
        that(store.begin(claimed.ask, _begins(1)), "the beginning of a step by its holder to be recorded")
        that(not store.begin(claimed.ask, _begins(1)), "a beginning to be recorded once")
        equal(len(before) + 1, len(store.events(run_id)), "how long the log is after a beginning, told twice")


async def check_store_claims(factory: Callable[[], Log]) -> None:
    """A step has one holder at a time. It is what a lease on a run would be elsewhere.

    A claim excludes others until it is given back, settled or lapsed; renewing keeps it, and its holder may renew and
    settle after it lapsed as long as nobody else took over. Asking again with one's own token is safe. Who took over
    knows that the one before died, and is handed what that one kept.
    """
    with _fresh(factory) as store:
        run_id = _begun(store)
        first, second = _ask(run_id), _ask(run_id)
        equal([None], store.claim([_ask(run_id, executor="celery")], LEASE_S), "a claim for those whose run it is not")
        one = _held(store, first, LEASE_S)
        equal((1, 0), (one.attempt, one.crashes), "attempt and crashes of a first claim")
        equal([None], store.claim([second], LEASE_S), "a claim of a step that is held")
        equal(1, _held(store, first, LEASE_S).attempt, "the attempt, asked for again with the same token")
        equal({first.token}, store.renew([first, second], LEASE_S), "the tokens still held")
        equal({first.token}, store.renew([first], LAPSED_S), "the tokens still held, by one that has just lapsed")
        that(store.keep(first, {"content": "kept"}), "a lapsed holder to be one until somebody else takes over")
        two = _held(store, second, LEASE_S)
        equal((2, 1), (two.attempt, two.crashes), "attempt and crashes of a claim over a lapsed one")
        equal({"content": "kept"}, two.outcome, "what the one before has kept")
        equal(set(), store.renew([first], LEASE_S), "the tokens of those who were taken over")
        equal(
            "lost", _settle(store, one.look, _decision(1), claim=first).verdict, "the verdict on a result that is late"
        )
        that(store.release([Release(second)])[0] is not None, "a holder to give a step back")
        three = _held(store, _ask(run_id), LEASE_S)
        equal((3, 1), (three.attempt, three.crashes), "attempt and crashes after a step was given back")
        settled = _settle(store, three.look, _decision(1), claim=three.ask)
        equal("ok", settled.verdict, "the verdict on the holder's result")
        equal([None], store.claim([_ask(run_id)], LEASE_S), "a claim of a step that is settled")
        equal([], _opened(store, run_id), "the open steps after the only one was settled")


async def check_store_with_agent(factory: Callable[[], Log]) -> None:
    """An agent runs on the store, and a run that is over is read from it without asking model or tool again.

    Needs asyncio's event loop.
    """
    ran: list[str] = []

    @tool(reversible=False)
    def act(idempotency_key: str) -> str:
        """Leaves a trace."""
        ran.append(idempotency_key)
        return "acted"

    with _fresh(factory) as store:
        run_id = _new_id()

        def agent(model: FakeModel) -> Agent:
            return Agent(model, [act], store=store)

        model = FakeModel([[("act", {})], "done"])
        result = await asyncio.wait_for(agent(model).run("go", run_id=run_id), LEASE_S)
        equal(("completed", "done"), (result.status, result.output), "status and output of a run of two steps")
        equal([f"{run_id}:2"], ran, "the calls of its tool, by their keys")
        types = ["run_started", "model_decision", "step_started", "tool_result", "model_decision", "run_finished"]
        equal(types, [event.type for event in store.events(run_id)], "its log")
        unasked = FakeModel(["another answer"])
        again = await asyncio.wait_for(agent(unasked).run("go", run_id=run_id), LEASE_S)
        equal(result, again, "the result of a run that is read again")
        equal(([], 1), (unasked.calls, len(ran)), "the calls of model and tool when a finished run is read")


def _fresh(factory: Callable[[], Log]) -> closing[Log]:
    checks.function("factory", factory, "a function or a class that gives a store")
    return closing(factory())


def _new_id() -> str:
    return f"conformance-{uuid.uuid4().hex}"


def _begun(store: Log) -> str:
    """A new run that has begun, its first step open."""
    run_id = _new_id()
    store.submit([NewRun(run_id, "agent", "go", executor="inline")])
    _write(store, run_id, _STARTED, opens=(_MODEL,))
    return run_id


def _settle(store: Log, look: Look, *facts: Fact, **more: Any) -> Moved:
    run = fold([fact.at(look.run.seq + n) for n, fact in enumerate(facts, start=1)], onto=look.run)
    return store.settle([Move(look.row.run_id, look.row.head_seq, run, facts=facts, **more)])[0]


def _write(store: Log, run_id: str, *facts: Fact, **more: Any) -> None:
    moved = _settle(store, store.look(run_id), *facts, **more)
    equal("ok", moved.verdict, "the verdict on a move that was decided on the newest log")


def _ask(run_id: str, executor: Executor = "inline") -> Ask:
    return Ask(run_id, 1, uuid.uuid4().hex, "worker", executor)


def _opened(store: Log, run_id: str) -> list[int]:
    return [ref.step for ref, _, _ in store.open_steps(run_id)]


def _held(store: Log, ask: Ask, lease_s: float) -> Claimed:
    claimed = store.claim([ask], lease_s)[0]
    if claimed is None:
        raise AssertionError("expected a step that is free to be claimed; it was not given out")
    return claimed


def _decision(step: int, *tools: str) -> Fact:
    calls = [{"id": f"c{n}", "name": name, "arguments": {}} for n, name in enumerate(tools)]
    return Fact("model_decision", {"text": "", "tool_calls": calls, "usage": None}, step)


def _result(step: int) -> Fact:
    return Fact("tool_result", {"call_id": "c0", "name": "look", "content": "seen"}, step)


def _begins(step: int) -> Fact:
    return Fact("step_started", {"call_id": "c0", "tool": "look", "attempt": 1}, step)
