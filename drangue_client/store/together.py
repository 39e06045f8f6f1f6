"""Claiming and settling on Postgres: what waits together goes together, each in one statement that is a transaction.

`claiming` and `settling` are the plain way, one statement after the other, and the word on what a claim and a move do;
what is said here in SQL says the same. Whatever is out of the ordinary (a move that was refused, or that ends a turn
before its time) is left to them. Runs are locked in the order of their ids, then steps; a claim waits for nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from drangue_client.errors import UnknownRunError
from drangue_client.events import FORMAT, Event, lift, normalise
from drangue_client.folding import fold
from drangue_client.run import ENDED, STATE_VERSION, Run, knows
from drangue_client.store.conversations import Conversations, Known
from drangue_client.store.database import HASTY, Database
from drangue_client.store.values import LAPSED, Ask, Claimed, Look, Move, Moved, NewRun, Open, RunRow, StepRef
from drangue_client.terms import Terms

MOST = 32  # of one statement: more costs as much by the piece

_RUN = """r.run_id, r.agent, r.status, r.executor, r.priority, r.labels, r.input, r.head_seq, r.error,
    extract(epoch from r.created_at)::float8, extract(epoch from r.updated_at)::float8,
    extract(epoch from r.finished_at)::float8, extract(epoch from r.wake_at)::float8, r.overrides,
    extract(epoch from r.deadline_at)::float8, r.unknown, r.state, r.state_seq, r.terms::text,
    extract(epoch from now())::float8"""
_RUN_COLUMNS, RUN_FIELDS = 20, 16  # of which the first are a RunRow's

_EVENT = "json_build_array(e.seq, e.type, e.payload, extract(epoch from e.ts)::float8, e.duration_ms, e.step, e.format)"
_EVENTS = f"select json_agg({_EVENT} order by e.seq)::text from events e where e.run_id ="
# Text, so that a snapshot of any version can be looked at before it is read.
_KNOWN = f"coalesce((r.state ->> 'v')::int = {STATE_VERSION}, false)"


def _tail(kind: str, step: str, after: str) -> str:
    """What a tool step needs lies behind its decision; who thinks needs everything, of which it may hold the
    beginning."""
    return f"""
    case when {kind} = 'tool' and {_KNOWN} then
        ({_EVENTS} r.run_id and e.seq >= least((r.state ->> 'decision_seq')::int, r.state_seq + 1)
            and (e.seq > r.state_seq or e.step = {step} or e.seq = (r.state ->> 'decision_seq')::int))
    else
        ({_EVENTS} r.run_id and e.seq > {after})
    end"""


CLAIM = f"""
with hasty as materialized ({HASTY}),
asked as (
    select * from unnest(%(runs)s::text[], %(steps)s::int[], %(tokens)s::text[], %(workers)s::text[],
        %(executors)s::text[], %(after)s::int[]) as a(run_id, step, token, worker, executor, after)
),
free as materialized (
    select s.run_id, s.step, a.token, a.worker, a.after
    from hasty, asked a join steps s on s.run_id = a.run_id and s.step = a.step join runs r on r.run_id = a.run_id
    where (s.claim is null or s.lease_until < now() or s.claim = a.token) and s.available_at <= now()
        and r.executor = a.executor and r.status not in {ENDED}
    order by s.run_id, s.step
    for update of s skip locked
),
mine as (
    update steps s set
        claim = f.token,
        worker = f.worker,
        lease_until = now() + make_interval(secs => %(lease_s)s),
        kill_at = case when s.claim = f.token then s.kill_at end,
        attempt = s.attempt + case when s.claim = f.token then 0 else 1 end,
        crashes = s.crashes + case when s.claim is null or s.claim = f.token then 0 else 1 end,
        category = case when s.claim is null or s.claim = f.token then s.category else '{LAPSED}' end,
        sends = 0
    from free f where s.run_id = f.run_id and s.step = f.step
    returning s.*, f.after
)
select {_RUN}, m.claim, m.kind, m.name, m.attempt, m.failures, m.crashes, m.lost, m.tries, m.outcome, m.category,
    {_tail("m.kind", "m.step", "m.after")}
from mine m join runs r on r.run_id = m.run_id
"""
# A statement sees what was there when it began. Whoever held the step before may have begun an effect since, and before
# the claim was made; after it nobody can.
AGAIN = f"""
select {_RUN}, {_tail("%(kind)s", "%(step)s", "%(after)s")}
from runs r where r.run_id = %(run)s
"""

LOOK = f"""
select {_RUN}, ({_EVENTS} r.run_id and e.seq > case when {_KNOWN} then r.state_seq else -1 end)
from runs r where r.run_id = any(%(runs)s::text[])
"""

SUBMIT = f"""
insert into runs as r (run_id, agent, status, executor, priority, labels, input, overrides, head_seq, state_seq,
    wake_at, created_at, updated_at)
