"""Steps that somebody holds: kept alive, given back, and asked about, whose turn or time is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, literal_column, or_, select, tuple_, update

from drangue_client.events import normalise
from drangue_client.run import OVER
from drangue_client.store.database import Database
from drangue_client.store.reading import begun, held, held_step, held_steps, step_ref, unclaimed
from drangue_client.store.tables import bytewise, now, runs, steps
from drangue_client.store.values import REAPED, Ask, Held, Release, StepRef


class Holding:
    """SqlLog's part about held steps."""

    db: Database

    def arm(self, ask: Ask, limit_s: float | None) -> bool:
        armed = update(steps).where(*held(ask)).values(kill_at=None if limit_s is None else now(limit_s))
        return self.db.run(lambda c: bool(c.execute(armed).rowcount), durable=False)

    def overdue(self, worker: str, patience_s: float) -> list[Held]:
        may_stop = case((steps.c.on_cancel == "stop", True), (steps.c.on_cancel == "finish", False), else_=~begun())
        unwanted = and_(runs.c.status.in_(OVER), runs.c.finished_at < now(-patience_s), may_stop)
        query = held_steps().where(of_child(worker), or_(steps.c.kill_at < now(), unwanted))
        return self.db.run(lambda c: [held_step(row) for row in c.execute(query).mappings()], durable=False)

    def holders(self, worker: str) -> list[str]:
        query = select(steps.c.worker).where(of_child(worker)).distinct()
        return self.db.run(lambda c: sorted(c.execute(query).scalars()), durable=False)

    def halted(self, asks: Sequence[Ask]) -> set[str]:
        keys = [(ask.run_id, ask.step) for ask in asks]
        query = (
            select(steps.c.claim)
            .join(runs, runs.c.run_id == steps.c.run_id)
            .where(
                tuple_(steps.c.run_id, steps.c.step).in_(keys),
                steps.c.claim.in_([ask.token for ask in asks]),
                runs.c.status.in_(OVER),
            )
        )
        return self.db.run(lambda c: set(c.execute(query).scalars()), durable=False) if asks else set()

    def held(self, run_id: str) -> list[Held]:
        query = held_steps().where(steps.c.run_id == run_id).order_by(steps.c.step)
        return self.db.run(lambda c: [held_step(row) for row in c.execute(query).mappings()])

    def keep(self, ask: Ask, outcome: dict[str, Any]) -> bool:
        kept = update(steps).where(*held(ask)).values(outcome=normalise(outcome))
        return self.db.run(lambda c: bool(c.execute(kept).rowcount))

    def renew(self, asks: Sequence[Ask], lease_s: float) -> set[str]:
        keys = [(ask.run_id, ask.step) for ask in asks]
        held = and_(tuple_(steps.c.run_id, steps.c.step).in_(keys), steps.c.claim.in_([ask.token for ask in asks]))

        def work(c: Connection) -> set[str]:
            free = (
                select(steps.c.run_id, steps.c.step)
                .where(held)
                .order_by(steps.c.run_id, steps.c.step)
                .with_for_update(skip_locked=True)
            )
            c.execute(
                update(steps)
                .where(tuple_(steps.c.run_id, steps.c.step).in_(free), held)
                .values(lease_until=now(lease_s))
            )
            # Asked apart, since a row that somebody has locked just now was skipped above and is still held.
            return set(c.execute(select(steps.c.claim).where(held)).scalars())

        return self.db.run(work, durable=False) if asks else set()

    def release(self, releases: Sequence[Release]) -> list[StepRef | None]:
        def one(c: Connection, release: Release) -> StepRef | None:
            interrupted = release.lost and release.delay_s <= 0
            values = unclaimed(None if interrupted else release.delay_s) | {
                "failures": steps.c.failures + int(release.failed),
                "lost": steps.c.lost + int(release.lost),
                "category": release.category,
            }
            if release.tries is not None:
                values["tries"] = normalise(release.tries)
            given_back = update(steps).where(*held(release.ask)).values(values).returning(*steps.c)
            row = c.execute(given_back).mappings().first()
            return step_ref(row, urgent=interrupted) if row else None

        return self.db.run(lambda c: [one(c, release) for release in releases], durable=False)

    def release_worker(self, worker: str, category: str = "drained") -> list[StepRef]:
        counted = "crashes" if category == REAPED else "lost"
        values = {**unclaimed(None), counted: steps.c[counted] + 1, "category": category}
        given_back = update(steps).where(of_worker(worker)).values(values).returning(*steps.c)
        return self.db.run(
            lambda c: [step_ref(row, urgent=True) for row in c.execute(given_back).mappings()], durable=False
        )


def of_child(worker: str) -> ColumnElement[bool]:
    """The condition that a child of this worker holds a step: its name is the worker's, a dot and its process id."""
    behind = chr(ord(".") + 1)
    name = bytewise(steps.c.worker)
    return and_(attempted(), name > f"{worker}.", name < f"{worker}{behind}")


def of_worker(worker: str) -> ColumnElement[bool]:
    """The condition that this worker holds a step, or a child of it."""
    return or_(and_(attempted(), bytewise(steps.c.worker) == worker), of_child(worker))


def attempted() -> ColumnElement[bool]:
    """The condition that a step has been claimed before, or is now: as an index has it, of the few that were."""
    return steps.c.attempt > literal_column("0")
