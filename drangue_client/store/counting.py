"""What a dashboard asks of the log: how many runs stand where, what waits for people, and what was done lately."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, func, literal_column, select, tuple_

from drangue_client.run import ENDED, Run
from drangue_client.store.database import Database
from drangue_client.store.listing import is_asked
from drangue_client.store.reading import alive
from drangue_client.store.tables import events, now, runs

AT_ONCE = 1000  # calls that one statement asks about
PARTS = ("model", "usage", "retries", "reason")  # of a payload: what is counted
COUNTED = ("model_decision", "tool_result", "run_finished", "run_failed", "run_cancelled")


@dataclass(frozen=True, slots=True)
class Standing:
    """Runs that have not ended, by status; the calls that wait for leave, and for how many seconds the oldest has; the
    calls of which nobody knows whether they took effect; for how many seconds the fleet run has been due that should
    have been looked after first, 0 where none is overdue."""

    runs: dict[str, int] = field(default_factory=dict)
    approvals: int = 0
    oldest_s: float = 0.0
    unknown: int = 0
    wake_lag_s: float = 0.0


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
        by_status = select(runs.c.status, func.count()).where(alive()).group_by(runs.c.status)
        unknown = select(func.coalesce(func.sum(runs.c.unknown), 0)).where(runs.c.unknown > literal_column("0"))

        def work(c: Connection) -> Standing:
            asked = _asked(c)
            return Standing(
                {row[0]: row[1] for row in c.execute(by_status)},
                len(asked),
                _oldest_s(c, asked),
                int(c.execute(unknown).scalar_one()),
                _wake_lag_s(c),
            )

        return self.db.run(work, durable=False)

    def recorded(self, since: float | None, behind_s: float) -> tuple[float, list[Recorded]]:
        """The countable events recorded after `since` (epoch seconds by the database's clock) and at least `behind_s`
        seconds ago, and the moment up to which that is: the next `since`. None with None, which only tells the moment.

        What a transaction recorded that lasted longer than `behind_s` may be left out.
        """

        def work(c: Connection) -> tuple[float, list[Recorded]]:
            until = float(c.execute(select(now(-behind_s))).scalar_one())
            return until, [] if since is None else list(_recorded(c, since, until))

        return self.db.run(work, durable=False)


def _asked(c: Connection) -> list[tuple[str, int]]:
    """The calls that wait for leave, (run, step), whether anything else of their runs goes on or not."""
    query = select(runs.c.run_id, runs.c.state).where(is_asked())
    found = []
    for run_id, state in c.execute(query):
        calls = Run.from_snapshot(state, 0, None).calls
        found += [(run_id, call.step) for call in calls if call.verdict == "asked" and not call.settled]
    return found


def _wake_lag_s(c: Connection) -> float:
    """For how many seconds the most overdue run of the fleet has waited for a sweep: by the sweeps' own index."""
    overdue = (
        select(runs.c.wake_at, now())
        .where(runs.c.wake_at <= now(), runs.c.executor == "celery", runs.c.status.not_in(ENDED))
        .order_by(runs.c.wake_at)
        .limit(1)
    )
    row = c.execute(overdue).first()
    return 0.0 if row is None else float(row[1] - row[0])


def _oldest_s(c: Connection, asked: list[tuple[str, int]]) -> float:
    """For how many seconds the oldest of these calls has waited: from the first time it was put to people."""
    oldest_s = 0.0
    for place in range(0, len(asked), AT_ONCE):
        query = select(func.min(events.c.ts), now()).where(
            events.c.type == "approval_requested",
            tuple_(events.c.run_id, events.c.step).in_(asked[place : place + AT_ONCE]),
        )
        since, at = c.execute(query).one()
        oldest_s = max(oldest_s, 0.0 if since is None else at - since)
    return oldest_s


def _recorded(c: Connection, since: float, until: float) -> Iterator[Recorded]:
    named = [events.c.payload[name].label(name) for name in PARTS]
    query = (
        select(events.c.type, events.c.duration_ms, runs.c.terms[("budget", "prices")].label("prices"), *named)
        .join(runs, runs.c.run_id == events.c.run_id)
        .where(events.c.recorded_at > since, events.c.recorded_at <= until, events.c.type.in_(COUNTED))
    )
    for row in c.execute(query).mappings():
        yield Recorded(row["type"], row["duration_ms"], {name: row[name] for name in PARTS}, row["prices"])
