"""The world that the soak's tools act upon: a database of its own, which the runtime does not know.

One row per execution of a tool, on disk before the tool goes on. A real service would have one effect per idempotency
key; here the rows stay, so that both can be counted: executions, and keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID, uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

NAME = "chaos_world"
URL = "CHAOS_WORLD_URL"  # the variable that tells workers where it is
PATIENCE_S = 60.0  # longer than the monkey keeps any server away
POLL_S = 0.1
CONNECT_S = 5
TABLE = """
create table executions (
    id uuid primary key,
    key text not null,
    tool text not null,
    subject text not null,
    at timestamptz not null  -- when it began, by the clock of the tool's process
);
create index on executions (key);
"""


T = TypeVar("T")


class WorldUnavailable(RuntimeError):
    """The world's database could not be reached for PATIENCE_S seconds, so nobody knows whether the effect is there."""


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution of a tool: under which idempotency key, what about, and when it began (epoch seconds)."""

    key: str
    tool: str
    subject: str
    at: float = 0.0


def create(server_url: str) -> str:
    """Make the world on the server of `server_url`; returns the address to reach it by."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(NAME)))
    url = make_conninfo(server_url, dbname=NAME)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE)
    return url


def act(url: str, execution: Execution) -> int:
    """Have the effect: write one row. Returns how many executions under the same key came before.

    Waits for a database that is away: the row has an id of its own, so writing it again after a lost answer adds
    nothing. WorldUnavailable after PATIENCE_S seconds.
    """
    row, began = uuid4(), time.time()
    return _patiently(lambda: _write(url, row, execution, began))


def find(url: str, key: str) -> Execution | None:
    """The first execution under a key; None where there is none. Waits as `act` does."""
    return _patiently(lambda: next(iter(executions(url, key)), None))


def executions(url: str, key: str | None = None) -> list[Execution]:
    """Every execution, or every one under a key, oldest first."""
    query = (
        "select key, tool, subject, extract(epoch from at)::float8 from executions where %s in (key, '') order by at"
    )
    with psycopg.connect(url, connect_timeout=CONNECT_S) as connection:
        rows = connection.execute(query, (key or "",)).fetchall()
    return [Execution(*row) for row in rows]


def _patiently(ask: Callable[[], T]) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise WorldUnavailable(f"the world cannot be reached: {error}") from error
            time.sleep(POLL_S)


def _write(url: str, row: UUID, execution: Execution, began: float) -> int:
    insert = (
        "insert into executions (id, key, tool, subject, at) values (%s, %s, %s, %s, to_timestamp(%s)) "
        "on conflict do nothing"
    )
    values = (row, execution.key, execution.tool, execution.subject, began)
    with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_S) as connection:
        connection.execute(insert, values)
        found = connection.execute(
            "select count(*) from executions where key = %s and id <> %s", (execution.key, row)
        ).fetchone()
    return int(found[0]) if found else 0
