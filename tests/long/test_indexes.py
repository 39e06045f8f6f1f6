"""At a million events and a hundred thousand open steps: every statement finds its rows by an index it is named for.

What was read is asked of the server, which counts the scans of a table and of an index wherever they come from. Each
operation is done twice: planned for its parameters, and planned for any, as a statement is that was prepared long ago.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from drangue_client.store.log import SqlLog
from tests.kit.fleet import wait_until
from tests.long import operations
from tests.long.filling import fill
from tests.long.operations import OPERATIONS, Act

MODES = ("force_custom_plan", "force_generic_plan")
BIG = ("runs", "events", "steps")
FEW = 2_500  # rows: a sweep takes 500 of a kind, with their runs, and looks at four times as many
MORE = {  # rows that some read besides, and why
    "recover": (12_500, "whether the lease has lapsed of each of the 10,000 steps that are held"),
    "left_behind": (25_000, "the same, and whether the runs have ended of those that are to be tried again"),
    "queues": (50_000, "counts 88,000 by the index alone, as far as the last vacuum went"),
    "recorded": (10_000, "events of the same pages: a BRIN knows no more"),
    "standing": (15_000, "counts the open runs by status, every few seconds at most"),
    "unserved": (15_000, "counts the open runs by agent, every few seconds at most"),
    "stuck": (25_000, "looks at the steps of every open run, for a person"),
    "backlog": (25_000, "counts the open steps by queue, every few seconds at most"),
}
SCANS = {"backlog": {"steps"}}  # who reads nearly all rows of a table is quicker without an index
LEFT_OUT = {
    "at_hand",
    "load",
    "close",
    "server",
    "agents",
    "differing",
}  # the last folds every log there is, page by page
USES = {  # where it can be told beforehand; the others are found by a primary key
    "begin": {"ux_events_attempt"},
    "overdue": {"ix_steps_attempted", "ux_events_attempt"},
    "holders": {"ix_steps_attempted"},
    "release_worker": {"ix_steps_attempted"},
    "wake": {"ix_runs_wake_at"},
    "recover": {"ix_steps_attempted", "ix_steps_due"},
    "queues": {"ix_steps_waiting"},
    "left_behind": {"ix_steps_attempted", "ux_events_attempt"},
    "list_newest": {"ix_runs_created_at"},
    "list_status": {"ix_runs_status_created_at"},
    "list_unknown": {"ix_runs_unknown"},
    "standing": {"ix_runs_status_created_at", "ix_runs_asked"},
    "recorded": {"ix_events_recorded_at"},
    "ended_before": {"ix_runs_finished_at"},
}


@dataclass
class Seen:
    """What the server has counted: per table how often it was read whole and how many rows were found by an index, per
    index how often it was used."""

    scans: dict[str, int]
    rows: dict[str, int]
    uses: dict[str, int]

    def since(self, before: Seen) -> Seen:
        return Seen(*(_more(getattr(self, name), getattr(before, name)) for name in ("scans", "rows", "uses")))


def _more(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in now.items() if count > before[name]}


class Server:
    """The server's own counts, which a connection adds to when it ends."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True, application_name="counts")

    def seen(self) -> Seen:
        wait_until(lambda: not self._asked("select 1 from pg_stat_activity where application_name = 'drangue'"))
        tables = self._asked("select relname, seq_scan, coalesce(idx_tup_fetch, 0) from pg_stat_user_tables")
        indexes = self._asked("select indexrelname, idx_scan from pg_stat_user_indexes")
        scans = {name: scans for name, scans, _ in tables if name in BIG}
        return Seen(scans, {name: rows for name, _, rows in tables if name in BIG}, dict(indexes))

    def indexes(self) -> set[str]:
        """Those that are there for reading: a unique one also keeps something from being written twice."""
        query = "select indexrelid::regclass::text from pg_index join pg_class on oid = indrelid"
        where = "where relnamespace = 'public'::regnamespace and not indisunique"
        return {name for (name,) in self._asked(f"{query} {where}")}

    def _asked(self, query: str) -> list[Any]:
        return self.connection.execute(query).fetchall()


@pytest.fixture
def filled(database_url: str) -> Iterator[str]:
    with closing(SqlLog(database_url)) as log:
        fill(log)
    yield database_url
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("truncate runs, events, steps, agents")  # the next test may be in a hurry


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_statement_finds_its_rows_by_an_index(filled: str) -> None:
    """A sweep runs every second in every worker; one that read a backlog whole would keep it from shrinking."""
    server, wrong = Server(filled), []
    used: set[str] = set()
    with server.connection:
        for mode in MODES:
            for operation in OPERATIONS:
                seen = done(server, filled, mode, operation)
                name, found = operation.__name__, set(seen.uses)
                used |= found
                rows = sum(seen.rows.values())
                if seen.scans.keys() - SCANS.get(name, set()):
                    wrong.append(f"{mode} {name}: reads all of {', '.join(seen.scans)}")
                if rows > MORE.get(name, (FEW, ""))[0]:
                    wrong.append(f"{mode} {name}: reads {seen.rows} rows by {seen.uses}")
                if USES.get(name, set()) - found:
                    wrong.append(f"{mode} {name}: does not use {', '.join(USES[name] - found)}, but {found}")
        unused = server.indexes() - used
    assert (wrong, unused) == ([], set())


def done(server: Server, url: str, mode: str, operation: Callable[[SqlLog], Act]) -> Seen:
    """What one operation, and nothing of its preparation, made the server read."""
    log = SqlLog(f"{url}?options={quote(f'-cplan_cache_mode={mode}')}")
    try:
        act = operation(log)
        log.close()
        before = server.seen()
        act()
    finally:
        log.close()
    return server.seen().since(before)


def test_no_operation_of_the_log_was_forgotten() -> None:
    """Whoever adds one says here how it is used, and learns what it reads."""
    public = {name for name in dir(SqlLog) if not name.startswith("_")}
    called = inspect.getsource(operations)
    assert {name for name in public if f"log.{name}" not in called} == LEFT_OUT
