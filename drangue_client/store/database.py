"""Connections: one set of engines per process, transactions that say whether they wait for the disk, errors translated.

Engines are made on first use and per process id, so nothing is inherited through a fork. A transaction that met a
broken connection is repeated once on a fresh one; every operation of the Log may be repeated. The only place that knows
a driver's exceptions.

Behind a pooler that hands a connection on after each transaction (PgBouncer's transaction mode) nothing may be left to
a session: an address with `pooler=transaction` prepares no statements and sets what it sets for one transaction.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from sqlalchemy import URL, Connection, Engine, Row, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, OperationalError, TimeoutError
from sqlalchemy.pool import StaticPool
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from drangue_client.errors import DatabaseUnavailable

T = TypeVar("T")
Use = Literal["durable", "hasty", "alone"]

SQLITE_BUSY_S = 5.0
OUTDATED = ("42P01", "42703")  # an undefined table, an undefined column
READ_ONLY = "25006"  # a former primary, after a failover

POSTGRES_CONNECT_ARGS: dict[str, Any] = {
    "connect_timeout": 5,
    "application_name": "drangue",
    # A half-open link must not hold a worker for the two hours that an operating system waits by default.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


HASTY = "select set_config('synchronous_commit', 'off', true)"  # until the transaction ends, not waiting for the disk


class Database:
    """Where the tables are. `url` is a Postgres URL or `sqlite://` (memory) or `sqlite:///path`."""

    def __init__(self, url: str | URL, pool_size: int = 5) -> None:
        self.url = make_url(url)
        if self.url.drivername in ("postgres", "postgresql"):
            self.url = self.url.set(drivername="postgresql+psycopg")
        self.postgres = self.url.get_backend_name() == "postgresql"
        self.pooled = self.postgres and self.url.query.get("pooler") == "transaction"
        if self.pooled:
            self.url = self.url.difference_update_query(["pooler"])
        self._pool_size = pool_size
        self._engines: dict[
            tuple[int, str], Engine
        ] = {}  # a forked child keeps its parent's, unused: never closed here
        self._sqlite_turn = threading.RLock()
        weakref.finalize(self, _dispose, self._engines)

    def run(self, work: Callable[[Connection], T], *, durable: bool = True) -> T:
        """Do `work` in one transaction and return what it returns.

        With `durable=False` the commit does not wait for the disk: it can be lost when the database server crashes, and
        only then. Raises DatabaseUnavailable.
        """
        with self.errors():
            return _twice(lambda: self._once(work, durable))

    def alone(self, statement: str, values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """Run one statement of Postgres' own, which is a transaction by itself: one round trip in all. It waits for
        the disk unless it holds HASTY. Raises DatabaseUnavailable."""

        def once() -> Sequence[Row[Any]]:
            with self.engine("alone").connect() as connection:
                return connection.exec_driver_sql(statement, dict(values)).all()

        with self.errors():
            return _twice(once)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise DatabaseUnavailable for what a driver or a pool raises because there is no database to work with."""
        try:
            yield
        except (OperationalError, InterfaceError) as error:
            raise DatabaseUnavailable(self._unreachable(error)) from error
        except TimeoutError as error:
            raise DatabaseUnavailable(
                f"every connection to {self.where} is in use. Try again; it was not sent."
            ) from error
        except DatabaseError as error:
            state = getattr(error.orig, "sqlstate", None)
            if state in OUTDATED:
                raise DatabaseUnavailable(
                    f"the database at {self.where} holds no drangue tables, or older ones. Run `drangue migrate`."
                ) from error
            if state == READ_ONLY or _is_no_database(error.orig):
                raise DatabaseUnavailable(self._unreachable(error)) from error
            raise

    def engine(self, use: Use = "durable") -> Engine:
        """This process's engine: for transactions that wait for the disk, for those that do not, or for statements that
        are transactions by themselves. On SQLite there is one for all."""
        key = (os.getpid(), use if self.postgres else "durable")
        engine = self._engines.get(key)
        if engine is None:
            # No lock: one that is held while the process forks stays locked in the child. Of two engines made at once,
            # neither connected yet, one is kept.
            engine = self._engines.setdefault(key, self._make_postgres(use) if self.postgres else self._make_sqlite())
        return engine

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones (an in-memory database is gone then)."""
        for key in [key for key in list(self._engines) if key[0] == os.getpid()]:
            self._engines.pop(key).dispose()

    @property
    def where(self) -> str:
        """The address without credentials, for messages."""
        if not self.postgres:
            return self.url.database or "memory"
        return f"{self.url.host or self.url.query.get('host', 'local socket')}:{self.url.port or 5432}"

    def _once(self, work: Callable[[Connection], T], durable: bool) -> T:
        if self.postgres:
            with self.engine("durable" if durable or self.pooled else "hasty").begin() as connection:
                if self.pooled and not durable:
                    connection.exec_driver_sql(HASTY)
                return work(connection)
        with self._sqlite_turn, self.engine().begin() as connection:
            return work(connection)

    def _make_postgres(self, use: Use) -> Engine:
        arguments = dict(POSTGRES_CONNECT_ARGS)
        if self.pooled:
            arguments["prepare_threshold"] = None
        if use == "hasty":
            own = self.url.query.get("options", "")
            arguments["options"] = f"{own if isinstance(own, str) else ' '.join(own)} -c synchronous_commit=off".strip()
        return create_engine(
            self.url,
            hide_parameters=True,
            connect_args=arguments,
            isolation_level="AUTOCOMMIT" if use == "alone" else "READ COMMITTED",
            pool_size=self._pool_size,
            max_overflow=self._pool_size,
            pool_timeout=30,
        )

    def _make_sqlite(self) -> Engine:
        engine = create_engine(
            self.url, poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": SQLITE_BUSY_S}
        )

        @event.listens_for(engine, "connect")
        def _connected(connection: sqlite3.Connection, _record: Any) -> None:
            connection.isolation_level = None  # the driver's own BEGIN comes too late to take the write lock
            for attempt in Retrying(
                retry=retry_if_exception_type(sqlite3.OperationalError),  # changing the mode does not wait its turn
                stop=stop_after_delay(SQLITE_BUSY_S),
                wait=wait_random(0, 0.02),
                reraise=True,
            ):
                with attempt:
                    connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    def _unreachable(self, error: DBAPIError) -> str:
        reason = next(iter(str(error.orig).strip().splitlines()), type(error.orig).__name__)
        if not self.postgres:
            return f"the SQLite file {self.where} cannot be used: {reason}. Check that it is readable and not locked."
        return f"Postgres at {self.where} cannot be reached: {reason}. Start it, or correct DRANGUE_DATABASE_URL."


def _twice(work: Callable[[], T]) -> T:
    """Do a transaction, and once more where it met a connection that was broken before it."""
    try:
        return work()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        return work()


def _dispose(engines: dict[tuple[int, str], Engine]) -> None:
    """Close what this process opened for a Database that nobody holds any more."""
    for (pid, _), engine in engines.items():
        if pid == os.getpid():
            engine.dispose()


def _is_no_database(error: BaseException | None) -> bool:
    """Whether what the address names cannot be opened at all: another kind of file, an option that does not exist."""
    text = str(error)
    return (
        isinstance(error, sqlite3.DatabaseError) and "not a database" in text
    ) or "invalid connection option" in text
