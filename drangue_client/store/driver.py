"""The driver of Postgres: what its connections are told, and how they are waited for.

A program that has an event loop may wait in a way of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal, Protocol, TypeVar

import psycopg
from sqlalchemy import URL, Engine, create_engine, event

T = TypeVar("T")
Use = Literal["durable", "hasty", "alone"]

POSTGRES_CONNECT_ARGS: dict[str, Any] = {
    "connect_timeout": 5,
    "application_name": "drangue",
    # A half-open link must not hold a worker for the two hours that an operating system waits by default.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
# What a session of each use is told. Statements alone ask by keys: a plan from when the tables were small must not read
# them whole later, and making another one each time would cost more than the statement.
SESSION: dict[Use, tuple[str, ...]] = {
    "hasty": ("synchronous_commit=off",),
    "alone": ("enable_seqscan=off", "plan_cache_mode=force_generic_plan"),
}


class Waiting(Protocol):
    """Another way to wait: `wait` goes through what the driver does, on a socket, where it is `inside`."""

    def inside(self) -> bool: ...
    def wait(self, steps: Generator[Any, Any, T], socket: int) -> T: ...


def make_engine(url: URL, use: Use, pool_size: int, pooled: bool, waiting: Waiting | None) -> Engine:
    """An engine for one use; `pooled` leaves nothing to a session. With `waiting` its connections may be waited for in
    that way, and where that is, none is made: nobody knows how long that takes, and the driver waits in its own way."""
    arguments = dict(POSTGRES_CONNECT_ARGS)
    if pooled:
        arguments["prepare_threshold"] = None
    if use in SESSION and not pooled:
        own = url.query.get("options", "")
        told = " ".join(f"-c {one}" for one in SESSION[use])
        arguments["options"] = f"{own if isinstance(own, str) else ' '.join(own)} {told}".strip()
    engine = create_engine(
        url,
        hide_parameters=True,
        connect_args=arguments,
        isolation_level="AUTOCOMMIT" if use == "alone" else "READ COMMITTED",
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=30,
        # A statement alone leaves no transaction behind that would have to be ended.
        pool_reset_on_return=None if use == "alone" else "rollback",
    )
    if waiting is not None:
        _wait_by(engine, waiting)
    return engine


def _wait_by(engine: Engine, waiting: Waiting) -> None:
    class Connection(psycopg.Connection[Any]):
        def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            if waiting.inside() and options.get("timeout") is None:
                return waiting.wait(gen, self.pgconn.socket)
            return super().wait(gen, *args, **options)

    @event.listens_for(engine, "do_connect")
    def _connect(dialect: Any, record: Any, args: Any, options: Any) -> Any:
        if waiting.inside():
            raise psycopg.OperationalError("no connection is idle")
        return Connection.connect(*args, **options)