select n.run_id, n.agent, 'queued', n.executor, n.priority, n.labels, n.input, n.overrides, -1, -1,
    greatest(n.not_before, now() + make_interval(secs => n.wake_in_s)), now(), now()
from json_to_recordset(%(new)s) as n(run_id text, agent text, executor text, priority int, labels jsonb, input text,
    overrides json, not_before timestamptz, wake_in_s float8)
order by n.run_id
on conflict do nothing
returning {_RUN}
"""

# Checks come before writes: of a run whose log has moved on, or of whose claims one is lost, nothing is written. Of
# several runs those that somebody has locked are left out: whoever waited for one would make others wait for all.
_SETTLE = f"""
with waiting as materialized (select set_config('synchronous_commit', 'off', true) where %(hasty)s),
asked as materialized (
    select * from json_to_recordset(%(moves)s) as a(run_id text, head int, new_head int, state json, status text,
        due_at timestamptz, deadline_at timestamptz, unknown int, asked int, terms json, ending text, error text,
        steps int[], tokens text[], facts json, opens json)
),
locked as materialized (
    select r.run_id, r.head_seq, r.priority, coalesce((r.state ->> 'v')::int, 0) > {STATE_VERSION} as newer
    from runs r cross join (select count(*) from waiting) w where r.run_id = any(%(runs)s::text[])
    order by r.run_id for no key update of r{{waiting}}
),
held as materialized (
    select s.run_id, s.step from asked a join locked l on l.run_id = a.run_id and l.head_seq = a.head
    cross join unnest(a.steps, a.tokens) as c(step, token)
    join steps s on s.run_id = a.run_id and s.step = c.step and s.claim = c.token
    order by s.run_id, s.step
    for update of s
),
good as materialized (
    select a.*, l.priority, l.newer from asked a join locked l on l.run_id = a.run_id and l.head_seq = a.head
    where cardinality(a.steps) = (select count(*) from held h where h.run_id = a.run_id)
),
given as (
    delete from steps s using held h, good g where g.run_id = h.run_id and s.run_id = h.run_id and s.step = h.step
),
written as (
    insert into events (run_id, seq, type, step, format, payload, ts, duration_ms, recorded_at)
    select g.run_id, g.head + f.place, f.type, f.step, {FORMAT}, f.payload, coalesce(f.ts, now()), f.duration_ms, now()
    from good g cross join json_to_recordset(g.facts) as f(place int, type text, step int, payload json, ts timestamptz,
        duration_ms float8)
),
opened as (
    insert into steps (run_id, step, kind, name, queue, priority, attempt, failures, crashes, available_at, sent_at,
        sends, on_cancel)
    select g.run_id, o.step, o.kind, o.name, o.queue, g.priority, 0, 0, 0, now(), now(), 0, o.on_cancel
    from good g cross join json_to_recordset(g.opens) as o(step int, kind text, name text, queue text, on_cancel text)
    on conflict do nothing
    returning run_id, step, kind, queue, priority, attempt, sends
),
moved as (
    update runs r set head_seq = g.new_head, status = g.status, wake_at = g.due_at, deadline_at = g.deadline_at,
        unknown = g.unknown, asked = g.asked, updated_at = now(),
        state = case when g.newer then r.state else g.state end,
        state_seq = case when g.newer then r.state_seq else g.new_head end,
        terms = coalesce(g.terms, r.terms),
        finished_at = case g.ending when 'ends' then now() when 'goes on' then null else r.finished_at end,
        error = case g.ending when 'ends' then g.error when 'goes on' then null else r.error end
    from good g where r.run_id = g.run_id
)
select g.run_id, (select json_agg(json_build_array(o.step, o.kind, o.queue, o.priority, o.attempt, o.sends)
    order by o.step) from opened o where o.run_id = g.run_id)
