"""Listing runs, newest first, by what their rows say, and the work that waits, by queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    case,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB

from drangue_client.events import normalise
from drangue_client.store.database import Database
from drangue_client.store.reading import alive, row_of, run_row
from drangue_client.store.tables import now, runs, steps
from drangue_client.store.values import Backlog, RunRow

AT_ONCE = 1000  # ids in one statement


def is_asked() -> ColumnElement[bool]:
    """The condition that a call of a run waits for a person; a worker of before counts none, but says `paused`."""
    return or_(runs.c.asked > literal_column("0"), runs.c.status == literal("paused", literal_execute=True))


class Listing:
    """SqlLog's part about lists of runs, and of what there is to do."""

    db: Database

    def rows(self, run_ids: Sequence[str]) -> dict[str, RunRow]:
        def work(c: Connection) -> dict[str, RunRow]:
            found: dict[str, RunRow] = {}
            for some in (run_ids[start : start + AT_ONCE] for start in range(0, len(run_ids), AT_ONCE)):
                query = select(runs).where(runs.c.run_id.in_(some))
                found |= {row["run_id"]: run_row(row) for row in c.execute(query).mappings()}
            return found

        return self.db.run(work)

    def backlog(self) -> list[Backlog]:
        free, held = steps.c.claim.is_(None), and_(steps.c.claim.is_not(None), steps.c.lease_until > now())
        due = and_(~held, steps.c.available_at <= now())
        query = (
            select(
                steps.c.queue,
                func.count().filter(due).label("due"),
                func.count().filter(held).label("held"),
                func.count().filter(and_(free, steps.c.available_at > now())).label("later"),
                func.min(case((due, steps.c.available_at))).label("since"),
                now().label("now"),
            )
            .join(runs, runs.c.run_id == steps.c.run_id)
            .where(steps.c.queue.is_not(None), alive())
            .group_by(steps.c.queue)
            .order_by(steps.c.queue)
        )

        def read(row: RowMapping) -> Backlog:
            oldest_s = 0.0 if row["since"] is None else max(0.0, row["now"] - row["since"])
            return Backlog(row["queue"], row["due"], row["held"], row["later"], oldest_s)

        return self.db.run(lambda c: [read(row) for row in c.execute(query).mappings()], durable=False)

    def runs(
        self,
        *,
        status: str | None = None,
        agent: str | None = None,
        since: float | None = None,
        until: float | None = None,
        labels: Mapping[str, str] | None = None,
        unknown: bool = False,
        asked: bool = False,
        after: str | None = None,
        limit: int = 50,
    ) -> list[RunRow]:
        query = select(runs).order_by(runs.c.created_at.desc(), runs.c.run_id.desc()).limit(limit)
        if status:
            query = query.where(runs.c.status == status)
        if agent:
            query = query.where(runs.c.agent == agent)
        if since is not None:
            query = query.where(runs.c.created_at >= since)
        if until is not None:
            query = query.where(runs.c.created_at < until)
        if unknown:
            query = query.where(runs.c.unknown > literal_column("0"))
        if asked:
            query = query.where(is_asked())
        if after is not None:
            last = runs.alias()
            at = select(last.c.created_at).where(last.c.run_id == after).scalar_subquery()
            query = query.where(tuple_(runs.c.created_at, runs.c.run_id) < tuple_(at, literal(after)))
        query = query.where(*(self._bears(name, value) for name, value in normalise(dict(labels or {})).items()))

        def work(c: Connection) -> list[RunRow]:
            found = [run_row(row) for row in c.execute(query).mappings()]
            if after is not None and not found:
                row_of(c, after)  # gone since: that nothing is behind it would be no answer
            return found

        return self.db.run(work)

    def _bears(self, name: str, value: str) -> ColumnElement[bool]:
        """The condition that a run bears a label."""
        if self.db.postgres:
            return type_coerce(runs.c.labels, JSONB).contains({name: value})
        # Not by a path, `$."name"`: a name may hold quotes.
        held = func.json_each(runs.c.labels).table_valued("key", "value")
        return select(held.c.key).where(held.c.key == name, held.c.value == value).exists()
