"""Submitting: a run's row, by which everything begins."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, case, literal
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from drangue_client.events import normalise
from drangue_client.store.reading import row_of, run_row
from drangue_client.store.tables import now, runs
from drangue_client.store.values import NewRun, RunRow


def submit_run(c: Connection, run: NewRun) -> tuple[RunRow, bool]:
    """Record a run; True where it is new. An existing one is returned as it is."""
    make = postgres_insert if c.dialect.name == "postgresql" else sqlite_insert
    inserted = c.execute(
        make(runs)
        .values(
            run_id=run.run_id,
            agent=run.agent,
            status="queued",
            executor=run.executor,
            priority=run.priority,
            labels=normalise(run.labels),
            input=normalise(run.input),
            overrides=normalise(run.overrides),
            head_seq=-1,
            state_seq=-1,
            wake_at=now(run.wake_in_s) if run.not_before is None else _later(run.not_before, now(run.wake_in_s)),
            created_at=now(),
            updated_at=now(),
        )
        .on_conflict_do_nothing()
        .returning(*runs.c)
    )
    row = inserted.mappings().first()
    return (run_row(row), True) if row else (run_row(row_of(c, run.run_id)), False)


def _later(moment: float, other: now) -> ColumnElement[float]:
    """The later of a moment, in epoch seconds, and another."""
    at = literal(moment, other.type)
    return case((at > other, at), else_=other)
