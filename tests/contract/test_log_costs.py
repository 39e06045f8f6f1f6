"""What an operation of the log costs: statements, and waits for the disk.

A step is a claim and a settle, thousands of times a second; one statement more in either is a slower fleet. Both are
seen where SQLAlchemy hands a statement to the driver and where it commits, whatever the log above them looks like.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from sqlalchemy import Connection, Engine, event

from drangue_client.store.database import HASTY, Database
from drangue_client.store.log import SqlLog
from drangue_client.store.values import REAPED, NewRun, Open, Release, StepRef
from tests.contract.log_scenes import (
    LEASE_S,
    NOTE,
    PATIENCE_S,
    STARTED,
    TOOL_QUEUE,
    alone,
    ask,
    begun,
    claim,
    claim_all,
    decision,
    elapse,
    fan_out,
    model,
    move,
    result,
    start,
    tool,
    write,
)

FULL = 2  # of SQLite's `synchronous`

Operation = Callable[[], Any]


def submit(log: SqlLog) -> Operation:
    return lambda: log.submit([NewRun("new", "oncall", "disk full")])


def look(log: SqlLog) -> Operation:
    fan_out(log)
    return lambda: log.look("r")


def claim_model(log: SqlLog) -> Operation:
    start(log)
    return lambda: claim(log)


def claim_tool(log: SqlLog) -> Operation:
    fan_out(log)
    return lambda: claim(log, step=2)


def claim_nothing(log: SqlLog) -> Operation:
    fan_out(log)
    claim(log, step=2)
    return lambda: log.claim([ask(step=2)], LEASE_S)


def begin(log: SqlLog) -> Operation:
    fan_out(log, name="restart")
    claimed = claim(log, step=2)
    return lambda: log.begin(claimed.ask, begun(2))


def settle(log: SqlLog) -> Operation:
    start(log)
    claimed = claim(log)
    one = move(claimed.look, decision(1, "read_logs"), opens=(tool(2),), claim=claimed.ask)
    return lambda: log.settle([one])


def settle_many(log: SqlLog) -> Operation:
    """A decision with many calls is one move, and must not cost by the call."""
    start(log)
    claimed = claim(log)
    opens = tuple(tool(step) for step in range(2, 22))
    one = move(claimed.look, decision(1, *["read_logs"] * 20), opens=opens, claim=claimed.ask)
    return lambda: log.settle([one])


def settle_too_late(log: SqlLog) -> Operation:
    fan_out(log)
    claimed = claim(log, step=2)
    write(log, "r", NOTE)
    one = move(claimed.look, result(2), opens=(model(4),), claim=claimed.ask)
    return lambda: log.settle([one])


def renew(log: SqlLog) -> Operation:
    fan_out(log, tools=20)
    asks = [claimed.ask for claimed in claim_all(log, *range(2, 22))]
    return lambda: log.renew(asks, LEASE_S)


def release(log: SqlLog) -> Operation:
    fan_out(log)
    claimed = claim(log, step=2)
    return lambda: log.release([Release(claimed.ask)])


def release_worker(log: SqlLog) -> Operation:
    fan_out(log)
    claim(log, step=2)
    return lambda: log.release_worker("w1")


def release_dead(log: SqlLog) -> Operation:
    fan_out(log)
    claim(log, step=2, worker="w/1.10")
    return lambda: log.release_worker("w/1.10", REAPED)


def begin_again(log: SqlLog) -> Operation:
    fan_out(log, name="restart")
    log.begin(claim(log, step=2, worker="w/1.10").ask, begun(2))
    log.release_worker("w/1.10", REAPED)
    claimed = claim(log, step=2, worker="w/1.11")
    return lambda: log.begin(claimed.ask, begun(2, attempt=2), again=True)


def overdue(log: SqlLog) -> Operation:
    fan_out(log, tools=20)
    claim_all(log, *range(2, 22))
    return lambda: log.overdue("w1", 3.0)


def holders(log: SqlLog) -> Operation:
    fan_out(log, tools=20)
    claim_all(log, *range(2, 22))
    return lambda: log.holders("w1")


def halted(log: SqlLog) -> Operation:
    fan_out(log, tools=20)
    asks = [claimed.ask for claimed in claim_all(log, *range(2, 22))]
    return lambda: log.halted(asks)


def rows_of_many(log: SqlLog) -> Operation:
    ids = [f"r{n}" for n in range(1000)]
    log.submit([NewRun(run_id, "oncall", "") for run_id in ids])
    return lambda: log.rows(ids)


def list_unknown(log: SqlLog) -> Operation:
    fan_out(log)
    return lambda: log.runs(unknown=True)


def wake(log: SqlLog) -> Operation:
    log.submit([NewRun(f"r{n}", "oncall", "") for n in range(20)])
    return lambda: log.wake(PATIENCE_S)


def recover(log: SqlLog) -> Operation:
    fan_out(log, tools=20)
    claim_all(log, *range(2, 22))
    elapse(log, LEASE_S + 1)
    return lambda: log.recover(PATIENCE_S)


def recover_nothing(log: SqlLog) -> Operation:
    fan_out(log)
    return lambda: log.recover(PATIENCE_S)


def queues(log: SqlLog) -> Operation:
    fan_out(log)
    return lambda: log.queues(PATIENCE_S)


def mark_sent(log: SqlLog) -> Operation:
    fan_out(log, tools=20)
    refs = [StepRef("r", step, "tool", TOOL_QUEUE, 5) for step in range(2, 22)]
    return lambda: log.mark_sent(refs)


CEILINGS = [  # today's numbers, BEGIN and COMMIT apart; lower them when they fall
    (submit, 1),
    (look, 2),
    (claim_model, 3),
    (claim_tool, 3),
    (claim_nothing, 1),
    (begin, 4),
    (begin_again, 4),
    (settle, 5),
    (settle_many, 5),
    (settle_too_late, 3),  # refused together, and asked plainly: the run, its events
    (renew, 2),
    (release, 1),
    (release_worker, 1),
    (release_dead, 1),
    (overdue, 1),
    (holders, 1),
    (halted, 1),
    (rows_of_many, 1),
    (list_unknown, 1),
    (wake, 1),
    (recover, 1),
    (recover_nothing, 1),
    (queues, 1),
    (mark_sent, 1),
]


@pytest.mark.parametrize("log", ["memory", "postgres"], indirect=True)
@pytest.mark.parametrize(("prepare", "ceiling"), CEILINGS, ids=lambda value: getattr(value, "__name__", ""))
def test_no_operation_takes_more_statements_than_it_did(
    log: SqlLog, prepare: Callable[[SqlLog], Operation], ceiling: int
) -> None:
    """Round trips are the price of a step, and nothing else would notice one more."""
    do = prepare(log)
    with statements() as seen:
        do()
    assert 0 < len(seen) <= ceiling, "\n".join(seen)


@pytest.mark.parametrize("log", ["file", "postgres"], indirect=True)
@pytest.mark.parametrize("prepare", [submit, begin, begin_again, settle], ids=lambda prepare: prepare.__name__)
def test_what_a_caller_was_promised_waits_for_the_disk(log: SqlLog, prepare: Callable[[SqlLog], Operation]) -> None:
    """A run accepted, an effect begun, a result recorded: none may be gone after the database server's own crash."""
    do = prepare(log)
    with commits() as seen:
        do()
    assert seen == ["on"]


