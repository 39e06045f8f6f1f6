"""The four tables, declared once for Postgres and SQLite, and the two words of SQL on which the databases differ.

`events` is the truth. `runs.status` and `runs.state` are projections written in the same transaction. `steps` holds
only open work. Times are epoch seconds in Python and come from the database's clock alone.

Every index costs every step something: each is there for a statement (`tests/long` knows which). None is on what each
move of a run changes, or each renewal of a lease: then Postgres writes the row alone. A statement that is to use a
partial index names its condition in so many words, since of a parameter no planner knows that it implies it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    literal,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeDecorator, TypeEngine

metadata = MetaData()


class Instant(TypeDecorator[float]):
    """Epoch seconds in Python; `timestamptz` on Postgres, a REAL on SQLite."""

    impl = Float
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(TIMESTAMP(timezone=True) if dialect.name == "postgresql" else Float())

    def process_bind_param(self, value: float | None, dialect: Dialect) -> Any:
        if value is None or dialect.name != "postgresql":
            return value
        return datetime.fromtimestamp(value, UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:
        return value.timestamp() if isinstance(value, datetime) else value


class now(ColumnElement[float]):
    """The database's clock, `seconds` from now: fixed within a Postgres transaction."""

    type = Instant()
    inherit_cache = True
    _traverse_internals = [("seconds", InternalTraversal.dp_clauseelement)]  # noqa: RUF012 - SQLAlchemy's own shape

    def __init__(self, seconds: float | ColumnElement[Any] | None = None) -> None:
        # As an expression, so that statements which differ only in the number are compiled once.
        self.seconds = literal(float(seconds), Float) if isinstance(seconds, int | float) else seconds


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    if element.seconds is None:
        return "now()"
    return f"(now() + make_interval(secs => {compiler.process(element.seconds, **kw)}))"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    clock = "((julianday('now') - 2440587.5) * 86400.0)"
    return f"({clock} + {compiler.process(element.seconds, **kw)})" if element.seconds is not None else clock


class bytewise(ColumnElement[str]):
    """A column's text compared by its bytes, whatever the server speaks: what begins alike is a range of an index."""

    type = String()
    inherit_cache = True
    _traverse_internals = [("column", InternalTraversal.dp_clauseelement)]  # noqa: RUF012 - SQLAlchemy's own shape

    def __init__(self, column: ColumnElement[Any]) -> None:
        self.column = column


@compiles(bytewise, "postgresql")
def _bytewise_postgresql(element: bytewise, compiler: SQLCompiler, **kw: Any) -> str:
    return f'({compiler.process(element.column, **kw)} collate "C")'


@compiles(bytewise, "sqlite")
def _bytewise_sqlite(element: bytewise, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.column, **kw)


# Snapshots and payloads are written and read whole, so `json`: it keeps the text as given. Only labels are searched.
runs = Table(
    "runs",
    metadata,
    Column("run_id", String(200), primary_key=True),
    Column("agent", String(200), nullable=False),
    Column("status", String(12), nullable=False),
    Column("executor", String(12), nullable=False),
    Column("queue", String(200)),
    Column("priority", SmallInteger, nullable=False),
    Column("labels", JSON().with_variant(JSONB(), "postgresql"), nullable=False),
    Column("input", Text, nullable=False),
    Column("overrides", JSON, nullable=False),
    Column("terms", JSON),
    Column("head_seq", Integer, nullable=False),
    Column("state", JSON),
    Column("state_seq", Integer, nullable=False),
    Column("wake_at", Instant),
    Column("deadline_at", Instant),
    Column("error", Text),
    Column("unknown", Integer, nullable=False, server_default=text("0")),
    Column("asked", Integer, nullable=False, server_default=text("0")),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Index("ix_runs_wake_at", "wake_at", postgresql_where=text("wake_at is not null")),
    Index("ix_runs_status_created_at", "status", "created_at"),
    Index("ix_runs_created_at", "created_at"),
    Index("ix_runs_unknown", "created_at", postgresql_where=text("unknown > 0")),
    Index("ix_runs_asked", "created_at", postgresql_where=text("asked > 0")),
    # What may be forgotten, the oldest first.
    Index("ix_runs_finished_at", "finished_at", postgresql_where=text("finished_at is not null")).ddl_if(
        dialect="postgresql"
    ),
    # A row is written anew with every step, beside its old one if there is room. Most rows are of runs that have ended
    # and never change again: the default, a fifth of them dead, would come too late.
    postgresql_with={
        "fillfactor": 50,
        "autovacuum_vacuum_scale_factor": 0.02,
        "autovacuum_vacuum_threshold": 2000,
        "autovacuum_analyze_scale_factor": 0.02,
    },
)

