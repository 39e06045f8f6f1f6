"""A database that is away, empty, broken or shared by a fork: what is said, and what goes on working."""

from __future__ import annotations

import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from drangue_client.errors import DatabaseUnavailable
from drangue_client.events import Fact
from drangue_client.store import InMemoryStore, PostgresStore, SQLiteStore
from drangue_client.store.log import SqlLog
from drangue_client.store.migrate import migrate
from drangue_client.store.values import Moved, NewRun
from tests.contract.log_scenes import (
    NOTE,
    ask,
    at_once,
    claim,
    decision,
    fan_out,
    forked,
    move,
    result,
    sql,
    start,
    write,
)

PASSWORD = "s3cret-passw0rd"
OpenLog = Callable[[str], SqlLog]


def in_schema(url: str, schema: str) -> str:
    """The same database, but other tables: a URL as users write it to share one database among systems."""
    return f"{url}{'&' if '?' in url else '?'}options={quote(f'-csearch_path={schema}')}"


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestInterrupted:
    @pytest.mark.parametrize("pooled", [False, True])
    def test_what_is_broken_off_leaves_nothing_broken_behind(
        self, addresses: Any, open_log: OpenLog, pooled: bool
    ) -> None:
        """A task's time limit, or a web server's, raises wherever it is; the next call must not meet a connection that
        still waits for an answer."""
        log = open_log(addresses.database_url + ("?pooler=transaction" if pooled else ""))

        class TimeIsOver(BaseException):
            pass

        def over(*_: Any) -> None:
            raise TimeIsOver

        before = signal.signal(signal.SIGALRM, over)
        try:
            for work in (
                lambda: log.db.alone("select pg_sleep(30)", {}),
                lambda: log.db.run(lambda c: c.execute(text("select pg_sleep(30)"))),
            ):
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                with pytest.raises(TimeIsOver):
                    work()
                assert log.db.alone("select 7", {}) == [(7,)]
                assert log.db.run(lambda c: c.execute(text("select 7")).scalar()) == 7
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class TestAway:
    @pytest.mark.parametrize("durable", [True, False])
    def test_an_unreachable_postgres_is_said_to_be_so_within_seconds(
        self, open_log: OpenLog, closed_port: int, durable: bool
    ) -> None:
        """A worker backs off on this error and an operator acts on it: it must be quick, and name the place."""
        log = open_log(f"postgresql://drangue:{PASSWORD}@127.0.0.1:{closed_port}/drangue")
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable) as raised:
            log.look("r") if durable else log.claim([ask()], 15.0)
        assert time.monotonic() - began < 3
        assert f"127.0.0.1:{closed_port}" in str(raised.value)
        assert "refused" in str(raised.value)
        assert "DRANGUE_DATABASE_URL" in str(raised.value)

    def test_no_error_shows_the_password(self, open_log: OpenLog, closed_port: int, addresses: Any) -> None:
        """Errors end up in logs, and whole tracebacks in tickets."""
        away = f"postgresql://drangue:{PASSWORD}@127.0.0.1:{closed_port}/drangue"
        refused = make_url(addresses.database_url).set(password=PASSWORD, database="no_such_database")
        for url in (away, refused.render_as_string(hide_password=False)):
            with pytest.raises(DatabaseUnavailable) as raised:
                open_log(url).look("r")
            assert PASSWORD not in "".join(traceback.format_exception(raised.value))

    @pytest.mark.parametrize("durable", [True, False])
    def test_a_postgres_without_tables_is_told_how_to_get_them(
        self, open_log: OpenLog, postgres: SqlLog, addresses: Any, durable: bool
    ) -> None:
        """The first thing anybody meets who installs this on a server of their own."""
        log = open_log(in_schema(addresses.database_url, "pg_temp"))
        with pytest.raises(DatabaseUnavailable, match="drangue migrate"):
            log.look("r") if durable else log.claim([ask()], 15.0)

    def test_the_urls_own_options_hold_for_every_operation(
        self, open_log: OpenLog, postgres: SqlLog, addresses: Any
    ) -> None:
        """A schema of one's own is chosen in the URL; claims must look for steps where settling puts them."""
        with _schema(postgres, "contract_options") as schema:
            url = in_schema(addresses.database_url, schema)
            migrate(url)
            with closing(SqlLog(url)) as log:
                start(log)
                assert log.claim([ask()], 15.0)[0] is not None

    def test_a_file_that_is_no_database_is_said_to_be_so(self, open_log: OpenLog, tmp_path: Path) -> None:
        """A wrong path is a common slip, and its owner needs the path, not a driver's exception."""
        path = tmp_path / "notes.txt"
        path.write_text("buy milk\n" * 1000)
        with pytest.raises(DatabaseUnavailable, match=r"notes\.txt"):
            open_log(f"sqlite:///{path}")
        assert path.read_text() == "buy milk\n" * 1000

    def test_a_folder_that_is_not_there_is_said_to_be_so(self, open_log: OpenLog, tmp_path: Path) -> None:
        """SQLite makes a file but no folder, and its own words do not name either."""
        with pytest.raises(DatabaseUnavailable, match=r"missing"):
            open_log(f"sqlite:///{tmp_path / 'missing' / 'log.db'}")


