"""The scenes that tests of the log begin with, and the two things they do to a database behind the port's back.

Runs are built through the port alone, as the engine builds them. Behind its back, time is made to pass (`elapse`; no
test sleeps through a lease) and everything stored is read (`stored`; a refusal must have written nothing at all).
"""

from __future__ import annotations

import multiprocessing
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Connection, select, text, update

from drangue_client.events import Event, Fact
from drangue_client.folding import fold
from drangue_client.run import Run
from drangue_client.store.database import Database
from drangue_client.store.log import SqlLog
from drangue_client.store.tables import Instant, metadata, steps
from drangue_client.store.values import Ask, Claimed, Executor, Look, Move, Moved, NewRun, Open
from drangue_client.terms import Terms, ToolTerms

LEASE_S = 15.0
PATIENCE_S = 5.0
MODEL_QUEUE = "drangue.model"
TOOL_QUEUE = "drangue.tool"
TERMS = Terms(
    models=("fake",),
    instructions="Mend what is broken.",
    tools={"read_logs": ToolTerms(TOOL_QUEUE), "restart": ToolTerms(TOOL_QUEUE, reversible=False)},
)
STARTED = Fact("run_started", {"input": "disk full", "config": TERMS.to_json()})
NOTE = Fact("outcome_requested", {"text": "moves nothing"})


def decision(step: int, *tools: str, text: str = "") -> Fact:
    calls = [{"id": f"call_{step + n}", "name": name, "arguments": {}} for n, name in enumerate(tools, start=1)]
    return Fact("model_decision", {"text": text, "tool_calls": calls, "usage": None}, step)


def result(step: int, content: str = "ok", name: str = "read_logs") -> Fact:
    return Fact("tool_result", {"call_id": f"call_{step}", "name": name, "content": content}, step)


def begun(step: int, attempt: int = 1) -> Fact:
    return Fact("step_started", {"call_id": f"call_{step}", "tool": "restart", "attempt": attempt}, step)


def failed(step: int, error: str = "the model is gone") -> Fact:
    return Fact("run_failed", {"error": error, "category": "permanent"}, step)


def finished(step: int) -> Fact:
    return Fact("run_finished", {"output": "mended", "reason": "answered"}, step)


def resumed() -> Fact:
    return Fact("run_resumed", {"by": "ops", "reason": "mended"})


def tool(step: int, name: str = "read_logs") -> Open:
    return Open(step, "tool", name, TOOL_QUEUE)


def model(step: int) -> Open:
    return Open(step, "model", None, MODEL_QUEUE)


def move(look: Look, *facts: Fact, **more: Any) -> Move:
    """What a decision made from `look` writes."""
    run = fold([fact.at(look.run.seq + n) for n, fact in enumerate(facts, start=1)], onto=look.run)
    return Move(look.row.run_id, look.row.head_seq, run, facts=facts, **more)


def write(log: SqlLog, run_id: str, *facts: Fact, **more: Any) -> Moved:
    """Settle a move from the run as it stands, which must succeed."""
    moved = log.settle([move(log.look(run_id), *facts, **more)])[0]
    assert moved.verdict == "ok"
    return moved


def ask(run_id: str = "r", step: int = 1, worker: str = "w1") -> Ask:
    return Ask(run_id, step, uuid.uuid4().hex, worker)


def claim(
    log: SqlLog,
    run_id: str = "r",
    step: int = 1,
    worker: str = "w1",
    lease_s: float = LEASE_S,
    executor: Executor = "celery",
) -> Claimed:
    """A claim that must succeed."""
    claimed = log.claim([replace(ask(run_id, step, worker), executor=executor)], lease_s)[0]
    assert claimed is not None
    return claimed


def claim_all(log: SqlLog, *steps: int, run_id: str = "r") -> list[Claimed]:
    """Claims of several steps, in one go, that must succeed."""
    claims = log.claim([ask(run_id, step) for step in steps], LEASE_S)
    assert all(claims)
    return [claimed for claimed in claims if claimed]


def start(log: SqlLog, run_id: str = "r", **new: Any) -> None:
    """A run that has started: step 1, a model call, is open."""
    log.submit([NewRun(run_id, "oncall", "disk full", **new)])
    queue = None if new.get("executor") == "inline" else MODEL_QUEUE
    write(log, run_id, STARTED, opens=(Open(1, "model", None, queue),))