@pytest.mark.parametrize("log", ["file", "postgres"], indirect=True)
@pytest.mark.parametrize(
    "prepare",
    [
        claim_model,
        claim_tool,
        renew,
        release,
        release_worker,
        release_dead,
        overdue,
        holders,
        wake,
        recover,
        mark_sent,
    ],
    ids=lambda prepare: prepare.__name__,
)
def test_what_repeats_itself_does_not_wait_for_the_disk(log: SqlLog, prepare: Callable[[SqlLog], Operation]) -> None:
    """A claim lost with the server's memory is claimed again; waiting would double the disk's work per step."""
    do = prepare(log)
    with commits() as seen:
        do()
    assert seen == ["off"]


@pytest.mark.parametrize("log", ["file"], indirect=True)
def test_a_run_in_a_file_waits_for_the_disk_where_it_was_promised_something(log: SqlLog) -> None:
    """Its submission and its results; its beginning and its claims can be made again."""
    with commits() as seen:
        log.submit([NewRun("r", "oncall", "disk full", executor="inline")])
        write(log, "r", STARTED, opens=(Open(1, "model", None, None),), hasty=True)
        one = claim(log, executor="inline")
        write(log, "r", decision(1, "read_logs"), claim=one.ask)
    assert seen == ["on", "off", "off", "on"]


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements handed to a driver inside the block."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        with alone(lambda statement, _: seen.append(statement)), in_file(lambda c: c.set_trace_callback(seen.append)):
            yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@contextmanager
def commits() -> Iterator[list[str]]:
    """What `synchronous_commit` was at each commit inside the block, asked in the very transaction. A statement that
    is one by itself says so in its text; that the disk was not waited for is counted in `test_counts`."""
    seen: list[str] = []

    def note_alone(statement: str, values: Any) -> None:
        if not statement.lstrip().startswith("select"):  # which writes nothing
            seen.append("off" if HASTY in statement and values.get("hasty", True) else "on")

    def note_in_file(connection: sqlite3.Connection) -> None:
        (value,) = connection.execute("pragma synchronous").fetchone()
        seen.append("on" if value == FULL else "off")

    def note(connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            note_in_file(cast(sqlite3.Connection, connection.connection.driver_connection))
            return
        with connection.connection.cursor() as cursor:
            cursor.execute("show synchronous_commit")
            (value,) = cursor.fetchone() or ("",)
            seen.append(value)

    event.listen(Engine, "commit", note)
    try:
        with alone(note_alone), in_file(note_in_file, reads=False):
            yield seen
    finally:
        event.remove(Engine, "commit", note)


@contextmanager
def in_file(note: Callable[[sqlite3.Connection], Any], reads: bool = True) -> Iterator[None]:
    """Have transactions on SQLite's own connection noted as they begin; those that read alone only with `reads`."""
    real = Database.file

    def noted(self: Database, work: Callable[[sqlite3.Connection], Any], **more: Any) -> Any:
        def within(connection: sqlite3.Connection) -> Any:
            if reads or not more.get("reads"):
                note(connection)
            try:
                return work(connection)
            finally:
                connection.set_trace_callback(None)

        return real(self, within, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "file", noted)
        yield
