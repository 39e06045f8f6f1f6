"""Riding on a transaction of the caller's: the log's own statements on a connection that somebody else commits.

The invariant: nothing here begins, commits, rolls back or closes anything. What is written is there if and only if the
caller commits, and until then a run that was written to is locked for everybody else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from drangue_client import checks
from drangue_client.store.database import Database
from drangue_client.store.log import SqlLog
from drangue_client.store.values import Move, Moved, NewRun, RunRow

T = TypeVar("T")

BEGIN = "Begin one: with connection.transaction(), or Django's transaction.atomic()."
TO_THE_CALLER = ("40", "55", "57014")  # conflicts, locks and timeouts of its own transaction: it knows what to do
WHAT = "a SQLAlchemy Connection or Session, a psycopg Connection, or Django's connection"


class RidingLog(SqlLog):
    """A log whose every call is a part of the transaction that `connection` is in. Raises TypeError for what is none.

    Nobody can be sent a message before the commit, so what is written asks to be found by the next sweep.
    """

    def __init__(self, connection: Any) -> None:
        self.db = _Ridden(_sqlalchemy_connection(connection))

    def submit(self, new: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
        return super().submit([replace(run, wake_in_s=0.0) for run in new])

    def settle(self, moves: Sequence[Move]) -> list[Moved]:
        return super().settle([move if move.wake_in_s is None else replace(move, wake_in_s=0.0) for move in moves])


class _Ridden(Database):
    """A database of one connection, in a transaction of somebody else's."""

    def __init__(self, connection: Connection) -> None:
        self.url = connection.engine.url
        self.postgres = connection.dialect.name == "postgresql"
        self._connection = connection

    def run(self, work: Callable[[Connection], T], *, durable: bool = True) -> T:
        """Do `work` as a part of the transaction. Not repeated: what failed in a transaction has ended it."""
        try:
            return work(self._connection)
        except DBAPIError as error:
            state = str(getattr(error.orig, "sqlstate", None))
            if state.startswith(TO_THE_CALLER):
                raise
            with self.errors():
                raise

    def close(self) -> None:
        """The connection is the caller's."""


def _sqlalchemy_connection(given: Any) -> Connection:
    if isinstance(given, Connection):
        if getattr(given.connection.dbapi_connection, "autocommit", False):
            raise ValueError(checks.refusal("connection", given, "in a transaction", BEGIN))
        return given
    if isinstance(given, psycopg.Connection):
        return _around(given)
    orm = sys.modules.get("sqlalchemy.orm")  # whoever has a session has loaded it
    if orm is not None and isinstance(given, (orm.Session, orm.scoped_session)):
        connection: Connection = given.connection()
        return connection
    if callable(getattr(given, "ensure_connection", None)):  # Django's
        given.ensure_connection()
        return _sqlalchemy_connection(given.connection)
    raise TypeError(checks.refusal("connection", given, WHAT))


def _around(raw: psycopg.Connection[Any]) -> Connection:
    """A SQLAlchemy connection that speaks through a psycopg connection without taking it over."""
    if raw.autocommit and raw.info.transaction_status == pq.TransactionStatus.IDLE:
        raise ValueError(checks.refusal("connection", raw, "in a transaction", BEGIN))
    dialect: Any = PGDialect_psycopg(dbapi=psycopg, use_native_hstore=False)  # type: ignore[no-untyped-call]
    lent: Any = _Lent(raw)
    pool = StaticPool(lambda: lent, reset_on_return=None)
    return Engine(pool, dialect, make_url("postgresql+psycopg://")).connect()


class _Lent:
    """A driver's connection in somebody else's hands: statements pass, the transaction and its end do not."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self._raw = raw

    def cursor(self) -> psycopg.Cursor[Any]:
        """A cursor that reads as ours do, however the caller has set up the connection (Django reads JSON as text)."""
        cursor = psycopg.Cursor(self._raw, row_factory=tuple_row)
        for name in ("json", "jsonb", "timestamptz"):
            oid = psycopg.postgres.types[name].oid
            loader = psycopg.adapters.get_loader(oid, pq.Format.TEXT)
            assert loader is not None
            cursor.adapters.register_loader(oid, loader)
        return cursor

    def commit(self) -> None:
        """The caller's."""

    def rollback(self) -> None:
        """The caller's."""

    def close(self) -> None:
        """The caller's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)
