"""Claiming and settling on Postgres: what waits together goes together, each in one statement that is a transaction.

`claiming` and `settling` are the plain way, one statement after the other, and the word on what a claim and a move do;
what is said here in SQL says the same. Whatever is out of the ordinary (a move that was refused, or that ends a turn
before its time) is left to them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from drangue_client.errors import UnknownRunError
from drangue_client.events import Event, lift, normalise
from drangue_client.folding import fold
from drangue_client.run import Run, knows
from drangue_client.store.conversations import NOTHING, Conversations, Known
from drangue_client.store.database import Database
from drangue_client.store.settling import told_by
from drangue_client.store.statements import (
    AGAIN,
    CLAIM,
    HALTED,
    LOOK,
    ROWS,
    RUN_COLUMNS,
    RUN_FIELDS,
    SETTLE,
    SETTLE_SEVERAL,
    SUBMIT,
    UNTAKE,
    WHOLE,
)
from drangue_client.store.taking import Taking
from drangue_client.store.values import Ask, Claimed, Look, Move, Moved, NewRun, Open, RunRow, StepRef
from drangue_client.terms import Terms


def claim_together(db: Database, cache: Conversations, asks: Sequence[Ask], lease_s: float) -> list[Any]:
    """Claim steps; the answers at the places of the asks: a Claimed, None, or the error that kept it from being read.
    Of what could not be read the claim holds, and is to be given back."""
    first = {(ask.run_id, ask.step): ask for ask in reversed(asks)}  # of a doubled message one is too many
    asked = list(first.values())
    known = {ask.run_id: cache.known(ask.run_id) for ask in asked}
    rows = db.alone(
        CLAIM,
        {
            "runs": [ask.run_id for ask in asked],
            "steps": [ask.step for ask in asked],
            "tokens": [ask.token for ask in asked],
            "workers": [ask.worker for ask in asked],
            "executors": [ask.executor for ask in asked],
            "after": [known[ask.run_id].after for ask in asked],
            "lease_s": float(lease_s),
        },
    )
    by_token = {row[RUN_COLUMNS]: row for row in rows}
    answers: list[Any] = []
    for ask in asks:
        row = by_token.pop(ask.token, None)
        try:
            answers.append(_claimed(db, cache, ask, known[ask.run_id], row) if row else None)
        except Exception as error:  # of one log, which is nothing to the others
            answers.append(error)
    return answers


def _claimed(db: Database, cache: Conversations, ask: Ask, beginning: Known, row: Sequence[Any]) -> Claimed:
    _, *step, tail = row[RUN_COLUMNS:]
    kind, _, attempt, *_ = step
    if attempt > 1:
        asked = {"run": ask.run_id, "kind": kind, "step": ask.step, "after": beginning.after}
        *row, tail = db.alone(AGAIN, asked)[0]
    return claimed_of(cache, ask, beginning, row, step, *_sized(tail), lambda: _sized(_whole(db, ask.run_id)))


def claimed_of(
    cache: Conversations,
    ask: Ask,
    beginning: Known,
    row: Sequence[Any],
    claimed: Sequence[Any],
    log: list[Event],
    size: int,
    whole: Callable[[], tuple[list[Event], int]],
) -> Claimed:
    """A claim from what `RUN` selects, the `claimed` step from its kind to its category, and the events that were read
    with it, in so many bytes; `whole` reads all of them, where these are not enough."""
    kind, name, attempt, failures, crashes, lost, tries, outcome, category = claimed
    state, since, head, created_at = row[RUN_FIELDS], row[RUN_FIELDS + 1], row[7], row[9]
    if not knows(state):
        since = -1
    if kind == "tool" and since < 0:
        log, _ = whole()
    elif kind != "tool":
        told = cache.grown(ask.run_id, created_at, beginning, log, size, head)
        if told is None:  # what was held is of another log
            log, size = whole()
            told = cache.grown(ask.run_id, created_at, NOTHING, log, size, head)
        log = log if told is None else told
    decisions = [event for event in log if event.type == "model_decision" and (event.step or 0) < ask.step]
    if kind == "tool" and not decisions:  # of a turn before this one
        log, _ = whole()
        decisions = [event for event in log if event.type == "model_decision" and (event.step or 0) < ask.step]
    return Claimed(
        ask=ask,
        kind=kind,
        name=name,
        attempt=attempt,
        failures=failures,
        crashes=crashes,
        lost=lost + crashes,
        tries=tuple(tries or ()),
        outcome=outcome,
        category=category,
        look=look_of(row, [event for event in log[_after(log, since) :] if event.seq > since]),
        facts=tuple(event for event in log if event.step == ask.step),
        decision=decisions[-1] if decisions else None,
        events=tuple(log) if kind != "tool" else (),
        reading=cache.known(ask.run_id).reading if kind != "tool" else None,
    )


def halted_together(db: Database, asks: Sequence[Ask]) -> set[str]:
    """The tokens of those claims that hold, and whose turns are over. Of all that a process holds, every second."""
    asked = {"runs": [ask.run_id for ask in asks], "steps": [ask.step for ask in asks]}
    return {row[0] for row in db.alone(HALTED, asked | {"tokens": [ask.token for ask in asks]})}


def submit_together(db: Database, new: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
    """Record runs; the answers at their places: the run's row, and whether it is new."""
    told = [
        {
            "run_id": run.run_id,
            "agent": run.agent,
            "executor": run.executor,
            "priority": run.priority,
            "labels": normalise(run.labels),
            "input": normalise(run.input),
            "overrides": normalise(run.overrides),
            "not_before": _instant(run.not_before),
            "wake_in_s": float(run.wake_in_s),
        }
        for run in {run.run_id: run for run in reversed(new)}.values()
    ]
    rows = {row[0]: RunRow(*row[:RUN_FIELDS]) for row in db.alone(SUBMIT, {"new": json.dumps(told)})}
    fresh = set(rows)
    known = sorted({run.run_id for run in new} - fresh)
    if known:
        rows |= rows_together(db, known)
    answers = []
    for run in new:
        if run.run_id not in rows:  # forgotten between the two statements
            raise UnknownRunError(run.run_id)
        answers.append((rows[run.run_id], run.run_id in fresh))
        fresh.discard(run.run_id)
    return answers


