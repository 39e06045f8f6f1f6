"""Every operation of the log, as a fleet and its operators ask for it, on a database that `filling` made."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import text

from drangue_client.events import Fact
from drangue_client.run import ENDED
from drangue_client.store.log import SqlLog
from drangue_client.store.values import REAPED, AgentRow, Ask, Claimed, NewRun, Release, StepRef
from tests.contract.log_scenes import (
    LEASE_S,
    PATIENCE_S,
    STARTED,
    TOOL_QUEUE,
    ask,
    begun,
    decision,
    failed,
    finished,
    model,
    move,
    result,
    resumed,
    tool,
)

Act = Callable[[], Any]
WORKER = "worker.1.5"


def some(log: SqlLog, query: str, **values: Any) -> list[Any]:
    """Rows to begin with."""
    return log.db.run(lambda c: list(c.execute(text(query), values).all()))


def free_calls(log: SqlLog, number: int) -> list[Ask]:
    """Claims to ask for: waiting calls of as many runs."""
    query = (
        "select run_id, min(step) as step from steps join runs using (run_id)"
        " where claim is null and attempt = 0 and steps.kind = 'tool' and runs.status = 'running'"
        " group by run_id having count(*) > 8 limit :number"
    )
    return [ask(row.run_id, row.step) for row in some(log, query, number=number)]


def claimed_calls(log: SqlLog, number: int) -> list[Claimed]:
    claims = log.claim(free_calls(log, number), LEASE_S)
    assert all(claims)
    return [claimed for claimed in claims if claimed]


def claimed_model(log: SqlLog) -> Claimed:
    """A claim of a run's last model step: all its calls have been settled."""
    run_id = f"model-{time.monotonic_ns()}"
    log.submit([NewRun(run_id, "oncall", "disk full")])
    log.settle([move(log.look(run_id), STARTED, opens=(model(1),))])
    claimed = log.claim([ask(run_id, 1)], LEASE_S)[0]
    assert claimed
    return claimed


def held_by(log: SqlLog, worker: str) -> list[Ask]:
    query = "select run_id, step, claim, worker from steps where worker = :worker"
    return [Ask(*row) for row in some(log, query, worker=worker)]


def refs(log: SqlLog, number: int) -> list[StepRef]:
    return [StepRef(one.run_id, one.step, "tool", TOOL_QUEUE, 5) for one in free_calls(log, number)]


# Hot: a step is one of each.


def submit(log: SqlLog) -> Act:
    return lambda: log.submit([NewRun(f"new-{time.monotonic_ns()}-{n}", "oncall", "disk full") for n in range(8)])


def claim_calls(log: SqlLog) -> Act:
    asks = free_calls(log, 32)
    return lambda: log.claim(asks, LEASE_S)


def claim_model(log: SqlLog) -> Act:
    one = claimed_model(log)
    log.release([Release(one.ask)])
    again = ask(one.ask.run_id, 1)
    return lambda: log.claim([again], LEASE_S)


def settle_calls(log: SqlLog) -> Act:
    moves = [move(one.look, result(one.ask.step), claim=one.ask) for one in claimed_calls(log, 32)]
    return lambda: log.settle(moves)


def settle_model(log: SqlLog) -> Act:
    one = claimed_model(log)
    step = decision(1, *["read_logs"] * 3)
    return lambda: log.settle([move(one.look, step, opens=(tool(2), tool(3), tool(4)), claim=one.ask)])


def finish(log: SqlLog) -> Act:
    one = claimed_model(log)
    return lambda: log.settle([move(one.look, decision(1, text="mended"), finished(1), claim=one.ask)])


def cancel(log: SqlLog) -> Act:
    """Ends a run and deletes what nobody works on."""
    look = log.look(free_calls(log, 1)[0].run_id)
    return lambda: log.settle([move(look, Fact("run_cancelled", {"by": "ops", "reason": "enough"}), clear=True)])


def fail(log: SqlLog) -> Act:
    one = claimed_model(log)
    return lambda: log.settle([move(one.look, failed(1), claim=one.ask, park=True)])


def redrive(log: SqlLog) -> Act:
    one = claimed_model(log)
    log.settle([move(one.look, failed(1), claim=one.ask, park=True)])
    look = log.look(one.ask.run_id)
    return lambda: log.settle([move(look, resumed(), reopen=True)])


def begin(log: SqlLog) -> Act:
    one = claimed_calls(log, 1)[0]
    return lambda: log.begin(one.ask, begun(one.ask.step))


def keep(log: SqlLog) -> Act:
    one = claimed_calls(log, 1)[0]
    return lambda: log.keep(one.ask, {"content": "42"})


def arm(log: SqlLog) -> Act:
    one = claimed_calls(log, 1)[0]
    return lambda: log.arm(one.ask, 60.0)


