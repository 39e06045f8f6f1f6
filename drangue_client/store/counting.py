"""What a dashboard asks of the log: how many runs stand where, what waits for people, and what was done lately."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, select

from drangue_client.run import ENDED
from drangue_client.store.database import Database
from drangue_client.store.tables import events, now, runs

COUNTED = ("model_decision", "tool_result", "run_finished", "run_failed", "run_cancelled")


@dataclass(frozen=True, slots=True)
class Standing:
    """Runs that have not ended, by status; the calls that wait for leave, and for how many seconds the oldest has; the
    calls of which nobody knows whether they took effect."""

    runs: dict[str, int] = field(default_factory=dict)
    approvals: int = 0
    oldest_s: float = 0.0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """One event that was recorded: of `payload` only what is counted, `prices` those of its run's budget."""

    type: str
    duration_ms: float | None
    payload: dict[str, Any]
    prices: dict[str, Any] | None


class Counting:
    """SqlLog's part about numbers. Reads alone."""

    db: Database

    def standing(self) -> Standing:
        """How things stand now."""
        alive = runs.c.status.not_in(ENDED)
        by_status = select(runs.c.status, func.count()).where(alive).group_by(runs.c.status)
        result = events.alias()
        settled = (
            select(result.c.seq)
            .where(result.c.run_id == events.c.run_id, result.c.step == events.c.step, result.c.type == "tool_result")
            .exists()
        )
        # A call may be put to people several times; it waits from the first time on until it has a result.
        asked = (
            select(events.c.run_id, events.c.step, func.min(events.c.ts).label("since"))
            .join(runs, runs.c.run_id == events.c.run_id)
            .where(runs.c.status == "paused", events.c.type == "approval_requested", ~settled)
            .group_by(events.c.run_id, events.c.step)
            .subquery()
        )
        waiting = select(func.count(), func.min(asked.c.since), now()).select_from(asked)
        unknown = select(func.coalesce(func.sum(runs.c.unknown), 0)).where(runs.c.unknown > 0)

        def work(c: Connection) -> Standing:
            count, since, at = c.execute(waiting).one()
            return Standing(
                {row[0]: row[1] for row in c.execute(by_status)},
                count,
                0.0 if since is None else max(0.0, at - since),
                int(c.execute(unknown).scalar_one()),
            )

        return self.db.run(work, durable=False)

    def recorded(self, since: float | None, behind_s: float) -> tuple[float, list[Recorded]]:
        """The countable events recorded after `since` (epoch seconds by the database's clock) and at least `behind_s`
        seconds ago, and the moment up to which that is: the next `since`. None with None, which only tells the moment.

        What took longer than `behind_s` to commit may be left out.
        """

        def work(c: Connection) -> tuple[float, list[Recorded]]:
            until = float(c.execute(select(now(-behind_s))).scalar_one())
            return until, [] if since is None else list(_recorded(c, since, until))

        return self.db.run(work, durable=False)


def _recorded(c: Connection, since: float, until: float) -> Iterator[Recorded]:
    parts = {name: events.c.payload[name] for name in ("model", "usage", "retries", "reason")}
    query = (
        select(events.c.type, events.c.duration_ms, runs.c.terms[("budget", "prices")].label("prices"), *_named(parts))
        .join(runs, runs.c.run_id == events.c.run_id)
        .where(events.c.recorded_at > since, events.c.recorded_at <= until, events.c.type.in_(COUNTED))
    )
    for row in c.execute(query).mappings():
        yield Recorded(row["type"], row["duration_ms"], _payload(row, parts), row["prices"])


def _named(parts: dict[str, ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    return [part.label(name) for name, part in parts.items()]


def _payload(row: RowMapping, parts: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in parts if row[name] is not None}
