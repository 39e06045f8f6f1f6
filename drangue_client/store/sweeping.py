"""What a sweep asks of the log: which runs and steps stopped moving.

Marking comes before sending, in a transaction of its own: a message must never find its step locked by the sweep that
sent it. Rows somebody else has locked are skipped, so any number of sweepers share the work without a leader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    FromClause,
    Select,
    and_,
    case,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    tuple_,
    union_all,
    update,
)

from drangue_client.run import ENDED, OVER
from drangue_client.store.database import Database
from drangue_client.store.holding import attempted
from drangue_client.store.reading import held_step, held_steps, run_row, step_ref, worth_keeping
from drangue_client.store.tables import now, runs, steps
from drangue_client.store.values import Held, QueueState, RunRow, StepRef

NEVER_S = 100 * 365 * 86_400.0  # a moment that no patience reaches
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
        # One that waits to be tried again may be of a turn that is over; what a failed run keeps is never sent.
        given_back = and_(steps.c.worker.is_(None), steps.c.claim.is_(None), steps.c.sent_at <= now())
        lapsed = and_(steps.c.worker.is_not(None), steps.c.lease_until < now())
        query = (
            held_steps()
            .where(attempted(), or_(given_back, lapsed), runs.c.status.in_(OVER), runs.c.executor == "celery")
            .order_by(steps.c.sent_at)
            .limit(limit)
        )
        over = select(runs.c.run_id).where(runs.c.run_id == steps.c.run_id, runs.c.status.in_(OVER)).exists()

        def work(c: Connection) -> list[Held]:
            c.execute(delete(steps).where(attempted(), given_back, ~worth_keeping(), over))
            return [held_step(row) for row in c.execute(query).mappings()]

        return self.db.run(work, durable=False)

    def recover(self, patience_s: float, limit: int = 100) -> list[StepRef]:
        lapsed = (
            _of_fleet(attempted(), steps.c.worker.is_not(None), steps.c.lease_until < now())
            .where(or_(steps.c.sent_at < steps.c.lease_until, _doubted(patience_s)))
            .order_by(steps.c.lease_until)
        )
        due = (
            _of_fleet(steps.c.claim.is_(None), steps.c.available_at <= now(), steps.c.sent_at < steps.c.available_at)
        ).order_by(steps.c.available_at)
        parts = [
            part.limit(limit).with_for_update(of=steps, skip_locked=True).cte(name).prefix_with("MATERIALIZED")
            for name, part in (("lapsed", lapsed), ("due", due))
        ]
        found = union_all(*(select(part.c.run_id, part.c.step) for part in parts)).limit(limit).subquery()
        marked = (
            update(steps)
            .where(tuple_(steps.c.run_id, steps.c.step).in_(select(found)))
            .values(sent_at=now(), sends=steps.c.sends + 1)
            .returning(*steps.c)
        )

        def work(c: Connection) -> list[StepRef]:
            rows = c.execute(marked).mappings().all()
            return sorted((step_ref(row, urgent=row["claim"] is not None) for row in rows), key=_place)

        return self.db.run(work, durable=False)

    def _queues(self, patience_s: float, limit: int) -> list[QueueState]:
        def work(c: Connection) -> list[QueueState]:
            names = list(c.execute(_queues_in_doubt(patience_s)).scalars())
            if not names:  # the healthy case costs one statement
                return []
            found = _oldest(c, names, patience_s, limit)
            counts: dict[Any, int] = {row[0]: row[1] for row in c.execute(_unclaimed(names))}
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


def _doubted(patience_s: float, of: FromClause = steps) -> Any:
    doublings = case((of.c.sends < DOUBLINGS, of.c.sends), else_=DOUBLINGS)
    age = cast(literal(1).op("<<")(doublings), Float) * -patience_s
    return of.c.sent_at < now(age)


def _of_fleet(*which: Any) -> Select[Any]:
    of_run = runs.c.run_id == steps.c.run_id, runs.c.status.not_in(ENDED)
    return (
        select(steps.c.run_id, steps.c.step).join(runs, of_run[0]).where(*which, steps.c.queue.is_not(None), of_run[1])
    )


def _waiting() -> tuple[ColumnElement[bool], ...]:
    """What is sent and not claimed, in the words of its index."""
    return steps.c.claim.is_(None), steps.c.sent_at >= steps.c.available_at


def _queues_in_doubt(patience_s: float) -> Select[Any]:
    """The queues where something has waited for long: two looks into the index for each, however much waits there."""
    least = select(func.min(steps.c.queue).label("queue")).where(*_waiting())
    queues = least.cte("queues", recursive=True)
    next_one = least.where(steps.c.queue > queues.c.queue).scalar_subquery()
    queues = queues.union_all(select(next_one).where(queues.c.queue.is_not(None)))
    oldest = select(func.min(steps.c.sent_at)).where(steps.c.queue == queues.c.queue, *_waiting())
    return select(queues.c.queue).where(oldest.scalar_subquery() < now(-patience_s))


def _in_doubt(patience_s: float, queue: str, limit: int) -> Select[Any]:
    """The steps of a queue that have waited for long, the longest first, with the status of their runs.

    What the index does not know is asked of its first rows only, of more than are wanted: a planner that cannot tell
    how many will do reads the whole backlog, and sorts it.
    """
    long = steps.c.queue == queue, *_waiting(), steps.c.sent_at < now(-patience_s)
    first = select(steps).where(*long).order_by(steps.c.sent_at).limit(limit << DOUBLINGS).subquery()
    rows = select(first, runs.c.status).join(runs, runs.c.run_id == first.c.run_id)
    return rows.where(_doubted(patience_s, first), runs.c.status.not_in(OVER)).order_by(first.c.sent_at).limit(limit)


def _oldest(c: Connection, queues: Sequence[str], patience_s: float, limit: int) -> list[StepRef]:
    """The oldest in doubt of each queue: one queue's backlog must not hide another's lost step.

    What a failed run keeps is put away on the way: it is not to be sent before the run is taken up again.
    """
    parts = [_in_doubt(patience_s, queue, limit).subquery() for queue in queues]
    query = union_all(*map(select, parts))
    while True:
        found = c.execute(query).mappings().all()
        kept = [(row["run_id"], row["step"]) for row in found if row["status"] in ENDED]
        # One that was taken up meanwhile has been sent since, and one that is being taken up is locked.
        idle = steps.c.claim.is_(None), steps.c.sent_at < now(-patience_s)
        if not _mark(c, kept, *idle, sent_at=now(NEVER_S)):
            return [step_ref(row) for row in found if row["status"] not in ENDED]


def _unclaimed(queues: Sequence[str]) -> Select[Any]:
    """How many steps were sent that nobody holds, by queue: as an index tells it, without a look at their runs."""
    sent = *_waiting(), steps.c.queue.in_(queues), steps.c.sent_at <= now()
    return select(steps.c.queue, func.count()).where(*sent).group_by(steps.c.queue)


def _mark(c: Connection, keys: Sequence[tuple[str, int]], *more: ColumnElement[bool], **values: Any) -> int:
    if not keys:
        return 0
    these = tuple_(steps.c.run_id, steps.c.step).in_(keys)
    # A step that somebody has locked is being worked on right now and needs no mark.
    free = select(steps.c.run_id, steps.c.step).where(these, *more).with_for_update(skip_locked=True)
    once = free.cte("free").prefix_with("MATERIALIZED")
    found = tuple_(steps.c.run_id, steps.c.step).in_(select(once.c.run_id, once.c.step))
    return c.execute(update(steps).where(found).values(**values)).rowcount


def _place(ref: StepRef) -> tuple[str, int]:
    return ref.run_id, ref.step
