"""What a step costs, counted instead of timed: statements and commits at the Log's own seam and by the server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from drangue_client.errors import FormatError, UnknownRunError
from drangue_client.events import Fact
from drangue_client.settings import Settings
from drangue_client.store import PostgresStore
from drangue_client.store.statements import SETTLE, SETTLE_SEVERAL, SUBMIT
from drangue_client.store.values import MOST, Ask, NewRun, PartlyFailed
from drangue_worker import Agent, tool
from drangue_worker.engine.coordinate import Next, coordinate, move_on
from drangue_worker.engine.perform import perform
from drangue_worker.engine.runtime import Runtime
from drangue_worker.registry import OneAgent
from drangue_worker.testing.fake import FakeModel
from tests.contract.log_scenes import alone
from tests.kit.fleet import wait_until

TURNS = 10  # a turn is a model step and a tool step
STEPS = 2 * TURNS + 1  # and the step that answers


@tool
def count(n: int) -> int:
    """Count."""
    return n + 1


@contextmanager
def counted(log: PostgresStore) -> Iterator[Counter[str]]:
    """Statements, and of the commits those that wait for the disk; a statement alone is a transaction by itself, and
    one that only looks waits for nothing."""
    seen: Counter[str] = Counter()

    def note(statement: str, values: Any) -> None:
        seen["statements"] += 1
        seen["durable commits"] += statement == SUBMIT or (
            statement in (SETTLE, SETTLE_SEVERAL) and not values["hasty"]
        )

    for use in ("durable", "hasty"):
        event.listen(log.db.engine(use), "before_cursor_execute", lambda *_: seen.update(["statements"]))
    event.listen(log.db.engine("durable"), "commit", lambda *_: seen.update(["durable commits"]))
    with alone(note):
        yield seen


def wal_syncs(url: str) -> int:
    """How often client connections have waited for the log to reach the disk, as the server counts it."""
    others = (
        "select 1 from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
        " and application_name = ''"  # the fixtures' own connections, as this one
    )
    with psycopg.connect(url, autocommit=True) as connection:
        # A server process reports what it counted when it ends, a moment after its client has gone.
        wait_until(lambda: connection.execute(others).fetchone() is None)
        if connection.info.server_version >= 180000:
            query = "select sum(fsyncs) from pg_stat_io where object = 'wal' and backend_type = 'client backend'"
        else:
            query = "select wal_sync from pg_stat_wal"
        row = connection.execute(query).fetchone()
    return int(row[0] or 0) if row else 0


async def work_off(runtime: Runtime, run_id: str) -> int:
    """Do what the fleet's tasks would do, one message after the other; returns how many steps there were."""
    queue = await runtime.database(coordinate, runtime, run_id)
    done = 0
    while queue:
        ref = queue.pop(0)
        queue += (await perform(runtime, ref.run_id, ref.step)).opened
        done += 1
    return done


@pytest.fixture
def long_agent() -> Agent:
    """An agent that calls its tool TURNS times, one at a time."""
    return Agent(FakeModel([*([("count", {"n": n})] for n in range(TURNS)), "done"]), [count], max_steps=100)


def test_a_step_costs_one_durable_commit(database_url: str, long_agent: Agent) -> None:
    """The budget of the design: durability is bought once per step, claims commit without waiting."""
    log = PostgresStore(database_url)
    runtime = Runtime(log, OneAgent([long_agent.blueprint]), Settings(), worker="test/1", executor="celery")
    before = wal_syncs(database_url)
    with counted(log) as seen:
        log.submit([NewRun("r", "agent", "go")])
        assert asyncio.run(work_off(runtime, "r")) == STEPS
        assert log.look("r").row.status == "completed"
    runtime.close()
    log.close()  # a server process reports what it counted when its connection ends
    assert seen["durable commits"] == STEPS + 1  # and the submission; the first tick may be done again
    # Reading transactions do not wait for the disk, and a later commit may find its record flushed by the writer.
    assert 0 < wal_syncs(database_url) - before <= STEPS + 2


