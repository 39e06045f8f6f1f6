"""What a sweep asks of the log: which runs and steps stopped moving.

Marking comes before sending, in a transaction of its own: a message must never find its step locked by the sweep that
sent it. Rows somebody else has locked are skipped, so any number of sweepers share the work without a leader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    Connection,
    Float,
    RowMapping,
    and_,
    case,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from drangue_client.run import ENDED, OVER
from drangue_client.store.database import Database
from drangue_client.store.reading import held_step, held_steps, run_row, step_ref, worth_keeping
from drangue_client.store.tables import now, runs, steps
from drangue_client.store.values import Held, QueueState, RunRow, StepRef

DOUBLINGS = 2  # patience with a step nobody claims grows up to 4 times


class Sweeping:
    """The sweep's part of SqlLog."""

    db: Database

    def wake(self, patience_s: float, limit: int = 100) -> list[RunRow]:
        due = (
            select(runs.c.run_id)
            .where(runs.c.wake_at <= now(), runs.c.executor == "celery", runs.c.status.not_in(ENDED))
            .order_by(runs.c.wake_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )

        once = due.cte("due").prefix_with("MATERIALIZED")  # a plain subquery might be run again for every row
        moved = (
            update(runs)
            .where(runs.c.run_id.in_(select(once.c.run_id)))
            .values(wake_at=now(patience_s))
            .returning(*runs.c)
        )

        def work(c: Connection) -> list[RunRow]:
            return [run_row(row) for row in c.execute(moved).mappings()]

        return self.db.run(work, durable=False)

    def left_behind(self, limit: int = 100) -> list[Held]:
        query = (
            held_steps()
            .where(
                or_(steps.c.claim.is_(None), steps.c.lease_until < now()),
                runs.c.status.in_(OVER),
                runs.c.executor == "celery",
            )
            .order_by(steps.c.run_id, steps.c.step)
            .limit(limit)
        )
        over = select(runs.c.run_id).where(runs.c.run_id == steps.c.run_id, runs.c.status.in_(OVER)).exists()

        def work(c: Connection) -> list[Held]:
            c.execute(delete(steps).where(steps.c.claim.is_(None), ~worth_keeping(), over))  # given back since
            return [held_step(row) for row in c.execute(query).mappings()]

        return self.db.run(work, durable=False)

    def recover(self, patience_s: float, limit: int = 100) -> list[StepRef]:
        lapsed = and_(
            steps.c.claim.is_not(None),
            steps.c.lease_until < now(),
            or_(steps.c.sent_at < steps.c.lease_until, _doubted(patience_s)),
        )
        due = and_(steps.c.claim.is_(None), steps.c.available_at <= now(), steps.c.sent_at < steps.c.available_at)

        def work(c: Connection) -> list[StepRef]:
            found = c.execute(_of_fleet(or_(lapsed, due)).limit(limit)).mappings().all()
            _mark(c, [(row["run_id"], row["step"]) for row in found], sent_at=now(), sends=steps.c.sends + 1)
            return [
                StepRef(**{**_fields(row), "urgent": row["claim"] is not None, "sends": row["sends"] + 1})
                for row in found
            ]

        return self.db.run(work, durable=False)

    def _queues(self, patience_s: float, limit: int) -> list[QueueState]:
        waiting = and_(steps.c.claim.is_(None), steps.c.available_at <= now(), steps.c.sent_at >= steps.c.available_at)
        place = func.row_number().over(partition_by=steps.c.queue, order_by=steps.c.sent_at).label("place")
        ranked = (
            select(steps, place)
            .join(runs, runs.c.run_id == steps.c.run_id)
            .where(waiting, _doubted(patience_s), steps.c.queue.is_not(None), runs.c.status.not_in(ENDED))
            .subquery()
        )
        # The oldest of each queue: one queue's backlog must not hide another's lost step.
        doubtful = select(ranked).where(ranked.c.place <= limit).order_by(ranked.c.sent_at)
        unclaimed = (
            select(steps.c.queue, func.count())
            .join(runs, runs.c.run_id == steps.c.run_id)
            .where(steps.c.claim.is_(None), steps.c.available_at <= now(), runs.c.status.not_in(ENDED))
            .group_by(steps.c.queue)
        )

        def work(c: Connection) -> list[QueueState]:
            found = [step_ref(row) for row in c.execute(doubtful).mappings()]
            if not found:  # the healthy case costs one statement
                return []
            counts: dict[Any, int] = {row[0]: row[1] for row in c.execute(unclaimed)}
            by_queue: dict[str, list[StepRef]] = {}
            for ref in found:
                assert ref.queue is not None
                by_queue.setdefault(ref.queue, []).append(ref)
            return [QueueState(queue, counts.get(queue, 0), tuple(refs)) for queue, refs in by_queue.items()]

        return self.db.run(work, durable=False)

    def mark_sent(self, refs: Sequence[StepRef]) -> list[StepRef]:
        if not refs:
            return []
        known = {(ref.run_id, ref.step, ref.sends): ref for ref in refs}
        free = (  # what somebody has locked is being worked on, or marked by another sweep
            select(steps.c.run_id, steps.c.step)
            .where(tuple_(steps.c.run_id, steps.c.step, steps.c.sends).in_(known), steps.c.claim.is_(None))
            .with_for_update(skip_locked=True)
        )
        once = free.cte("free").prefix_with("MATERIALIZED")
        found = tuple_(steps.c.run_id, steps.c.step).in_(select(once.c.run_id, once.c.step))
        sent = update(steps).where(found).values(sent_at=now(), sends=steps.c.sends + 1)
        marked = sent.returning(steps.c.run_id, steps.c.step, steps.c.sends)

        def work(c: Connection) -> list[StepRef]:
            return [replace(known[row[0], row[1], row[2] - 1], sends=row[2]) for row in c.execute(marked)]

        return self.db.run(work, durable=False)

    def mark_unsent(self, refs: Sequence[StepRef]) -> None:
        # Back before any lease and any backoff, so that every rule above finds it again at once.
        sends = case((steps.c.sends > 0, steps.c.sends - 1), else_=0)
        keys = [(ref.run_id, ref.step) for ref in refs]
        self.db.run(lambda c: _mark(c, keys, sent_at=0.0, sends=sends), durable=False)


def _doubted(patience_s: float) -> Any:
    doublings = case((steps.c.sends < DOUBLINGS, steps.c.sends), else_=DOUBLINGS)
    age = cast(literal(1).op("<<")(doublings), Float) * -patience_s
    return steps.c.sent_at < now(age)


def _of_fleet(which: Any) -> Any:
    return (
        select(steps)
        .join(runs, runs.c.run_id == steps.c.run_id)
        .where(which, steps.c.queue.is_not(None), runs.c.status.not_in(ENDED))
        .order_by(steps.c.run_id, steps.c.step)
        .with_for_update(of=steps, skip_locked=True)
    )


def _mark(c: Connection, keys: Sequence[tuple[str, int]], **values: Any) -> None:
    if not keys:
        return
    these = tuple_(steps.c.run_id, steps.c.step).in_(keys)
    # A step that somebody has locked is being worked on right now and needs no mark.
    free = select(steps.c.run_id, steps.c.step).where(these).with_for_update(skip_locked=True)
    once = free.cte("free").prefix_with("MATERIALIZED")
    found = tuple_(steps.c.run_id, steps.c.step).in_(select(once.c.run_id, once.c.step))
    c.execute(update(steps).where(found).values(**values))


def _fields(row: RowMapping) -> dict[str, Any]:
    return {name: row[name] for name in ("run_id", "step", "kind", "queue", "priority", "attempt")}