events = Table(
    "events",
    metadata,
    Column("run_id", String(200), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("type", String(30), nullable=False),
    Column("step", Integer),
    Column("format", SmallInteger, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("ts", Instant, nullable=False),
    Column("duration_ms", Float),
    Column("recorded_at", Instant, nullable=False),
    # For whoever asks what was recorded lately, of all runs: a BRIN costs an append next to nothing.
    Index(
        "ix_events_recorded_at", "recorded_at", postgresql_using="brin", postgresql_with={"autosummarize": True}
    ).ddl_if(dialect="postgresql"),
    # Logical identity: a second result of a step, or a second beginning of an attempt, cannot be written at all.
    Index(
        "ux_events_once",
        "run_id",
        "step",
        "type",
        unique=True,
        postgresql_where=text("type in ('model_decision', 'tool_result')"),
        sqlite_where=text("type in ('model_decision', 'tool_result')"),
    ),
    Index(
        "ux_events_attempt",
        "run_id",
        "step",
        text("(payload ->> 'attempt')"),
        unique=True,
        postgresql_where=text("type = 'step_started'"),
        sqlite_where=text("type = 'step_started'"),
    ),
    # Nothing is ever updated: a vacuum only marks what is old as such, better often a little than once everything.
    postgresql_with={
        "autovacuum_vacuum_insert_scale_factor": 0.05,
        "autovacuum_analyze_scale_factor": 0.02,
    },
)

steps = Table(
    "steps",
    metadata,
    Column("run_id", String(200), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("kind", String(12), nullable=False),
    Column("name", String(200)),
    Column("queue", String(200)),
    Column("priority", SmallInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("category", String(40)),
    Column("claim", String(32)),
    Column("worker", String(200)),
    Column("lease_until", Instant),
    Column("kill_at", Instant),
    Column("available_at", Instant, nullable=False),
    Column("sent_at", Instant, nullable=False),
    Column("sends", Integer, nullable=False),
    Column("outcome", JSON),
    Column("tries", JSON),
    Column("lost", Integer, nullable=False, server_default=text("0")),
    Column("on_cancel", String(12)),
    # Whose backoff is over: nothing else is sent before it may be claimed. A claim does not touch it.
    Index("ix_steps_due", "available_at", postgresql_where=text("sent_at < available_at")).ddl_if(dialect="postgresql"),
    # What is sent and waits in a queue, the longest first.
    Index(
        "ix_steps_waiting", "queue", "sent_at", postgresql_where=text("claim is null and sent_at >= available_at")
    ).ddl_if(dialect="postgresql"),
    # What is or was at a worker: a sweep must not read a backlog to find the few steps that somebody holds. By bytes a
    # worker and its children lie together.
    Index("ix_steps_attempted", text('worker COLLATE "C"'), "sent_at", postgresql_where=text("attempt > 0")).ddl_if(
        dialect="postgresql"
    ),
    # Room for each row's claimed version beside it. Every row is soon deleted, so the table is vacuumed by number; it
    # fills again: giving its end back to the disk would only lock it.
    postgresql_with={
        "fillfactor": 40,
        "autovacuum_vacuum_scale_factor": 0,
        "autovacuum_vacuum_threshold": 2000,
        "autovacuum_vacuum_cost_delay": 0,
        "autovacuum_analyze_scale_factor": 0,
        "autovacuum_analyze_threshold": 10000,
        "vacuum_truncate": "off",
    },
)

agents = Table(
    "agents",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("summary", JSON, nullable=False),
    Column("seen_at", Instant, nullable=False),
)