def test_a_step_costs_a_fixed_number_of_statements(database_url: str, long_agent: Agent) -> None:
    """What a statement more costs is paid by every step of every run: this number only ever goes down."""
    log = PostgresStore(database_url)
    runtime = Runtime(log, OneAgent([long_agent.blueprint]), Settings(), worker="test/1", executor="celery")

    async def whole() -> Counter[str]:
        log.submit([NewRun("r", "agent", "go")])
        opened = await runtime.database(coordinate, runtime, "r")
        with counted(log) as seen:
            while opened:
                opened = list((await perform(runtime, "r", opened[0].step)).opened)
        return seen

    seen = asyncio.run(whole())
    runtime.close()
    log.close()
    assert seen["statements"] == 2 * STEPS  # a claim with all that performing depends on, and a settle


def test_what_waits_together_costs_what_one_costs(database_url: str, long_agent: Agent) -> None:
    """A burst is where a step must cost next to nothing: a statement for thirty-two is one, and so is its commit."""
    log = PostgresStore(database_url)
    runtime = Runtime(log, OneAgent([long_agent.blueprint]), Settings(), worker="test/1", executor="celery")
    names = [f"r{number:02}" for number in range(MOST)]
    with counted(log) as seen:
        log.submit([NewRun(name, "agent", "go") for name in names])
        assert seen == {"statements": 1, "durable commits": 1}
        move_on(runtime, [Next(name) for name in names])
        assert seen == {"statements": 3, "durable commits": 1}  # a look and a move; the first tick may be done again
        asks = [Ask(name, 1, name, "test/1") for name in names]
        claims = [claimed for claimed in log.claim(asks, 15.0) if claimed]
        assert seen == {"statements": 4, "durable commits": 1}
        answer = {"text": "done", "tool_calls": [], "usage": None, "model": "m"}
        decision = Fact("model_decision", answer, 1)
        moved = move_on(runtime, [Next(one.ask.run_id, (decision,), one.ask, one.look) for one in claims])
        assert seen == {"statements": 5, "durable commits": 2}
    assert [one.verdict for one in moved] == ["ok"] * MOST
    assert {row.status for row in log.runs(limit=MOST)} == {"completed"}
    runtime.close()
    log.close()


def test_a_run_that_cannot_be_read_is_nothing_to_those_beside_it(database_url: str, long_agent: Agent) -> None:
    """In a rolling deploy an old worker meets newer logs in the same batch as results that it must record."""
    log = PostgresStore(database_url)
    runtime = Runtime(log, OneAgent([long_agent.blueprint]), Settings(), worker="test/1", executor="celery")
    log.submit([NewRun(name, "agent", "go") for name in ("good", "newer")])
    move_on(runtime, [Next("good"), Next("newer")])
    log.db.run(lambda c: c.exec_driver_sql("update events set format = 99 where run_id = 'newer'"))
    log.db.run(lambda c: c.exec_driver_sql("update runs set state = null where run_id = 'newer'"))
    claims = log.claim([Ask("good", 1, "g" * 32, "test/1")], 15.0)
    assert claims[0] is not None
    decision = Fact("model_decision", {"text": "done", "tool_calls": [], "usage": None, "model": "m"}, 1)
    with pytest.raises(PartlyFailed) as raised:
        move_on(runtime, [Next("newer"), Next("nobody"), Next("good", (decision,), claims[0].ask, claims[0].look)])
    newer, nobody, good = raised.value.answers
    assert isinstance(newer, FormatError)
    assert isinstance(nobody, UnknownRunError)
    assert good.verdict == "ok"
    with pytest.raises(PartlyFailed) as raised:
        log.claim([Ask("newer", 1, "n" * 32, "test/1"), Ask("good", 9, "h" * 32, "test/1")], 15.0)
    assert [type(answer) for answer in raised.value.answers] == [FormatError, type(None)]
    assert log.look("good").row.status == "completed"
    runtime.close()
    log.close()
