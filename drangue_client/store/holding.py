"""What is asked about steps that somebody holds: whose turn is over, whose time is, and who may be told to stop."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, case, literal_column, or_, select, tuple_, update

from drangue_client.run import OVER
from drangue_client.store.database import Database
from drangue_client.store.reading import begun, held, held_step, held_steps
from drangue_client.store.tables import bytewise, now, runs, steps
from drangue_client.store.values import Ask, Held


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
