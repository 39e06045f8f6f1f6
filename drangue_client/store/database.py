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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, OperationalError, TimeoutError
from sqlalchemy.pool import StaticPool
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from drangue_client.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from drangue_client.store.driver import Use, Waiting

T = TypeVar("T")

SQLITE_BUSY_S = 5.0
OUTDATED = ("42P01", "42703")  # an undefined table, an undefined column
STALE_PLAN = "0A000"  # "cached plan must not change result type"; the driver has forgotten the statement by then
READ_ONLY = "25006"  # a former primary, after a failover

HASTY = "select set_config('synchronous_commit', 'off', true)"  # until the transaction ends, not waiting for the disk


@dataclass(slots=True)
class _File:
    """The one connection to a SQLite file, and whether its commits wait for the disk."""

    raw: sqlite3.Connection
    waits: bool = True


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
        self._files: dict[int, _File] = {}  # by process: on SQLite
        self._sqlite_turn = threading.RLock()
        self._waiting: Waiting | None = None
        weakref.finalize(self, _dispose, self._engines)

    def run(self, work: Callable[[Connection], T], *, durable: bool = True) -> T:
        """Do `work` in one transaction and return what it returns.

        With `durable=False` the commit does not wait for the disk: it can be lost when the database server crashes, and
        only then. Raises DatabaseUnavailable.
        """
        with self.errors():
            return _twice(lambda: self._once(work, durable))

    def alone(self, statement: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run one statement of Postgres' own, which is a transaction by itself: one round trip in all, past everything
        of SQLAlchemy but its pool. It waits for the disk unless it says otherwise, as HASTY does. Raises
        DatabaseUnavailable, and of SQLAlchemy's errors those that its connections raise."""
        engine = self.engine("alone")
        driver: Any = engine.dialect.loaded_dbapi

        def once() -> list[tuple[Any, ...]]:
            pooled: Any = None
            connection: Any = None
            try:
                self._check_idle(engine)
                pooled = engine.raw_connection()
                connection = pooled.driver_connection
                rows: list[tuple[Any, ...]] = connection.execute(statement, values).fetchall()
            except driver.Error as error:
                broken = engine.dialect.is_disconnect(error, connection, None)
                if broken and pooled:
                    pooled.invalidate()
                    engine.dispose()  # the others that wait in the pool have died with it
                raise DBAPIError.instance(statement, None, error, driver.Error, True, broken, engine.dialect) from error
            except BaseException:  # a time limit, say, that came between a question and its answer
                if pooled:
                    pooled.invalidate()
                raise
            finally:
                if pooled:
                    pooled.close()
            return rows

        with self.errors():
            return _twice(once)

    def file(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = True, reads: bool = False) -> T:
        """`run` for work that speaks to SQLite's own driver, at a tenth of what a statement costs otherwise. What
        `reads` alone waits for no writer. Raises DatabaseUnavailable, and the driver's own errors for the rest."""
        with self._sqlite_turn:
            try:
                raw = self._file(durable or reads).raw
                raw.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
                try:
                    answer = work(raw)
                    raw.execute("COMMIT")
                    return answer
                finally:
                    if raw.in_transaction:
                        raw.execute("ROLLBACK")
            except (sqlite3.OperationalError, sqlite3.InterfaceError) as error:
                raise DatabaseUnavailable(self._unreachable(error)) from error
            except sqlite3.DatabaseError as error:
                if _is_no_database(error):
                    raise DatabaseUnavailable(self._unreachable(error)) from error
                raise

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

    def wait_by(self, waiting: Waiting) -> None:
        """Let connections to Postgres be waited for in another way, those that are made from here on."""
        self._waiting = waiting

    @property
    def idle(self) -> bool:
        """Whether Postgres can be asked without a connection being made."""
        engine: Any = self._engines.get((os.getpid(), "alone"))
        return engine is not None and engine.pool.checkedin() > 0

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones (an in-memory database is gone then)."""
        for key in [key for key in list(self._engines) if key[0] == os.getpid()]:
            self._engines.pop(key).dispose()
        self._files.pop(os.getpid(), None)

    @property
    def where(self) -> str:
        """The address without credentials, for messages."""
        if not self.postgres:
            return self.url.database or "memory"
        return f"{self.url.host or self.url.query.get('host', 'local socket')}:{self.url.port or 5432}"

    def _once(self, work: Callable[[Connection], T], durable: bool) -> T:
        if self.postgres:
            engine = self.engine("durable" if durable or self.pooled else "hasty")
            self._check_idle(engine)
            with engine.begin() as connection:
                if self.pooled and not durable:
                    connection.exec_driver_sql(HASTY)
                return work(connection)
        with self._sqlite_turn:
            self._file(durable)
            with self.engine().begin() as connection:
                return work(connection)

    def _check_idle(self, engine: Engine) -> None:
        """Raise DatabaseUnavailable where the driver's own way to wait for a connection is not to be gone."""
        pool: Any = engine.pool
        if self._waiting is not None and self._waiting.inside() and pool.checkedin() == 0:
            raise DatabaseUnavailable("no connection is idle")

    def _file(self, durable: bool) -> _File:
        """This process's connection to the file, set to wait for the disk or not to. A commit that waits takes along
        what was written before it: the file's log is one, and is flushed whole."""
        one = self._files.get(os.getpid())
        if one is None:
            with self.errors(), self.engine().connect():  # noted where it is made
                one = self._files[os.getpid()]
        if one.waits != durable:
            one.raw.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            one.waits = durable
        return one

    def _make_postgres(self, use: Use) -> Engine:
        from drangue_client.store.driver import make_engine  # which loads the driver

        return make_engine(self.url, use, self._pool_size, self.pooled, self._waiting)

    def _make_sqlite(self) -> Engine:
        engine = create_engine(
            self.url, poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": SQLITE_BUSY_S}
        )

        files = self._files  # itself is not held: an engine would keep it, and it the engine, for ever

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
            files[os.getpid()] = _File(connection)

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    def _unreachable(self, error: DBAPIError | sqlite3.Error) -> str:
        cause = error.orig if isinstance(error, DBAPIError) else error
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        if not self.postgres:
            return f"the SQLite file {self.where} cannot be used: {reason}. Check that it is readable and not locked."
        return f"Postgres at {self.where} cannot be reached: {reason}. Start it, or correct DRANGUE_DATABASE_URL."


def _twice(work: Callable[[], T]) -> T:
    """Do a transaction, and once more where it met a connection that was broken before it, or a statement that was
    prepared before a migration."""
    try:
        return work()
    except DBAPIError as error:
        if not (error.connection_invalidated or getattr(error.orig, "sqlstate", None) == STALE_PLAN):
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
