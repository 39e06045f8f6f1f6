"""The bare chain: what one writes with Celery and Postgres alone. One task per step; each commits one row, then sends
the next.

Celery's defaults hold, also for acknowledgements. There is no claim, no coordination and no second look at a message
that was lost: this is the least that a durable step can cost, not another product.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import LifoQueue

import psycopg
from celery import Celery

DATABASE = "BENCH_RAW_DATABASE_URL"
BROKER = "BENCH_RAW_REDIS_URL"
GREEN_CONNECTIONS = 16  # for a thousand green threads: a connection each would be a process each
TABLE = """
create table if not exists rows (
    run text not null,
    step int not null,
    result text not null,
    at timestamptz not null default clock_timestamp(),
    primary key (run, step)
)
"""
INSERT = "insert into rows (run, step, result) values (%s, %s, %s)"

app = Celery("bench_raw", broker=os.environ.get(BROKER))
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

_own = threading.local()
_shared: LifoQueue[psycopg.Connection | None] = LifoQueue()
for _ in range(GREEN_CONNECTIONS):
    _shared.put(None)  # opened when it is first taken


@contextmanager
def connection() -> Iterator[psycopg.Connection]:
    """This thread's connection; green threads take turns at a few."""
    if os.environ.get("BENCH_RAW_GREEN"):
        taken = _shared.get()
        try:
            taken = taken or _connect()
            yield taken
        finally:
            _shared.put(taken)
    else:
        if not hasattr(_own, "connection"):
            _own.connection = _connect()
        yield _own.connection


def _connect() -> psycopg.Connection:
    return psycopg.connect(os.environ[DATABASE], autocommit=True)


def write(run: str, step: int, size: int) -> None:
    """Commit the row of a step."""
    with connection() as open_connection:
        open_connection.execute(INSERT, (run, step, "x" * size))


@app.task(name="raw.step")
def step(run: str, number: int, last: int, size: int, think_s: float) -> None:
    """One step of a chain: every second one, from the first on, is the model's and takes `think_s` seconds."""
    if think_s and number % 2 == 0:
        time.sleep(think_s)
    write(run, number, size)
    if number < last:
        step.apply_async((run, number + 1, last, size, think_s))


@app.task(name="raw.ask")
def ask(run: str, calls: int, size: int, seconds: float) -> None:
    """The model's step of a fan-out: its row, then all the tools."""
    write(run, 0, size)
    for number in range(1, calls + 1):
        one_of.apply_async((run, number, calls, size, seconds))


@app.task(name="raw.one_of")
def one_of(run: str, number: int, calls: int, size: int, seconds: float) -> None:
    """One tool of a fan-out; whoever finds all the others there writes the row that joins them."""
    time.sleep(seconds)
    write(run, number, size)
    with connection() as open_connection:
        open_connection.execute(
            "insert into rows (run, step, result) select %(run)s, %(last)s, 'joined' "
            "where (select count(*) from rows where run = %(run)s and step between 1 and %(calls)s) = %(calls)s "
            "on conflict do nothing",
            {"run": run, "last": calls + 1, "calls": calls},
        )