def rows_together(db: Database, run_ids: Sequence[str]) -> dict[str, RunRow]:
    """The rows of the runs there are of these."""
    return {row[0]: RunRow(*row[:RUN_FIELDS]) for row in db.alone(ROWS, {"runs": list(run_ids)})}


def look_together(db: Database, run_ids: Sequence[str]) -> dict[str, Look]:
    """The runs there are of these, as they stand."""
    rows = db.alone(LOOK, {"runs": list(run_ids)})
    return {row[0]: look_of(row, events_in(row[RUN_COLUMNS])) for row in rows}


def settle_together(
    db: Database, cache: Conversations, bundles: Mapping[str, Sequence[Move]]
) -> dict[str, list[Moved]]:
    """Write the moves of each run, which follow one on the other, all or none; the answers by run. A run that is
    missing was refused: nothing of it was written, and it is to be asked for plainly."""
    hasty = all(move.hasty for moves in bundles.values() for move in moves)
    takings = {run_id: Taking(cache, moves) for run_id, moves in bundles.items()}
    moves = json.dumps([_bundle(its, takings[run_id].asks) for run_id, its in bundles.items()])
    statement = SETTLE if len(bundles) == 1 else SETTLE_SEVERAL
    rows = db.alone(statement, {"moves": moves, "runs": list(bundles), "hasty": hasty})
    answers: dict[str, list[Moved]] = {}
    for run_id, opened, now, last_ts, last_type in map(tuple, rows):
        taking = takings[run_id]
        left = {step: StepRef(run_id, step, *rest) for step, *rest in opened or ()}
        if taking.holds(last_ts, last_type):
            taken = {one.ask.step: one for one in taking.claimed(set(left), now)}
        else:
            taken = {}
            db.alone(UNTAKE, {"run": run_id, "tokens": [ask.token for ask in taking.asks.values()]})
        answers[run_id] = [_moved(move, left, taken) for move in bundles[run_id]]
    return answers


