"""ops/postgres/partition.sql: the log on a partitioned table is the same log, and a month of it is dropped at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from drangue_client.errors import ConflictError, UnknownRunError
from drangue_client.store.log import SqlLog
from drangue_client.store.migrate import migrate, newest
from drangue_client.submission import check_run_id
from tests.contract.log_scenes import begun, claim, decision, fan_out, finished, kinds, result, sql, start, write

SCRIPT = (Path(__file__).resolve().parents[2] / "ops" / "postgres" / "partition.sql").read_text()
MONTHS = 3


def first_id(moment: datetime) -> str:
    return f"{int(moment.timestamp() * 1000):012x}"


def month(number: int) -> datetime:
    """The beginning of the month that many months from now."""
    moment = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    for _ in range(number):
        moment = (moment + timedelta(days=32)).replace(day=1)
    return moment


NEXT = f"{first_id(month(1))}{'0' * 20}"  # of the next month's first millisecond
AFTER = f"{first_id(month(2))}{'0' * 20}"


@pytest.fixture
def url(postgres: SqlLog, addresses: Any) -> Iterator[str]:
    """A schema of its own with a run from before, and then partitions."""
    sql(postgres, "drop schema if exists contract_partitions cascade")
    sql(postgres, "create schema contract_partitions")
    url = f"{addresses.database_url}?options={quote('-csearch_path=contract_partitions')}"
    migrate(url)
    with closing(SqlLog(url)) as log:
        fan_out(log, "before")
    run(url, SCRIPT)
    run(url, f"select events_ahead({MONTHS})")
    yield url
    sql(postgres, "drop schema contract_partitions cascade")


@pytest.fixture
def log(url: str) -> Iterator[SqlLog]:
    with closing(SqlLog(url)) as log:
        yield log


def run(url: str, statements: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statements)
        return cursor.fetchall() if cursor.description else []


def places(url: str) -> dict[str, str]:
    """The partition of each run's events."""
    return dict(run(url, "select distinct run_id, tableoid::regclass::text from events"))


def end(log: SqlLog, run_id: str) -> None:
    start(log, run_id)
    write(log, run_id, decision(1, text="mended"), finished(1), claim=claim(log, run_id).ask)


def test_a_run_is_where_its_id_says(log: SqlLog, url: str) -> None:
    """What was there before stays where it is; an id of somebody's own tells no month."""
    start(log, NEXT)
    start(log, AFTER)
    start(log, "ticket-4710")
    name = f"events_{month(1):%Y_%m}"
    assert places(url) == {
        "before": "events_rest",
        NEXT: name,
        AFTER: f"events_{month(2):%Y_%m}",
        "ticket-4710": "events_rest",
    }


def test_an_id_of_ours_begins_with_the_time() -> None:
    """The partition is told from the id alone, and what is new lies together in every index."""
    before, made, after = first_id(datetime.now(UTC)), check_run_id(None), first_id(datetime.now(UTC))
    assert before <= made[:12] <= after
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert len({check_run_id(None) for _ in range(1000)}) == 1000


@pytest.mark.parametrize("run_id", [NEXT, "ticket-4710"])
def test_a_result_is_recorded_once(log: SqlLog, run_id: str) -> None:
    """The reason why the key is the run: unique over time alone would let a second result in."""
    fan_out(log, run_id, name="restart")
    held = claim(log, run_id, 2)
    assert log.begin(held.ask, begun(2))
    write(log, run_id, result(2), claim=held.ask)
    for again in (result(2), begun(2)):
        with pytest.raises(ConflictError):
            write(log, run_id, again)
    assert kinds(log.events(run_id)) == ["run_started", "model_decision", "step_started", "tool_result"]


def test_a_run_from_before_goes_on(log: SqlLog) -> None:
    """The rows have not moved; only the table has another name."""
    write(log, "before", result(2), claim=claim(log, "before", 2).ask)
    assert kinds(log.events("before")) == ["run_started", "model_decision", "tool_result"]


def test_a_month_is_forgotten_with_its_runs(log: SqlLog, url: str) -> None:
    """That is what partitions are for; nothing of another month is touched."""
    for run_id in (NEXT, AFTER, "ticket-4710"):
        end(log, run_id)
    sql(log, "update runs set finished_at = :at", at=month(1))
    assert run(url, f"select events_forget('{month(2):%Y-%m-%d}')") == [(f"events_{month(1):%Y_%m}",)]
    with pytest.raises(UnknownRunError):
        log.look(NEXT)
    assert log.events(NEXT) == []
    assert set(places(url)) == {"before", AFTER, "ticket-4710"}
    assert log.look(AFTER).row.status == "completed"


@pytest.mark.parametrize("kept", ["open", "ended later", "unknown"])
def test_a_month_with_a_run_that_goes_on_is_kept_whole(log: SqlLog, url: str, kept: str) -> None:
    """A conversation may last for years; its beginning is not to be dropped from under it."""
    end(log, NEXT)
    sql(log, "update runs set finished_at = :at", at=month(1))
    other = f"{first_id(month(1))}{'1' * 20}"
    if kept == "open":
        start(log, other)
    else:
        end(log, other)
        sql(log, "update runs set finished_at = :at", at=month(1 if kept == "unknown" else 3))
        sql(log, "update runs set unknown = :n where run_id = :id", n=int(kept == "unknown"), id=other)
    with pytest.raises(psycopg.errors.RaiseException, match=re.escape("has to be kept")):
        run(url, f"select events_forget('{month(2):%Y-%m-%d}')")
    assert {NEXT, other} <= set(places(url))
    assert log.look(NEXT).row.status == "completed"


def test_repeating_changes_nothing(log: SqlLog, url: str) -> None:
    """It stands in a runbook: somebody will do it twice; and every deploy migrates."""
    start(log, NEXT)
    before = places(url)
    run(url, SCRIPT)
    assert run(url, f"select events_ahead({MONTHS})") == []
    assert migrate(url) == (newest(), newest())
    assert places(url) == before
    assert run(url, f"select events_ahead({MONTHS + 1})") == [(f"events_{month(MONTHS + 1):%Y_%m}",)]
