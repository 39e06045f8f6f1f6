"""A database as a busy fleet leaves it after months: written through the log's own operations, then multiplied in SQL.

A few runs are made as the engine makes them, one of each kind, and copied with other ids: what a statement meets is
consistent, and a million events are there within a minute. A copy's times lie in its own past; a lease lasts.
"""

from __future__ import annotations

from drangue_client.events import Fact
from drangue_client.store.log import SqlLog
from drangue_client.store.tables import events, metadata, runs, steps
from drangue_client.store.values import NewRun, Release
from tests.contract.log_scenes import (
    begun,
    claim,
    decision,
    elapse,
    failed,
    fan_out,
    finished,
    model,
    result,
    sql,
    start,
    tool,
    write,
)
from tests.contract.test_log_unknown import unknown

SHARES = {  # runs of each kind, for a thousand open runs
    "done": 10_000,  # 10 events each
    "waiting": 850,  # 10 calls each, in a queue
    "held": 100,  # 10 calls each, held by workers
    "backoff": 40,
    "asked": 30,
    "queued": 20,
    "unknown": 5,
    "begun": 4,
    "lapsed": 1,
    "parked": 60,  # failed, their last step kept for a redrive
    "left": 2,  # cancelled while irreversible calls were held
}
PAST = "make_interval(secs => 60 + 5 * n)"


def fill(log: SqlLog, thousands: int = 10) -> None:
    """Fill an empty Postgres: 10 thousands are 10,000 open runs with 100,000 open steps and 1,000,000 events."""
    _make_one_of_each(log)
    elapse(log, 60)
    lasting = "claim is not null and run_id not in ('lapsed', 'left')"
    sql(log, f"update steps set lease_until = now() + interval '1 day' where {lasting}")
    for kind, share in SHARES.items():
        _multiply(log, kind, share * thousands)
    for table in metadata.sorted_tables:
        sql(
            log, f"delete from {table.name} where {table.primary_key.columns[0].name} = any(:kinds)", kinds=list(SHARES)
        )
    with log.db.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("vacuum analyze")
        # The server may be at its own vacuuming, and a look that is older than the rows keeps them from being marked.
        seen = "select relallvisible > 0.99 * relpages from pg_class where relname = 'steps'"
        while not connection.exec_driver_sql(seen).scalar_one():
            connection.exec_driver_sql("vacuum steps")


def _make_one_of_each(log: SqlLog) -> None:
    fan_out(log, "done", tools=2)
    for step in (2, 3):
        write(log, "done", result(step), claim=claim(log, "done", step).ask, opens=(model(4),) if step == 3 else ())
    write(
        log, "done", decision(4, *["read_logs"] * 3), claim=claim(log, "done", 4).ask, opens=(tool(5), tool(6), tool(7))
    )
    for step in (5, 6, 7):
        write(log, "done", result(step), claim=claim(log, "done", step).ask, opens=(model(8),) if step == 7 else ())
    write(log, "done", decision(8, text="mended"), finished(8), claim=claim(log, "done", 8).ask)
    for kind in ("waiting", "held", "backoff", "lapsed", "left"):
        fan_out(log, kind, tools=10, name="restart" if kind == "left" else "read_logs")
    for kind in ("held", "lapsed"):
        for step in range(2, 12):
            claim(log, kind, step, worker="worker.1")
    for step in range(2, 12):
        log.release([Release(claim(log, "backoff", step).ask, delay_s=60.0 if step < 11 else 3600.0, failed=True)])
    log.submit([NewRun("queued", "oncall", "disk full", wake_in_s=86_400.0)])
    fan_out(log, "asked", tools=2)
    write(log, "asked", Fact("approval_requested", {"call_id": "call_2", "tool": "read_logs"}, 2))
    fan_out(log, "begun", tools=1, name="restart")
    held = claim(log, "begun", 2).ask
    log.begin(held, begun(2))
    log.arm(held, 3600.0)
    fan_out(log, "unknown", tools=1, name="restart")
    write(log, "unknown", unknown(2), claim=claim(log, "unknown", 2).ask, opens=(model(3),))
    start(log, "parked")
    write(log, "parked", failed(1), claim=claim(log, "parked", 1).ask, park=True)
    for step in (2, 3):
        log.begin(claim(log, "left", step).ask, begun(step))
    write(log, "left", Fact("run_cancelled", {"by": "ops", "reason": "enough"}), clear=True)


def _multiply(log: SqlLog, kind: str, times: int) -> None:
    """Copies of one run: `n` numbers them."""
    for table in (runs, events, steps):
        changed = {
            "run_id": "md5(run_id || n)",
            "claim": "md5(claim || step || n)",
            "worker": "worker || '.' || n % 97 || '.' || step",
        }
        changed |= {name: f"{name} - {PAST}" for name in ("created_at", "finished_at", "ts", "recorded_at")}
        if kind == "waiting":
            changed |= {name: f"{name} - n * interval '1 ms'" for name in ("available_at", "sent_at")}
        names = table.columns.keys()
        values = ", ".join(changed.get(name, name) for name in names)
        sql(
            log,
            f"insert into {table.name} ({', '.join(names)}) select {values} from {table.name},"
            " generate_series(1, :times) as n where run_id = :kind",
            times=times,
            kind=kind,
        )
