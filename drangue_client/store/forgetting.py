"""Deleting runs that ended long ago, with their logs. Nothing else ever removes an event."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select, tuple_

from drangue_client.run import Ended
from drangue_client.store.database import Database
from drangue_client.store.reading import run_row
from drangue_client.store.tables import events, now, runs, steps
from drangue_client.store.values import RunRow


class Forgetting:
    """SqlLog's part about runs that are to be forgotten."""

    db: Database

    def ended_before(self, age_s: float, statuses: Sequence[Ended], limit: int) -> list[RunRow]:
        opened = select(steps.c.step).where(steps.c.run_id == runs.c.run_id, steps.c.claim.is_not(None)).exists()
        query = (
            select(runs)
            .where(runs.c.status.in_(statuses), runs.c.finished_at < now(-age_s), runs.c.unknown == 0, ~opened)
            .order_by(runs.c.finished_at, runs.c.run_id)
            .limit(limit)
        )
        return self.db.run(lambda c: [run_row(row) for row in c.execute(query).mappings()])

    def forget(self, rows: Sequence[RunRow]) -> list[str]:
        def work(c: Connection) -> list[str]:
            as_read = tuple_(runs.c.run_id, runs.c.head_seq).in_([(row.run_id, row.head_seq) for row in rows])
            locked = select(runs.c.run_id).where(as_read).order_by(runs.c.run_id).with_for_update()
            gone = list(c.execute(locked).scalars())
            for table in (steps, events, runs):
                c.execute(delete(table).where(table.c.run_id.in_(gone)))
            return gone

        return self.db.run(work) if rows else []
