"""Claiming, settling and reading on SQLite: what a run in one process does most, on the driver's own connection.

The counterpart of `together`, whose shapes it shares. `claiming`, `settling` and `reading` are the plain way and the
word on what a claim and a move do. There are no round trips to save here, but every statement that SQLAlchemy builds
costs ten times what SQLite takes to do it: these are strings, so that the driver has them prepared.

Readers take no lock of the file, since it can be read as it was while it is written to. Who writes takes the only one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from drangue_client.events import FORMAT, Event, lift, normalise
from drangue_client.run import ENDED, STATE_VERSION, knows
from drangue_client.store.conversations import Conversations
from drangue_client.store.database import Database
from drangue_client.store.settling import told_by, with_taken
from drangue_client.store.statements import RUN_FIELDS
from drangue_client.store.together import claimed_of, look_of, opens_of
from drangue_client.store.values import LAPSED, Ask, Look, Move, Moved, NewRun, RunRow, StepRef

MOST_ROWS = 500  # of one statement: SQLite binds no more than 32,766 values

NOW = "((julianday('now') - 2440587.5) * 86400.0)"

_ROW = """run_id, agent, status, executor, priority, labels, input, head_seq, error, created_at, updated_at,
    finished_at, wake_at, overrides, deadline_at, unknown"""
_RUN = f"select {_ROW}, state, state_seq, terms, {NOW} from runs where run_id = ?"
_LABELS, _OVERRIDES, _STATE, _HEAD, _CREATED_AT = 5, 13, 16, 7, 9  # places in it

_EVENTS = "select seq, type, payload, ts, duration_ms, step, format from events where run_id = ?"
_AFTER = f"{_EVENTS} and seq > ? order by seq"
# What a tool step needs lies behind its decision; the first bound keeps SQLite from reading the whole run for it.
_ABOUT = f"{_EVENTS} and seq >= ? and (seq > ? or step = ? or seq = ?) order by seq"

_SUBMIT = f"""
insert into runs (run_id, agent, status, executor, priority, labels, input, overrides, head_seq, state_seq, wake_at,
    created_at, updated_at)
values (?, ?, 'queued', ?, ?, ?, ?, ?, -1, -1, max(?, {NOW} + ?), {NOW}, {NOW})
on conflict do nothing returning {_ROW}
"""

_CLAIM = f"""
update steps set
    worker = ?2,
    lease_until = {NOW} + ?3,
    kill_at = case when claim = ?1 then kill_at end,
    attempt = attempt + case when claim = ?1 then 0 else 1 end,
    crashes = crashes + case when claim is null or claim = ?1 then 0 else 1 end,
    category = case when claim is null or claim = ?1 then category else '{LAPSED}' end,
    claim = ?1,
    sends = 0
where run_id = ?4 and step = ?5 and (claim is null or lease_until < {NOW} or claim = ?1) and available_at <= {NOW}
    and exists (select 1 from runs where run_id = ?4 and executor = ?6 and status not in {ENDED})
returning kind, name, attempt, failures, crashes, lost, tries, outcome, category
"""

_HEAD_OF = f"select head_seq, priority, json_extract(state, '$.v'), {NOW} from runs where run_id = ?"
_HELD = "select count(*) from steps where run_id = ? and step = ? and claim = ?"
_GIVE_UP = "delete from steps where run_id = ? and step = ? and claim = ?"
_EVENT_COLUMNS = "run_id, seq, type, step, format, payload, ts, duration_ms, recorded_at"
_STEP_COLUMNS = """run_id, step, kind, name, queue, priority, on_cancel, available_at, sent_at, attempt, failures,
    crashes, sends"""

_OPEN = f"""
select s.step, s.kind, s.queue, s.priority, s.attempt, s.sends, max(0.0, s.available_at - {NOW}),
    s.claim is not null and s.lease_until > {NOW}
from steps s join runs r on r.run_id = s.run_id where s.run_id = ? and r.status not in {ENDED} order by s.step
"""


def submit_here(db: Database, new: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
    """Record runs; the answers at their places: the run's row, and whether it is new."""
    return db.file(lambda c: [_submit(c, run) for run in new])


