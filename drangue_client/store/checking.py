"""What an examination asks of the log: the server's settings, runs that nothing will move, projections that lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, RowMapping, func, select, text

from drangue_client.folding import fold
from drangue_client.run import Run
from drangue_client.store.database import Database
from drangue_client.store.reading import alive, events_of, folded, look_at, row_of, run_row
from drangue_client.store.tables import agents, now, runs, steps
from drangue_client.store.values import RunRow

SERVED_S = 180.0  # workers say every minute which agents they serve
PAGE = 200  # runs that are folded anew in one transaction
SETTINGS = ("server_version", "fsync", "full_page_writes", "synchronous_commit", "max_connections")


class Checking:
    """SqlLog's part about its own health. Reads alone."""

    db: Database

    def server(self) -> dict[str, Any]:
        """{"now" (epoch seconds by the database's clock), "connections", and, of Postgres, its settings by name}."""

        def work(c: Connection) -> dict[str, Any]:
            told: dict[str, Any] = {"now": c.execute(select(now())).scalar_one()}
            if self.db.postgres:
                told |= {name: c.execute(text(f"show {name}")).scalar_one() for name in SETTINGS}
                told["connections"] = c.execute(text("select count(*) from pg_stat_activity")).scalar_one()
            return told

        return self.db.run(work)

    def stuck(self, limit: int = 100) -> list[RunRow]:
        """Fleet runs that are to go on and have nothing that would move them: no open step, no time to wake at."""
        opened = select(steps.c.step).where(steps.c.run_id == runs.c.run_id).exists()
        query = (
            select(runs)
            .where(alive(), runs.c.status != "paused", runs.c.executor == "celery", runs.c.wake_at.is_(None), ~opened)
            .limit(limit)
        )
        return self.db.run(lambda c: [run_row(row) for row in c.execute(query).mappings()])

    def unserved(self) -> dict[str, int]:
        """How many runs that have not ended are of agents that no worker has said to serve for minutes, by agent."""
        known = select(agents.c.name).where(agents.c.name == runs.c.agent, agents.c.seen_at > now(-SERVED_S)).exists()
        query = (
            select(runs.c.agent, func.count())
            .where(alive(), runs.c.executor == "celery", ~known)
            .group_by(runs.c.agent)
        )
        return self.db.run(lambda c: {row[0]: row[1] for row in c.execute(query)})

    def unbegun(self, late_s: float) -> int:
        """How many fleet runs should have begun more than `late_s` seconds ago and have no event yet."""
        due = (runs.c.status == "queued", runs.c.executor == "celery", runs.c.created_at < now(-late_s))
        late = select(func.count()).select_from(runs).where(*due, runs.c.wake_at < now(late_s))
        return self.db.run(lambda c: int(c.execute(late).scalar_one()))

    def differing(self) -> Iterator[tuple[str, str]]:
        """(run id, what differs) of each run whose row does not say what its log says; folds every log, by pages."""
        last = ""
        while page := self.db.run(lambda c, last=last: _examined(c, last)):  # type: ignore[misc]
            yield from ((run_id, told) for run_id, told in page if told)
            last = page[-1][0]


def _examined(c: Connection, after: str) -> list[tuple[str, str]]:
    query = select(runs, now().label("now")).where(runs.c.run_id > after).order_by(runs.c.run_id).limit(PAGE)
    found = []
    for row in c.execute(query).mappings().all():
        told = _compared(c, row)
        # A run that moved between the two reads looks wrong; under its lock it cannot.
        found.append((row["run_id"], _compared(c, row_of(c, row["run_id"], lock=True)) if told else ""))
    return found


def _compared(c: Connection, row: RowMapping) -> str:
    log = events_of(c, row["run_id"])
    snapshot = look_at(row, [event for event in log if event.seq > folded(row)]).run
    return ", ".join(_differences(row, fold(log), snapshot))


def _differences(row: RowMapping, whole: Run, snapshot: Run) -> Iterator[str]:
    derived = {
        "head_seq": whole.seq,
        "status": whole.status,
        "unknown": len(whole.unknown),
        "asked": whole.asked,
        "deadline_at": whole.deadline_at,
    }
    for name, value in derived.items():
        if row[name] != value:
            yield f"{name} is {row[name]!r}, its log says {value!r}"
    if snapshot != whole:
        yield "the snapshot and its tail are not what the whole log folds to"
