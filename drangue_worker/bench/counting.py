"""What a piece of work costs Postgres and Redis, counted and not timed: the same on a slow machine as on a fast one.

    with counting(database_url, redis_url) as counted:
        ...  # the work
    print(counted.counts.all.statements / steps)

Counting makes the work slower: every statement is logged and every commit of a change is noted by a trigger. It needs a
superuser, and a Postgres on this machine whose log is a file (the embedded one has that). One block at a time may count
on a server; what other databases do meanwhile adds to `wal_bytes` and `fsyncs` alone.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from drangue_client.errors import DrangueError
from drangue_worker.bench.redis_log import RedisLog
from drangue_worker.bench.sql_log import PREFIX, Session, read_sessions

APPLICATION = "counting"
UNREPORTED_S = 10.5  # an idle session tells of its fsyncs at the latest after ten seconds
LOGGED = {
    "log_statement": "all",
    "log_parameter_max_length": "0",
    "log_line_prefix": PREFIX,
    "log_duration": "off",
    "log_min_duration_statement": "-1",
    "autovacuum": "off",  # its WAL would be anybody's
}
NOTEBOOK = """
create schema counting;
create unlogged table counting.commits (xid xid8 primary key, session int, application text, synchronous text);
create function counting.note() returns trigger language plpgsql as $$ begin
    insert into counting.commits
    select pg_current_xact_id(), pg_backend_pid(),
        current_setting('application_name'), current_setting('synchronous_commit')
    on conflict do nothing;
    return null;
end $$;
"""


@dataclass(frozen=True, slots=True)
class Tally:
    """What some processes did. `sql` is by statement, `redis` by command.

    `words` are BEGINs and their ends, which `sql` does not hold; what a function does inside the server is in neither.
    `commits` are transactions that ended well, also those that only read; of those that changed rows the `durable` ones
    waited for the disk. Not in `redis`: connecting, subscribing, health checks, and what Celery's workers tell each
    other by time.
    """

    sql: Mapping[str, int]
    words: int
    commits: int
    durable: int
    redis: Mapping[str, int]

    @property
    def statements(self) -> int:
        """SQL statements, without BEGIN, COMMIT and ROLLBACK."""
        return sum(self.sql.values())

    @property
    def commands(self) -> int:
        """Redis commands."""
        return sum(self.redis.values())

    def per(self, steps: int) -> dict[str, float]:
        """The numbers divided by a number of steps."""
        numbers = {
            "sql": self.statements,
            "commits": self.commits,
            "durable_commits": self.durable,
            "redis": self.commands,
        }
        return {name: round(number / steps, 3) for name, number in numbers.items()}


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted: by everybody (`all`), and of that by the process that counts (`client`) and by all others."""

    client: Tally
    others: Tally
    written: int
    """Transactions that were given an id: those that changed rows, durable or not, locked rows, or came to nothing."""
    wal_bytes: int
    fsyncs: int | None
    """Of the WAL; None where they were not asked for, or by a Postgres before 18."""

    @property
    def all(self) -> Tally:
        """Both together."""
        one, other = self.client, self.others
        return Tally(
            Counter(one.sql) + Counter(other.sql),
            one.words + other.words,
            one.commits + other.commits,
            one.durable + other.durable,
            Counter(one.redis) + Counter(other.redis),
        )

    def per(self, steps: int) -> dict[str, float | None]:
        """Everything divided by a number of steps."""
        return {
            **self.all.per(steps),
            "wal_bytes": round(self.wal_bytes / steps, 1),
            "fsyncs": None if self.fsyncs is None else round(self.fsyncs / steps, 3),
        }


@dataclass
class Counted:
    """What a `counting` block gives; `counts` is there when the block has ended."""

    _found: list[Counts] = field(default_factory=list)

    @property
    def counts(self) -> Counts:
        """The counts. RuntimeError inside of the block."""
        if not self._found:
            raise RuntimeError("read the counts after the block that counts has ended")
        return self._found[0]