class TestBrokenConnections:
    @pytest.mark.parametrize("durable", [True, False])
    def test_the_call_after_a_connection_was_killed_works(
        self, postgres_logs: tuple[SqlLog, SqlLog], durable: bool
    ) -> None:
        """A restarted database or a dropped link costs a worker nothing while the database is there."""
        log, other = postgres_logs
        fan_out(log)
        _kill(other, log.db.run(_backend, durable=durable))
        if durable:
            assert write(log, "r", NOTE).verdict == "ok"
        else:
            assert log.claim([ask(step=2)], 15.0)[0] is not None

    def test_connections_killed_all_at_once_work_again(self, postgres_logs: tuple[SqlLog, SqlLog]) -> None:
        """A restart drops every pooled connection; a pool of dead ones must not fail one call after the other."""
        log, other = postgres_logs
        barrier = threading.Barrier(4)

        def together(connection: Connection) -> int:
            barrier.wait(10)
            return _backend(connection)

        backends = at_once(*[lambda: log.db.run(together)] * 4)
        assert len(set(backends)) == 4
        for backend in backends:
            _kill(other, backend)
        assert at_once(*[log.agents] * 4) == [[]] * 4

    def test_a_transaction_whose_connection_breaks_is_repeated_once(self, postgres: SqlLog) -> None:
        """Once, on a fresh connection: a database that kills every connection is away, and is said to be."""
        fan_out(postgres)
        attempts = []

        def break_once(connection: Connection) -> str:
            attempts.append(1)
            if len(attempts) == 1:
                connection.execute(text("select pg_terminate_backend(pg_backend_pid())"))
            return "done"

        assert postgres.db.run(break_once) == "done"
        assert len(attempts) == 2

        def break_always(connection: Connection) -> None:
            attempts.append(1)
            connection.execute(text("select pg_terminate_backend(pg_backend_pid())"))

        with pytest.raises(DatabaseUnavailable):
            postgres.db.run(break_always)
        assert len(attempts) == 4

        def be_refused(connection: Connection) -> None:
            attempts.append(1)
            connection.execute(text("select 1 / 0"))

        with pytest.raises(Exception, match="division by zero"):
            postgres.db.run(be_refused)
        assert len(attempts) == 5
        assert postgres.look("r").row.status == "running"

    def test_what_a_broken_transaction_wrote_is_not_written_twice(self, postgres: SqlLog) -> None:
        """The repetition starts from nothing: the first attempt was rolled back with its connection."""
        start(postgres)

        def write_and_break(connection: Connection) -> None:
            connection.execute(text("update runs set priority = priority + 1"))
            if not broken:
                broken.append(1)
                connection.execute(text("select pg_terminate_backend(pg_backend_pid())"))

        broken: list[int] = []
        postgres.db.run(write_and_break)
        assert postgres.look("r").row.priority == 6