def look_here(db: Database, run_ids: Sequence[str]) -> dict[str, Look]:
    """The runs there are of these, as they stand."""

    def read(c: sqlite3.Connection) -> Iterator[tuple[str, Look]]:
        for run_id in run_ids:
            row = _run(c, run_id)
            if row is not None:
                since = row[_STATE + 1] if knows(row[_STATE]) else -1
                yield run_id, look_of(row, [] if since == row[_HEAD] else _events(c, _AFTER, run_id, since)[0])

    return db.file(lambda c: dict(read(c)), reads=True)


def events_here(db: Database, run_id: str, after: int) -> list[Event]:
    """The events after a place, oldest first."""
    return db.file(lambda c: _events(c, _AFTER, run_id, after)[0], reads=True)


def open_steps_here(db: Database, run_id: str) -> list[tuple[StepRef, float, bool]]:
    """The open steps of a run that has not ended, each with the seconds until it is due and whether it is held."""
    rows = db.file(lambda c: c.execute(_OPEN, (run_id,)).fetchall(), reads=True)
    return [(StepRef(run_id, *row[:6]), row[6], bool(row[7])) for row in rows]


def claim_here(db: Database, cache: Conversations, asks: Sequence[Ask], lease_s: float) -> list[Any]:
    """Claim steps; the answers at the places of the asks: a Claimed or None. Where one cannot be read none is
    claimed, and that is raised."""
    return db.file(lambda c: [_claim(c, cache, ask, lease_s) for ask in asks], durable=False)


def settle_here(db: Database, cache: Conversations, bundles: Mapping[str, Sequence[Move]]) -> dict[str, list[Moved]]:
    """Write the moves of each run, which follow one on the other, all or none; the answers by run. A run that is
    missing was refused: nothing of it was written, and it is to be asked for plainly."""
    durable = not all(move.hasty for moves in bundles.values() for move in moves)

    def write(c: sqlite3.Connection) -> dict[str, list[Moved]]:
        written = {run_id: _settle(c, cache, moves) for run_id, moves in bundles.items()}
        return {run_id: moved for run_id, moved in written.items() if moved is not None}

    return db.file(write, durable=durable)


def _submit(c: sqlite3.Connection, run: NewRun) -> tuple[RunRow, bool]:
    told = [normalise(run.labels), normalise(run.input), normalise(run.overrides)]
    values = (
        *(run.run_id, run.agent, run.executor, run.priority, json.dumps(told[0]), told[1], json.dumps(told[2])),
        *(0.0 if run.not_before is None else run.not_before, run.wake_in_s),
    )
    inserted = c.execute(_SUBMIT, values).fetchall()
    row = inserted[0] if inserted else c.execute(_RUN, (run.run_id,)).fetchone()
    return RunRow(*_read(row)[:RUN_FIELDS]), bool(inserted)


def _claim(c: sqlite3.Connection, cache: Conversations, ask: Ask, lease_s: float) -> Any:
    taken = c.execute(_CLAIM, (ask.token, ask.worker, float(lease_s), ask.run_id, ask.step, ask.executor)).fetchall()
    row = _run(c, ask.run_id) if taken else None
    if row is None:
        return None
    *step, tries, outcome, category = taken[0]
    state, since, beginning = row[_STATE], row[_STATE + 1], cache.known(ask.run_id)
    if step[0] == "tool" and knows(state):
        decided = state["decision_seq"]
        read = _events(c, _ABOUT, ask.run_id, min(decided, since + 1), since, ask.step, decided)
    else:
        read = _events(c, _AFTER, ask.run_id, beginning.after)
    return claimed_of(
        cache,
        ask,
        beginning,
        row,
        (*step, _loads(tries), _loads(outcome), category),
        *read,
        lambda: _events(c, _AFTER, ask.run_id, -1),
    )