def fan_out(log: SqlLog, run_id: str = "r", tools: int = 2, name: str = "read_logs", **new: Any) -> None:
    """A run whose model asked for tool calls: they are open as steps 2, 3 ..."""
    start(log, run_id, **new)
    queue = None if new.get("executor") == "inline" else TOOL_QUEUE
    claimed = claim(log, run_id, 1, executor=new.get("executor", "celery"))
    opens = tuple(Open(step, "tool", name, queue) for step in range(2, 2 + tools))
    one = move(claimed.look, decision(1, *[name] * tools), opens=opens, claim=claimed.ask)
    assert log.settle([one])[0].verdict == "ok"


def whole(log: SqlLog, run_id: str = "r") -> Run:
    """The run folded from every event there is."""
    return fold(log.events(run_id))


def stored(log: SqlLog) -> dict[str, list[Any]]:
    """Every row of every table."""

    def read(connection: Connection) -> dict[str, list[Any]]:
        tables = metadata.sorted_tables
        return {t.name: connection.execute(select(t).order_by(*t.primary_key)).all() for t in tables}

    return log.db.run(read)


def open_rows(log: SqlLog, run_id: str = "r") -> dict[int, dict[str, Any]]:
    """The rows of a run's open steps, by step."""
    query = select(steps).where(steps.c.run_id == run_id).order_by(steps.c.step)
    return log.db.run(lambda c: {row["step"]: dict(row) for row in c.execute(query).mappings()})


def set_step(log: SqlLog, run_id: str, step: int, **values: Any) -> None:
    """Write into a step's row what the port cannot write yet, or not at once."""
    log.db.run(lambda c: c.execute(update(steps).where(steps.c.run_id == run_id, steps.c.step == step).values(values)))


def sql(log: SqlLog, statement: str, **values: Any) -> None:
    log.db.run(lambda c: c.execute(text(statement), values))


def elapse(log: SqlLog, seconds: float) -> None:
    """Let time pass: move every time that is stored into the past."""
    gone = "make_interval(secs => :seconds)" if log.db.postgres else ":seconds"

    def work(connection: Connection) -> None:
        for table in metadata.sorted_tables:
            times = [column.name for column in table.columns if isinstance(column.type, Instant)]
            shifts = ", ".join(f"{time} = {time} - {gone}" for time in times)
            connection.execute(text(f"update {table.name} set {shifts}"), {"seconds": seconds})

    log.db.run(work, durable=False)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Do all of these at the same time, each in a thread; what they return, or the first error."""
    barrier = Barrier(len(works))

    def do(work: Callable[[], Any]) -> Any:
        barrier.wait(10)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(do, work) for work in works]]


def beside(log: SqlLog, lock: str, work: Callable[[], Any]) -> Any:
    """Do `work` while another transaction has locked the rows that `lock` selects; it must not wait for them."""
    with ThreadPoolExecutor(1) as pool:
        with log.db.engine().begin() as other:
            other.execute(text(f"{lock} for update"))
            future = pool.submit(work)
            waited = not wait([future], timeout=5).done
        assert not waited, "it waits for what somebody has locked"
        return future.result()


@contextmanager
def forked(work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Do `work` in a forked child; inside the block, the answer can be awaited."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(work()))
    child.start()
    sender.close()

    def answer() -> Any:
        assert receiver.poll(10), "the child does not answer"
        return receiver.recv()

    try:
        with receiver:
            yield answer
            child.join(10)
        assert child.exitcode == 0
    finally:
        if child.exitcode is None:
            child.kill()
            child.join()
        child.close()


def eventually(condition: Callable[[], Any], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def kinds(events: list[Event] | tuple[Event, ...]) -> list[str]:
    return [event.type for event in events]


@contextmanager
def alone(note: Callable[[str, Any], Any]) -> Iterator[None]:
    """Have statements that are transactions by themselves noted, which go past SQLAlchemy."""
    real = Database.alone

    def noted(self: Database, statement: str, values: Any) -> Any:
        note(statement, values)
        return real(self, statement, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "alone", noted)
        yield