@contextmanager
def counting(
    database_url: str, redis_url: str, *, fsyncs: bool = False, without: Collection[str] = ()
) -> Iterator[Counted]:
    """Count what everybody does in one database of Postgres and one of Redis while the block runs.

    Sessions whose application_name is in `without` are not counted: they only look. A session of this process that was
    opened and closed within the block is taken for somebody else's. With `fsyncs` it waits for what Postgres tells
    late: 10.5 s before and after the block. Raises DrangueError where this server's statements cannot be counted.
    """
    counted = Counted()
    with ExitStack() as exits:
        connection = exits.enter_context(psycopg.connect(database_url, autocommit=True, application_name=APPLICATION))
        log = log_of(connection.info.backend_pid)
        exits.callback(_forget, connection)
        _note_commits(connection)
        _set(connection, LOGGED)
        if fsyncs:
            time.sleep(UNREPORTED_S)
        place = log.stat().st_size
        before = _position(connection, fsyncs)
        with RedisLog(redis_url) as redis:
            ports = _ports()
            yield counted
            ports |= _ports()
            commands = redis.read()
        if fsyncs:
            time.sleep(UNREPORTED_S)
        after = _position(connection, fsyncs)
        with log.open("rb") as file:
            file.seek(place)
            said = file.read().decode(errors="replace")
        unseen = {APPLICATION, *without}
        sessions = read_sessions(said, connection.info.dbname)
        noted = connection.execute("select session, synchronous, application from counting.commits").fetchall()
        durable = Counter(pid for pid, synchronous, name in noted if synchronous != "off" and name not in unseen)
        mine = _sessions_at(connection, ports)
        seen = {pid: session for pid, session in sessions.items() if session.application not in unseen}
        counted._found.append(
            Counts(
                client=_tally(
                    [session for pid, session in seen.items() if pid in mine],
                    sum(count for pid, count in durable.items() if pid in mine),
                    {place: count for place, count in commands.items() if place[0] in ports},
                ),
                others=_tally(
                    [session for pid, session in seen.items() if pid not in mine],
                    sum(count for pid, count in durable.items() if pid not in mine),
                    {place: count for place, count in commands.items() if place[0] not in ports},
                ),
                written=after["xid"] - before["xid"],
                wal_bytes=after["wal"] - before["wal"],
                fsyncs=after["fsyncs"] - before["fsyncs"] if fsyncs and before["fsyncs"] is not None else None,
            )
        )


def _tally(sessions: list[Session], durable: int, commands: Mapping[tuple[int, str], int]) -> Tally:
    redis: Counter[str] = Counter()
    for (_, name), count in commands.items():
        redis[name] += count
    return Tally(
        dict(sum((session.texts for session in sessions), Counter[str]()).most_common()),
        sum(session.words for session in sessions),
        sum(session.commits for session in sessions),
        durable,
        dict(redis.most_common()),
    )


def _ports() -> set[int]:
    """The ports that this process's connections have on its side."""
    return {one.laddr.port for one in psutil.Process().net_connections("tcp") if one.raddr}


def _sessions_at(connection: psycopg.Connection, ports: Collection[int]) -> set[int]:
    query = "select pid from pg_stat_activity where client_port = any(%s)"
    return {pid for (pid,) in connection.execute(query, (list(ports),)).fetchall()}


def log_of(session: int) -> Path:
    """The file that a session of a server writes its log to: what its process's standard error is. DrangueError."""
    try:
        log = Path(os.readlink(f"/proc/{session}/fd/2"))
    except OSError:
        log = Path()
    if not log.is_file():
        raise DrangueError(
            "the statements of this Postgres cannot be counted: it is not on this machine, or its log is not a file. "
            "Count on an embedded one (drangue_worker.embedded.Servers)."
        )
    return log


def _note_commits(connection: psycopg.Connection) -> None:
    """Have every commit that changed a row leave a note, with the settings that it was committed with."""
    connection.execute("drop schema if exists counting cascade")  # of a count that was killed
    connection.execute(NOTEBOOK)
    tables = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
    for (table,) in tables:
        # Deferred, so that it sees the settings of the commit itself, whenever they were made.
        connection.execute(
            sql.SQL(
                "create constraint trigger counting_note after insert or update or delete on public.{} "
                "deferrable initially deferred for each row execute function counting.note()"
            ).format(sql.Identifier(table))
        )


def _forget(connection: psycopg.Connection) -> None:
    connection.execute("drop schema if exists counting cascade")  # the triggers go with their function
    _set(connection, dict.fromkeys(LOGGED))


def _set(connection: psycopg.Connection, values: Mapping[str, str | None]) -> None:
    """Change the server's settings and wait until sessions know; None takes a change back."""
    for name, value in values.items():
        if value is None:
            connection.execute(sql.SQL("alter system reset {}").format(sql.Identifier(name)))
        else:
            connection.execute(sql.SQL("alter system set {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    connection.execute("select pg_reload_conf()")
    wanted = "none" if values["log_statement"] is None else values["log_statement"]
    deadline = time.monotonic() + 10
    while _value(connection, "show log_statement") != wanted:
        if time.monotonic() > deadline:
            raise DrangueError("Postgres did not take its new settings within 10 s; its log says why.")
        time.sleep(0.01)
    time.sleep(0.05)  # it tells its sessions one after the other; each looks before its next statement


def _position(connection: psycopg.Connection, fsyncs: bool) -> dict[str, Any]:
    known = _value(connection, "select current_setting('server_version_num')::int >= 180000")
    return {
        "wal": _value(connection, "select (pg_current_wal_insert_lsn() - '0/0')::bigint"),
        "xid": _value(connection, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint"),
        "fsyncs": _value(connection, "select sum(fsyncs)::bigint from pg_stat_io where object = 'wal'")
        if fsyncs and known
        else None,
    }


def _value(connection: psycopg.Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None