def _settle(c: sqlite3.Connection, cache: Conversations, moves: Sequence[Move]) -> list[Moved] | None:
    """Every check comes before the first write."""
    run_id, head = moves[0].run_id, moves[0].head
    row = c.execute(_HEAD_OF, (run_id,)).fetchone()
    if row is None or row[0] != head:
        return None
    _, priority, version, now = row
    claims = [(run_id, move.claim.step, move.claim.token) for move in moves if move.claim]
    if len(claims) > 1 and not all(c.execute(_HELD, claim).fetchone()[0] for claim in claims):
        return None
    for claim in claims:
        if not c.execute(_GIVE_UP, claim).rowcount:
            return None
    facts = [fact for move in moves for fact in move.facts]
    written = [
        (
            *(run_id, seq, fact.type, fact.step, FORMAT, json.dumps(fact.payload)),
            *(now if fact.ts is None else fact.ts, fact.duration_ms, now),
        )
        for seq, fact in enumerate(facts, start=head + 1)
    ]
    _insert(c, "events", _EVENT_COLUMNS, written)
    fresh = [
        (run_id, o.step, o.kind, o.name, o.queue, priority, o.on_cancel, now, now, 0, 0, 0, 0) for o in opens_of(moves)
    ]
    found = "on conflict do nothing returning step, kind, queue, priority, attempt, sends"
    left = {step[0]: StepRef(run_id, *step) for step in _insert(c, "steps", _STEP_COLUMNS, fresh, found)}
    values = _projections(moves, head + len(facts), now)
    if (version or 0) <= STATE_VERSION:  # a newer program's snapshot is left alone; readers fold the tail
        values |= {"state": json.dumps(moves[-1].run.to_snapshot()), "state_seq": values["head_seq"]}
    c.execute(_move(tuple(values)), (*values.values(), run_id))
    answers = [
        Moved("ok", tuple(left.pop(step) for step in sorted(one.step for one in move.opens) if step in left))
        for move in moves
    ]
    return [
        with_taken(moved, move, lambda ask, lease_s: _claim(c, cache, ask, lease_s))
        for moved, move in zip(answers, moves, strict=True)
    ]


def _projections(moves: Sequence[Move], head: int, now: float) -> dict[str, Any]:
    run = moves[-1].run
    values: dict[str, Any] = {
        "head_seq": head,
        "status": run.status,
        "wake_at": run.due_at,
        "deadline_at": run.deadline_at,
        "unknown": len(run.unknown),
        "asked": run.asked,
        "updated_at": now,
    }
    told = told_by(moves)
    if "terms" in told:
        values["terms"] = json.dumps(told["terms"])
    if "ending" in told:
        values |= {"finished_at": now if told["ending"] == "ends" else None, "error": told.get("error")}
    return values


@lru_cache(maxsize=64)
def _move(names: tuple[str, ...]) -> str:
    return f"update runs set {', '.join(f'{name} = ?' for name in names)} where run_id = ?"


def _insert(
    c: sqlite3.Connection, table: str, columns: str, rows: Sequence[tuple[Any, ...]], more: str = ""
) -> list[Any]:
    """Insert rows, as many as one statement can take; what `more` returns of them."""
    answers: list[Any] = []
    for start in range(0, len(rows), MOST_ROWS):
        some = rows[start : start + MOST_ROWS]
        statement = _insertion(table, columns, len(some), len(some[0]), more)
        answers += c.execute(statement, [value for row in some for value in row]).fetchall()
    return answers


@lru_cache(maxsize=64)
def _insertion(table: str, columns: str, rows: int, values: int, more: str) -> str:
    row = f"({', '.join('?' * values)})"
    return f"insert into {table} ({columns}) values {', '.join([row] * rows)} {more}"


def _run(c: sqlite3.Connection, run_id: str) -> list[Any] | None:
    row = c.execute(_RUN, (run_id,)).fetchone()
    return _read(row) if row else None


def _read(row: Sequence[Any]) -> list[Any]:
    read = list(row)
    for place in (_LABELS, _OVERRIDES, _STATE):
        if place < len(read):
            read[place] = _loads(read[place])
    return read


def _events(c: sqlite3.Connection, query: str, *values: Any) -> tuple[list[Event], int]:
    """The events that a query finds, and their size in bytes."""
    rows = c.execute(query, values).fetchall()
    events = [
        Event(seq, lift(event_type, version), json.loads(payload), ts, duration_ms, step)
        for seq, event_type, payload, ts, duration_ms, step, version in rows
    ]
    return events, sum(len(row[2]) for row in rows)


def _loads(told: str | None) -> Any:
    return json.loads(told) if told else None
