"""From rows to values: what every part of the log reads.

A run is its snapshot and the events after it; a snapshot that this program cannot read counts as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, bindparam, case, literal, or_, select

from drangue_client.errors import UnknownRunError
from drangue_client.events import Event, lift
from drangue_client.folding import fold
from drangue_client.run import ALIVE, Run, knows
from drangue_client.store.tables import events, now, runs, steps
from drangue_client.store.values import Ask, Held, Look, RunRow, StepRef


def run_row(row: RowMapping) -> RunRow:
    """A row of `runs` as a value."""
    return RunRow(**{name: row[name] for name in RunRow.__dataclass_fields__})


def step_ref(row: RowMapping, *, urgent: bool = False) -> StepRef:
    """A row of `steps` as a message knows it."""
    names = ("run_id", "step", "kind", "queue", "priority", "attempt", "sends")
    return StepRef(**{name: row[name] for name in names}, urgent=urgent)


def row_of(c: Connection, run_id: str, *, lock: bool = False) -> RowMapping:
    """A run's row with the database's `now`; UnknownRunError if there is none. `lock` makes other writers wait."""
    query = select(runs, now().label("now")).where(runs.c.run_id == run_id)
    row = c.execute(query.with_for_update(of=runs, key_share=True) if lock else query).mappings().first()
    if row is None:
        raise UnknownRunError(run_id)
    return row


def folded(row: RowMapping) -> int:
    """How far the snapshot has folded the log; -1 where this program cannot read the snapshot."""
    return int(row["state_seq"]) if knows(row["state"]) else -1


def look_at(row: RowMapping, tail: Sequence[Event]) -> Look:
    """The run as it stands, from its row and the events after its snapshot."""
    run = fold(tail, onto=Run.from_snapshot(row["state"], row["state_seq"], row["terms"]))
    return Look(run_row(row), run, row["now"])


def look_now(c: Connection, run_id: str) -> Look:
    """The run as it stands; UnknownRunError if there is none."""
    row = row_of(c, run_id)
    return look_at(row, events_of(c, run_id, after=folded(row)))


def events_of(c: Connection, run_id: str, after: int = -1, *more: Any) -> list[Event]:
    """The events after a place, and those that `more` conditions name, oldest first."""
    wanted = or_(events.c.seq > after, *more) if more else events.c.seq > after
    query = select(events).where(events.c.run_id == run_id, wanted).order_by(events.c.seq)
    return [
        Event(
            seq=row.seq,
            type=lift(row.type, row.format),
            payload=row.payload,
            ts=row.ts,
            duration_ms=row.duration_ms,
            step=row.step,
        )
        for row in c.execute(query)
    ]


def held_steps() -> Select[Any]:
    """The steps that are claimed, or have begun or an outcome; with what `held_step` reads."""
    live = case((and_(steps.c.claim.is_not(None), steps.c.lease_until > now()), 1), else_=0).label("live")
    return (
        select(steps, live, runs.c.executor)
        .join(runs, runs.c.run_id == steps.c.run_id)
        .where(or_(steps.c.claim.is_not(None), worth_keeping()))
    )


def worth_keeping() -> ColumnElement[bool]:
    """The condition that something is known of a step that its log does not tell: it has begun, or an outcome."""
    return and_(or_(steps.c.outcome.is_not(None), begun()), ~_recorded("tool_result"))


def begun() -> ColumnElement[bool]:
    """The condition that a step which cannot be undone has begun."""
    return _recorded("step_started")


def _recorded(event_type: str) -> ColumnElement[bool]:
    own = (events.c.run_id == steps.c.run_id, events.c.step == steps.c.step)
    named = literal(event_type, literal_execute=True)  # a partial index is on this type: a parameter might be any
    return select(events.c.seq).where(*own, events.c.type == named).exists()


def alive() -> ColumnElement[bool]:
    """The condition that a run has not ended. In so many words: whoever is told no status takes half of them for it."""
    return runs.c.status.in_(bindparam("alive", ALIVE, expanding=True, literal_execute=True))


def held_step(row: RowMapping) -> Held:
    """A row of `held_steps` as a value."""
    ask = Ask(row["run_id"], row["step"], row["claim"] or "", row["worker"] or "", row["executor"])
    return Held(ask, row["kind"], row["name"], bool(row["live"]), row["outcome"])


def held(ask: Ask) -> tuple[Any, ...]:
    """The condition that a step is held by this claim."""
    return steps.c.run_id == ask.run_id, steps.c.step == ask.step, steps.c.claim == ask.token


def unclaimed(delay_s: float | None) -> dict[str, Any]:
    """What a step is set to when its claim is given up: free in `delay_s` and sent now, or, with None, free with the
    place in its queue that it had: what was interrupted does not line up again."""
    free = {"claim": None, "worker": None, "lease_until": None, "kill_at": None}
    return free if delay_s is None else {**free, "available_at": now(delay_s), "sent_at": now()}