def renew(log: SqlLog) -> Act:
    asks = [one.ask for one in claimed_calls(log, 100)]
    return lambda: log.renew(asks, LEASE_S)


def halted(log: SqlLog) -> Act:
    asks = [one.ask for one in claimed_calls(log, 100)]
    return lambda: log.halted(asks)


def release(log: SqlLog) -> Act:
    releases = [Release(one.ask, delay_s=5.0, failed=True) for one in claimed_calls(log, 8)]
    return lambda: log.release(releases)


def release_worker(log: SqlLog) -> Act:
    return lambda: log.release_worker("worker.1.7")


def release_dead(log: SqlLog) -> Act:
    return lambda: log.release_worker("worker.1.8.3", REAPED)


# Every second in every worker.


def overdue(log: SqlLog) -> Act:
    return lambda: log.overdue(WORKER, 3.0)


def holders(log: SqlLog) -> Act:
    return lambda: log.holders(WORKER)


def wake(log: SqlLog) -> Act:
    log.submit([NewRun(f"due-{time.monotonic_ns()}-{n}", "oncall", "disk full") for n in range(100)])
    return lambda: log.wake(PATIENCE_S, 500)


def recover(log: SqlLog) -> Act:
    return lambda: log.recover(PATIENCE_S, 500)


def queues(log: SqlLog) -> Act:
    return lambda: log.queues(PATIENCE_S, 500)


def mark_sent(log: SqlLog) -> Act:
    these = refs(log, 100)
    return lambda: log.mark_sent(these)


def mark_unsent(log: SqlLog) -> Act:
    these = refs(log, 100)
    return lambda: log.mark_unsent(these)


def left_behind(log: SqlLog) -> Act:
    return lambda: log.left_behind(500)


# What an application, an operator and a dashboard ask.


def look(log: SqlLog) -> Act:
    run_id = free_calls(log, 1)[0].run_id
    return lambda: log.look(run_id)


def look_at_many(log: SqlLog) -> Act:
    ids = [one.run_id for one in free_calls(log, 32)]
    return lambda: log.looks(ids)


def rows_of_many(log: SqlLog) -> Act:
    ids = [one.run_id for one in free_calls(log, 32)]
    return lambda: log.rows(ids)


def read_events(log: SqlLog) -> Act:
    run_id = free_calls(log, 1)[0].run_id
    return lambda: log.events(run_id, 0)


def held(log: SqlLog) -> Act:
    run_id = held_by(log, WORKER + ".2")[0].run_id
    return lambda: log.held(run_id)


def open_steps(log: SqlLog) -> Act:
    run_id = free_calls(log, 1)[0].run_id
    return lambda: log.open_steps(run_id)


def backlog(log: SqlLog) -> Act:
    return lambda: log.backlog()


def list_newest(log: SqlLog) -> Act:
    return lambda: log.runs()


def list_status(log: SqlLog) -> Act:
    return lambda: log.runs(status="failed")


def list_since(log: SqlLog) -> Act:
    return lambda: log.runs(since=time.time() - 900, until=time.time() - 600, agent="oncall")


def list_next(log: SqlLog) -> Act:
    last = log.runs(limit=200)[-1].run_id
    return lambda: log.runs(after=last)


def list_unknown(log: SqlLog) -> Act:
    return lambda: log.runs(unknown=True)


def list_asked(log: SqlLog) -> Act:
    return lambda: log.runs(asked=True)


def standing(log: SqlLog) -> Act:
    return lambda: log.standing()


def recorded(log: SqlLog) -> Act:
    return lambda: log.recorded(time.time() - 80, 5.0)


def stuck(log: SqlLog) -> Act:
    return lambda: log.stuck()


def unserved(log: SqlLog) -> Act:
    return lambda: log.unserved()


def unbegun(log: SqlLog) -> Act:
    return lambda: log.unbegun(60.0)


def ended_before(log: SqlLog) -> Act:
    return lambda: log.ended_before(3 * 86_400.0, ENDED, 200)


def forget(log: SqlLog) -> Act:
    rows = log.ended_before(3 * 86_400.0, ENDED, 200)
    return lambda: log.forget(rows)


def register(log: SqlLog) -> Act:
    return lambda: log.register([AgentRow("oncall", "f" * 64, {})])


OPERATIONS: Sequence[Callable[[SqlLog], Act]] = (
    submit, claim_calls, claim_model, settle_calls, settle_model, finish, cancel, fail, redrive, begin, keep, arm,
    renew, halted, release, release_worker, release_dead, overdue, holders, wake, recover, queues, mark_sent,
    mark_unsent, left_behind, look, look_at_many, rows_of_many, read_events, held, open_steps, backlog, list_newest,
    list_status, list_since, list_next, list_unknown, list_asked, standing, recorded, stuck, unserved, unbegun,
    ended_before, forget, register,
)  # fmt: skip