class TestProcesses:
    @pytest.fixture(params=["file", "postgres"])
    def log(self, request: pytest.FixtureRequest, open_log: OpenLog) -> SqlLog:
        """A log of this test's own, on a database that a child can share."""
        url = request.getfixturevalue("file_url" if request.param == "file" else "database_url")
        return open_log(url)

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_and_its_parent_both_go_on(self, log: SqlLog) -> None:
        """The tool pool forks from a process that sweeps: a connection shared by both would mix their answers."""
        fan_out(log, tools=3)
        claimed = claim(log, step=2)

        def look_often() -> set[str]:
            return {log.look("r").row.run_id for _ in range(30)}

        with forked(lambda: [_work_on(log, "r", 3), look_often(), log.close(), look_often()]) as answer:
            _insist(log, "r", result(2), claim=claimed.ask)
            assert look_often() == {"r"}
            assert answer() == [3, {"r"}, None, {"r"}]
        assert log.look("r").run.seq == 3
        assert sorted(event.step or 0 for event in log.events("r")) == [0, 1, 2, 3]
        assert _work_on(log, "r", 4) == 4

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_child_forked_in_the_middle_of_a_transaction_goes_on(self, open_log: OpenLog, database_url: str) -> None:
        """A sweeper's thread may be in one at any time; the child has no part in it. (SQLite itself forbids this.)"""
        log = open_log(database_url)
        start(log)
        idle = log.db.run(_backend, durable=False)
        inside, leave = threading.Event(), threading.Event()

        def dwell(connection: Connection) -> None:
            connection.execute(text("select 1"))
            inside.set()
            leave.wait(10)

        thread = threading.Thread(target=log.db.run, args=(dwell,))
        thread.start()
        try:
            assert inside.wait(10)
            with forked(lambda: [_work_on(log, "r", 1), log.close()]) as answer:
                assert answer() == [1, None]
        finally:
            leave.set()
            thread.join()
        assert log.look("r").run.seq == 1
        assert log.db.run(_backend, durable=False) == idle  # the child closed what was its own

    def test_threads_share_one_log(self, log: SqlLog) -> None:
        """A worker's threads, its sweeper and its renewals use one object."""
        fan_out(log, tools=16)

        def claim_two(first: int) -> list[int]:
            return [claim(log, step=step).attempt for step in (first, first + 8)]

        assert at_once(*(partial(claim_two, first) for first in range(2, 10))) == [[1, 1]] * 8

    def test_a_closed_log_opens_again(self, log: SqlLog) -> None:
        """Closing lets go of connections, before a fork or at a pause; what was written stays."""
        start(log)
        log.close()
        log.close()
        assert log.look("r").row.status == "running"


class TestStores:
    def test_a_store_in_memory_is_alone(self) -> None:
        """Two tests, two agents: nothing of one may show up in the other."""
        with closing(InMemoryStore()) as one, closing(InMemoryStore()) as other:
            one.submit([NewRun("r", "oncall", "")])
            assert other.runs() == []

    @pytest.mark.parametrize("name", ["log.db", "with space.db", "100% sure?.db", "a#b&c=d.db"])
    def test_a_store_in_a_file_is_found_again(self, tmp_path: Path, name: str) -> None:
        """A path is a path, whatever its letters would mean in a URL."""
        with closing(SQLiteStore(tmp_path / name)) as store:
            start(store)
        assert (tmp_path / name).exists()
        with closing(SQLiteStore(str(tmp_path / name))) as store:
            assert store.look("r").row.status == "running"

    def test_a_postgres_store_is_on_postgres(self, addresses: Any, tmp_path: Path) -> None:
        """Whoever asks for Postgres by name must not get a file by a slip, nor leave one behind."""
        with closing(PostgresStore(addresses.database_url)) as store:
            assert store.db.postgres
        with pytest.raises(ValueError, match="SQLiteStore"):
            PostgresStore(f"sqlite:///{tmp_path / 'log.db'}")
        assert list(tmp_path.iterdir()) == []


def _backend(connection: Connection) -> int:
    return int(connection.execute(text("select pg_backend_pid()")).scalar_one())


def _kill(log: SqlLog, backend: int) -> None:
    """End a connection from the server's side; back when it is gone."""
    killed = text("select pg_terminate_backend(:backend, 5000)")
    assert log.db.run(lambda c: c.execute(killed, {"backend": backend}).scalar_one())


def _insist(log: SqlLog, run_id: str, fact: Fact, **more: Any) -> str:
    """Write a fact, deciding again as often as it takes."""
    moved = Moved("moved", look=log.look(run_id))
    while moved.look is not None:
        moved = log.settle([move(moved.look, fact, **more)])[0]
    return moved.verdict


def _work_on(log: SqlLog, run_id: str, step: int) -> int:
    """Do one step, as a worker does."""
    claimed = claim(log, run_id, step)
    assert log.renew([claimed.ask], 15.0) == {claimed.ask.token}
    fact = decision(step) if claimed.kind == "model" else result(step)
    assert _insist(log, run_id, fact, claim=claimed.ask) == "ok"
    return step


@contextmanager
def _schema(log: SqlLog, name: str) -> Iterator[str]:
    """An empty schema beside the test's own tables, dropped at the end."""
    sql(log, f"drop schema if exists {name} cascade")
    sql(log, f"create schema {name}")
    try:
        yield name
    finally:
        sql(log, f"drop schema {name} cascade")