from good g
"""
SETTLE, SETTLE_SEVERAL = _SETTLE.replace("{waiting}", ""), _SETTLE.replace("{waiting}", " skip locked")


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
    by_token = {row[_RUN_COLUMNS]: row for row in rows}
    answers: list[Any] = []
    for ask in asks:
        row = by_token.pop(ask.token, None)
        try:
            answers.append(_claimed(db, cache, ask, known[ask.run_id], row) if row else None)
        except Exception as error:  # of one log, which is nothing to the others
            answers.append(error)
    return answers


def _claimed(db: Database, cache: Conversations, ask: Ask, beginning: Known, row: Sequence[Any]) -> Claimed:
    _, *step, tail = row[_RUN_COLUMNS:]
    kind, _, attempt, *_ = step
    if attempt > 1:
        asked = {"run": ask.run_id, "kind": kind, "step": ask.step, "after": beginning.after}
        *row, tail = db.alone(AGAIN, asked)[0]
    read = events_in(tail), len(tail or "")
    return claimed_of(cache, ask, beginning, row, step, *read, lambda: events_in(_whole(db, ask.run_id)))


def claimed_of(
    cache: Conversations,
    ask: Ask,
    beginning: Known,
    row: Sequence[Any],
    claimed: Sequence[Any],
    log: list[Event],
    size: int,
    whole: Callable[[], list[Event]],
) -> Claimed:
    """A claim from what `_RUN` selects, the `claimed` step from its kind to its category, and the events that were read
    with it, in so many bytes; `whole` reads all of them, where these are not enough."""
    kind, name, attempt, failures, crashes, lost, tries, outcome, category = claimed
    state, since, head, created_at = row[RUN_FIELDS], row[RUN_FIELDS + 1], row[7], row[9]
    if not knows(state):
        since = -1
    if kind == "tool" and since < 0:
        log = whole()
    elif kind != "tool":
        told = cache.grown(ask.run_id, created_at, beginning, log, size, head)
        log = told if told is not None else whole()
    decisions = [event for event in log if event.type == "model_decision" and (event.step or 0) < ask.step]
    if kind == "tool" and not decisions:  # of a turn before this one
        log = whole()
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
    )


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
        there = db.alone(f"select {_RUN} from runs r where r.run_id = any(%(runs)s::text[])", {"runs": known})
        rows |= {row[0]: RunRow(*row[:RUN_FIELDS]) for row in there}
    answers = []
    for run in new:
        if run.run_id not in rows:  # forgotten between the two statements
            raise UnknownRunError(run.run_id)
        answers.append((rows[run.run_id], run.run_id in fresh))
        fresh.discard(run.run_id)
    return answers


def look_together(db: Database, run_ids: Sequence[str]) -> dict[str, Look]:
    """The runs there are of these, as they stand."""
    rows = db.alone(LOOK, {"runs": list(run_ids)})
    return {row[0]: look_of(row, events_in(row[_RUN_COLUMNS])) for row in rows}


def settle_together(db: Database, bundles: Mapping[str, Sequence[Move]]) -> dict[str, list[Moved]]:
    """Write the moves of each run, which follow one on the other, all or none; the answers by run. A run that is
    missing was refused: nothing of it was written, and it is to be asked for plainly."""
    hasty = all(move.hasty for moves in bundles.values() for move in moves)
    moves = json.dumps(list(map(_bundle, bundles.values())))
    statement = SETTLE if len(bundles) == 1 else SETTLE_SEVERAL
    rows = db.alone(statement, {"moves": moves, "runs": list(bundles), "hasty": hasty})
    answers: dict[str, list[Moved]] = {}
    for run_id, opened in map(tuple, rows):
        left = {step: StepRef(run_id, step, *rest) for step, *rest in opened or ()}
        answers[run_id] = [
            Moved("ok", tuple(left.pop(one.step) for one in sorted(move.opens, key=_step) if one.step in left))
            for move in bundles[run_id]
        ]
    return answers


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


def _bundle(moves: Sequence[Move]) -> dict[str, Any]:
    last = moves[-1]
    run, facts = last.run, [fact for move in moves for fact in move.facts]
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
            for o in opens_of(moves)
        ],
    }
    for move in moves:
        for fact in move.facts:
            if fact.type == "run_started":
                bundle["terms"] = fact.payload["config"]
            elif fact.type in ("run_finished", "run_failed", "run_cancelled"):
                bundle |= {"ending": "ends", "error": fact.payload.get("error")}
        if not move.run.ended:
            bundle["ending"] = "goes on"
    return bundle


def look_of(row: Sequence[Any], tail: Sequence[Event]) -> Look:
    """The run as it stands, from what `_RUN` selects and the events after its snapshot."""
    state, state_seq, terms, now = row[RUN_FIELDS:_RUN_COLUMNS]
    run = Run.from_snapshot(state, state_seq, _terms(terms) if terms else None)
    return Look(RunRow(*row[:RUN_FIELDS]), fold(tail, onto=run), now)


def events_in(told: str | None) -> list[Event]:
    """The events that a query of `_EVENTS` gave."""
    return [
        Event(seq, lift(event_type, version), payload, ts, duration_ms, step)
        for seq, event_type, payload, ts, duration_ms, step, version in json.loads(told or "[]")
    ]


@lru_cache(maxsize=256)
def _terms(told: str) -> Terms:
    """Terms are as many as there are agents, and runs are many."""
    return Terms.from_json(json.loads(told))


def _whole(db: Database, run_id: str) -> str | None:
    told: str | None = db.alone(f"select ({_EVENTS} %(run)s)", {"run": run_id})[0][0]
    return told


def _after(log: Sequence[Event], seq: int) -> int:
    """Where in a log the events after a place can begin at the earliest: logs have no gaps, parts of them may."""
    return max(0, len(log) - (log[-1].seq - seq)) if log else 0


def _instant(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def _step(one: Any) -> int:
    return int(one.step)
