"""Settling: what a move writes, in the order that leaves nothing behind when it is refused.

Every check comes before the first write, and locks are taken run first, then step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, case, delete, insert, literal, or_, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError

from drangue_client.errors import ConflictError
from drangue_client.events import FORMAT, Fact
from drangue_client.run import outlives
from drangue_client.store.claiming import claim_step
from drangue_client.store.reading import (
    events_of,
    folded,
    held,
    look_at,
    look_now,
    row_of,
    step_ref,
    unclaimed,
    worth_keeping,
)
from drangue_client.store.tables import events, now, runs, steps
from drangue_client.store.values import Ask, Claimed, Move, Moved, Open, StepRef


def settle_move(c: Connection, move: Move) -> Moved:
    """Write a move if the log still ends where it was decided and its claim still holds."""
    row = row_of(c, move.run_id, lock=True)
    if row["head_seq"] != move.head:
        return Moved("moved", look=look_at(row, events_of(c, move.run_id, after=folded(row))))
    if move.claim is not None and not _give_up_claim(c, move.claim, park=move.park):
        return Moved("lost")
    append_facts(c, move.run_id, move.head, move.facts)
    if move.clear:
        idle = and_(steps.c.claim.is_(None), ~worth_keeping())
        lapsed = or_(idle, and_(steps.c.lease_until < now(), steps.c.kind != "tool"))
        c.execute(delete(steps).where(steps.c.run_id == move.run_id, lapsed))
    opened = _open(c, row, move.opens, reopen=move.reopen)
    c.execute(update(runs).where(runs.c.run_id == move.run_id).values(_projections(row, move)))
    return with_taken(Moved("ok", tuple(opened)), move, lambda ask, lease_s: claim_step(c, ask, lease_s))


def with_taken(moved: Moved, move: Move, claim: Callable[[Ask, float], Claimed | None]) -> Moved:
    """The answer to a move when what it takes has been claimed, in the transaction that has opened it."""
    if move.take is None:
        return moved
    fresh, lease_s = {ref.step for ref in moved.opened}, move.take.lease_s
    taken = tuple(one for ask in move.take.asks if ask.step in fresh and (one := claim(ask, lease_s)))
    return replace(moved, taken=taken)


def _projections(row: RowMapping, move: Move) -> dict[str, Any]:
    """What the run's row says after a move, all of it derivable from the log."""
    run = move.run
    values: dict[str, Any] = {
        "head_seq": move.head + len(move.facts),
        "status": run.status,
        "wake_at": _wake_at(move),
        "deadline_at": run.deadline_at,
        "unknown": len(run.unknown),
        "asked": run.asked,
        "updated_at": now(),
    }
    if not outlives(row["state"]):  # a newer program's snapshot is left alone; readers fold the tail
        values |= {"state": run.to_snapshot(), "state_seq": run.seq}
    told = told_by([move])
    if "terms" in told:
        values["terms"] = told["terms"]
    if "ending" in told:
        values |= {"finished_at": now() if told["ending"] == "ends" else None, "error": told.get("error")}
    return values


def told_by(moves: Sequence[Move]) -> dict[str, Any]:
    """What moves of one run, one behind the other, say of it: its `terms` where they start it, and as `ending` whether
    it "ends" by them, with its `error`, or "goes on". No `ending` where it has ended before and stays so."""
    told: dict[str, Any] = {}
    for move in moves:
        for fact in move.facts:
            if fact.type == "run_started":
                told["terms"] = fact.payload["config"]
            elif fact.type in ("run_finished", "run_failed", "run_cancelled"):
                told |= {"ending": "ends", "error": fact.payload.get("error")}
        if not move.run.ended:
            told |= {"ending": "goes on", "error": None}
    return told


def settle_each(c: Connection, moves: Sequence[Move]) -> list[Moved]:
    """Write the moves of one run, each decided from what the one before it writes: behind a refused one all are."""
    answers: list[Moved] = []
    for move in moves:
        if not answers or answers[-1].verdict == "ok":
            answers.append(settle_move(c, move))
        else:  # as it was for the first of them: the run is locked
            answers.append(Moved("moved", look=answers[-1].look or look_now(c, move.run_id)))
    return answers


def _wake_at(move: Move) -> Any:
    """When the run needs a coordinator; whoever moves it on then says anew when time alone does."""
    if move.run.ended:
        return None
    if move.wake_in_s is None or move.run.due_at is None:
        return move.run.due_at if move.wake_in_s is None else now(move.wake_in_s)
    soon = now(move.wake_in_s)
    due_at = literal(move.run.due_at, soon.type)
    return case((due_at < soon, due_at), else_=soon)


def append_facts(c: Connection, run_id: str, head: int, facts: Sequence[Fact]) -> None:
    """Write facts after `head`. ConflictError where the log holds their like already."""
    if not facts:
        return
    rows = [
        {
            "run_id": run_id,
            "seq": seq,
            "type": fact.type,
            "step": fact.step,
            "format": FORMAT,
            "payload": fact.payload,
            "ts": now() if fact.ts is None else fact.ts,
            "duration_ms": fact.duration_ms,
            "recorded_at": now(),
        }
        for seq, fact in enumerate(facts, start=head + 1)
    ]
    try:
        c.execute(insert(events).values(rows))
    except IntegrityError as error:
        raise ConflictError(run_id, head + 1) from error


def _give_up_claim(c: Connection, claim: Ask, *, park: bool) -> bool:
    if park:  # what its attempts may have cost is in the log with the failure
        parked = update(steps).where(*held(claim)).values(**unclaimed(0), lost=0, crashes=0, category="parked")
        return bool(c.execute(parked).rowcount)
    return bool(c.execute(delete(steps).where(*held(claim))).rowcount)


def _open(c: Connection, row: RowMapping, opens: Sequence[Open], *, reopen: bool) -> list[StepRef]:
    opened: list[StepRef] = []
    if reopen:
        parked = (
            update(steps)
            .where(steps.c.run_id == row["run_id"], steps.c.claim.is_(None))
            .values(**unclaimed(0), failures=0, lost=steps.c.lost + steps.c.crashes, crashes=0, sends=0, tries=None)
            .returning(*steps.c)
        )
        opened += [step_ref(step) for step in c.execute(parked).mappings()]
    if opens:
        make = postgres_insert if c.dialect.name == "postgresql" else sqlite_insert
        fresh = [
            {
                "run_id": row["run_id"],
                "step": step.step,
                "kind": step.kind,
                "name": step.name,
                "queue": step.queue,
                "priority": row["priority"],
                "attempt": 0,
                "failures": 0,
                "crashes": 0,
                "available_at": now(),
                "sent_at": now(),
                "sends": 0,
                "on_cancel": step.on_cancel,
            }
            for step in opens
        ]
        inserted = c.execute(make(steps).values(fresh).on_conflict_do_nothing().returning(*steps.c))
        opened += [step_ref(step) for step in inserted.mappings()]
    return sorted(opened, key=lambda ref: ref.step)