def _moved(move: Move, left: dict[int, StepRef], taken: Mapping[int, Claimed]) -> Moved:
    """The answer to one of several moves, from what is `left` of all that they have opened."""
    fresh = [left.pop(step) for step in sorted(one.step for one in move.opens) if step in left]
    return Moved("ok", tuple(fresh), taken=tuple(taken[ref.step] for ref in fresh if ref.step in taken))


def is_chain(moves: Sequence[Move]) -> bool:
    """Whether the moves of one run can be written together: each was decided from what the one before it writes, and
    none does what only the plain way does."""
    heads = [move.head + len(move.facts) for move in moves]
    chained = all(move.head == head for move, head in zip(moves[1:], heads, strict=False))
    reopened = any(move.claim.step in {one.step for one in move.opens} for move in moves if move.claim)
    return (
        chained
        and not reopened
        and not any(move.park or move.reopen or move.clear or move.wake_in_s is not None for move in moves)
    )


def opens_of(moves: Sequence[Move]) -> list[Open]:
    """What the moves of one run open together. A move opens what is open already, too: of these moves that is what the
    others settle."""
    settled = {move.claim.step for move in moves if move.claim}
    return list({one.step: one for move in reversed(moves) for one in move.opens if one.step not in settled}.values())


def _bundle(moves: Sequence[Move], asks: Mapping[int, Ask]) -> dict[str, Any]:
    last = moves[-1]
    run, facts = last.run, [fact for move in moves for fact in move.facts]
    lease_s = max((move.take.lease_s for move in moves if move.take), default=None)
    claims = {move.claim.step: move.claim.token for move in moves if move.claim}
    bundle: dict[str, Any] = {
        "run_id": last.run_id,
        "head": moves[0].head,
        "new_head": moves[0].head + len(facts),
        "state": run.to_snapshot(),
        "status": run.status,
        "due_at": _instant(run.due_at),
        "deadline_at": _instant(run.deadline_at),
        "unknown": len(run.unknown),
        "asked": run.asked,
        "steps": list(claims),
        "tokens": list(claims.values()),
        "facts": [
            {
                "place": place,
                "type": fact.type,
                "step": fact.step,
                "payload": fact.payload,
                "ts": _instant(fact.ts),
                "duration_ms": fact.duration_ms,
            }
            for place, fact in enumerate(facts, start=1)
        ],
        "opens": [
            {"step": o.step, "kind": o.kind, "name": o.name, "queue": o.queue, "on_cancel": o.on_cancel}
            | (
                {"token": asks[o.step].token, "worker": asks[o.step].worker, "lease_s": lease_s}
                if o.step in asks
                else {}
            )
            for o in opens_of(moves)
        ],
    }
    return bundle | told_by(moves)


def look_of(row: Sequence[Any], tail: Sequence[Event]) -> Look:
    """The run as it stands, from what `RUN` selects and the events after its snapshot."""
    state, state_seq, terms, now = row[RUN_FIELDS:RUN_COLUMNS]
    run = Run.from_snapshot(state, state_seq, _terms(terms) if terms else None)
    return Look(RunRow(*row[:RUN_FIELDS]), fold(tail, onto=run), now)


def events_in(told: str | None) -> list[Event]:
    """The events that a query of `EVENTS` gave."""
    return [
        Event(seq, lift(event_type, version), payload, ts, duration_ms, step)
        for seq, event_type, payload, ts, duration_ms, step, version in json.loads(told or "[]")
    ]


@lru_cache(maxsize=256)
def _terms(told: str) -> Terms:
    """Terms are as many as there are agents, and runs are many."""
    return Terms.from_json(json.loads(told))


def _sized(told: str | None) -> tuple[list[Event], int]:
    return events_in(told), len(told or "")


def _whole(db: Database, run_id: str) -> str | None:
    told: str | None = db.alone(WHOLE, {"run": run_id})[0][0]
    return told


def _after(log: Sequence[Event], seq: int) -> int:
    """Where in a log the events after a place can begin at the earliest: logs have no gaps, parts of them may."""
    return max(0, len(log) - (log[-1].seq - seq)) if log else 0


def _instant(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
