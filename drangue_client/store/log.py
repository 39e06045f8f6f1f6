"""`SqlLog`: the Log on Postgres and SQLite, one plain statement after the other.

Locks are taken in the order run, then step, and a claim skips a step that somebody else holds: no two calls can wait
for each other. Every check of a move comes before its first write, so a refused one leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    Connection,
    RowMapping,
    and_,
    case,
    delete,
    exists,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError

from drangue_client.errors import ConflictError, UnknownRunError
from drangue_client.events import FORMAT, Event, Fact, lift, normalise
from drangue_client.run import Run, fold, knows
from drangue_client.store.database import Database
from drangue_client.store.port import (
    AgentRow,
    Ask,
    Claimed,
    Look,
    Move,
    Moved,
    NewRun,
    Open,
    QueueState,
    Release,
    RunRow,
    StepRef,
)
from drangue_client.store.sweeping import Sweeping, run_row, step_ref
from drangue_client.store.tables import agents, events, metadata, now, runs, steps

T = TypeVar("T")
Item = TypeVar("Item", NewRun, Move)

ENDED = ("completed", "failed", "cancelled")


class SqlLog(Sweeping):
    """A Log in the database at `url`. On SQLite the tables are made on opening; on Postgres by `drangue migrate`."""

    def __init__(self, url: str | URL, pool_size: int = 5) -> None:
        self.db = Database(url, pool_size)
        if not self.db.postgres:
            self.db.run(metadata.create_all)

    async def load(self, run_id: str) -> list[Event]:
        """The whole log of a run, oldest first; empty for an unknown one."""
        return self.events(run_id)

    def close(self) -> None:
        self.db.close()

    # Runs and their logs

    def submit(self, new: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
        return self.db.run(lambda c: _in_order(new, lambda run: _submit(c, run)))

    def look(self, run_id: str) -> Look:
        def work(c: Connection) -> Look:
            row = _row(c, run_id)
            return _look(row, _events(c, run_id, after=_folded(row)))

        return self.db.run(work)

    def events(self, run_id: str, after: int = -1) -> list[Event]:
        return self.db.run(lambda c: _events(c, run_id, after))

    def runs(self, *, status: str | None = None, agent: str | None = None, limit: int = 50) -> list[RunRow]:
        query = select(runs).order_by(runs.c.created_at.desc(), runs.c.run_id).limit(limit)
        if status:
            query = query.where(runs.c.status == status)
        if agent:
            query = query.where(runs.c.agent == agent)
        return self.db.run(lambda c: [run_row(row) for row in c.execute(query).mappings()])

    # Steps

    def claim(self, asks: Sequence[Ask], lease_s: float) -> list[Claimed | None]:
        return self.db.run(lambda c: [_claim(c, ask, lease_s) for ask in asks], durable=False)

    def begin(self, ask: Ask, fact: Fact) -> bool:
        def work(c: Connection) -> bool:
            head = c.execute(_locked(ask.run_id)).scalar()
            ours = c.execute(select(steps.c.step).where(*_held(ask)).with_for_update()).first()
            began = select(events.c.seq).where(
                events.c.run_id == ask.run_id, events.c.step == ask.step, events.c.type == "step_started"
            )
            if head is None or ours is None or c.execute(began.limit(1)).first() is not None:
                return False
            _append(c, ask.run_id, head, [fact])
            c.execute(update(runs).where(runs.c.run_id == ask.run_id).values(head_seq=head + 1, updated_at=now()))
            return True

        return self.db.run(work)

    def renew(self, asks: Sequence[Ask], lease_s: float) -> set[str]:
        keys = [(ask.run_id, ask.step) for ask in asks]
        held = and_(tuple_(steps.c.run_id, steps.c.step).in_(keys), steps.c.claim.in_([ask.token for ask in asks]))

        def work(c: Connection) -> set[str]:
            free = (
                select(steps.c.run_id, steps.c.step)
                .where(held)
                .order_by(steps.c.run_id, steps.c.step)
                .with_for_update(skip_locked=True)
            )
            c.execute(
                update(steps)
                .where(tuple_(steps.c.run_id, steps.c.step).in_(free), held)
                .values(lease_until=now(lease_s))
            )
            # Asked apart, since a row that somebody has locked just now was skipped above and is still held.
            return set(c.execute(select(steps.c.claim).where(held)).scalars())

        return self.db.run(work, durable=False) if asks else set()

    def release(self, releases: Sequence[Release]) -> list[StepRef | None]:
        def one(c: Connection, release: Release) -> StepRef | None:
            given_back = (
                update(steps)
                .where(*_held(release.ask))
                .values(
                    **_unclaimed(release.delay_s),
                    failures=steps.c.failures + int(release.failed),
                    category=release.category,
                )
                .returning(*steps.c)
            )
            row = c.execute(given_back).mappings().first()
            return step_ref(row) if row else None

        return self.db.run(lambda c: [one(c, release) for release in releases], durable=False)

    def release_worker(self, worker: str) -> list[StepRef]:
        given_back = update(steps).where(steps.c.worker == worker).values(**_unclaimed(0)).returning(*steps.c)
        return self.db.run(lambda c: [step_ref(row) for row in c.execute(given_back).mappings()], durable=False)

    def settle(self, moves: Sequence[Move]) -> list[Moved]:
        return self.db.run(lambda c: _in_order(moves, lambda move: _settle(c, move)))

    def open_steps(self, run_id: str) -> list[tuple[StepRef, float, bool]]:
        live = and_(steps.c.claim.is_not(None), steps.c.lease_until > now())
        query = (
            select(steps, now().label("now"), case((live, 1), else_=0).label("live"))
            .join(runs, runs.c.run_id == steps.c.run_id)
            .where(steps.c.run_id == run_id, runs.c.status.not_in(ENDED))
        )
        return self.db.run(
            lambda c: [
                (step_ref(row), max(0.0, row["available_at"] - row["now"]), bool(row["live"]))
                for row in c.execute(query.order_by(steps.c.step)).mappings()
            ]
        )

    # Agents

    def register(self, rows: Sequence[AgentRow]) -> None:
        make = postgres_insert if self.db.postgres else sqlite_insert

        def work(c: Connection) -> None:
            for row in sorted(rows, key=lambda row: row.name):
                values = {"fingerprint": row.fingerprint, "summary": row.summary, "seen_at": now()}
                c.execute(
                    make(agents)
                    .values(name=row.name, **values)
                    .on_conflict_do_update(index_elements=["name"], set_=values)
                )

        self.db.run(work, durable=False)

    def agents(self) -> list[AgentRow]:
        query = select(agents).order_by(agents.c.name)
        return self.db.run(
            lambda c: [
                AgentRow(row["name"], row["fingerprint"], row["summary"], row["seen_at"])
                for row in c.execute(query).mappings()
            ]
        )

    # What sweeps look for stands in `sweeping`.

    def queues(self, patience_s: float, limit: int = 100) -> list[QueueState]:
        return self._queues(patience_s, limit)


def _in_order(items: Sequence[Item], work: Callable[[Item], T]) -> list[T]:
    """Do `work` on items ordered by run, so that two batches never wait for each other; answers in the items' order."""
    done = {index: work(items[index]) for index in sorted(range(len(items)), key=lambda index: items[index].run_id)}
    return [done[index] for index in range(len(items))]


def _unclaimed(delay_s: float) -> dict[str, Any]:
    return {
        "claim": None,
        "worker": None,
        "lease_until": None,
        "kill_at": None,
        "available_at": now(delay_s),
        "sent_at": now(),
    }


def _held(ask: Ask) -> tuple[Any, ...]:
    return steps.c.run_id == ask.run_id, steps.c.step == ask.step, steps.c.claim == ask.token


def _locked(run_id: str) -> Any:
    return select(runs.c.head_seq).where(runs.c.run_id == run_id).with_for_update(key_share=True)


def _submit(c: Connection, run: NewRun) -> tuple[RunRow, bool]:
    make = postgres_insert if c.dialect.name == "postgresql" else sqlite_insert
    inserted = c.execute(
        make(runs)
        .values(
            run_id=run.run_id,
            agent=run.agent,
            status="queued",
            executor=run.executor,
            priority=run.priority,
            labels=normalise(run.labels),
            input=normalise(run.input),
            overrides={},
            head_seq=-1,
            state_seq=-1,
            wake_at=now(run.wake_in_s),
            created_at=now(),
            updated_at=now(),
        )
        .on_conflict_do_nothing()
        .returning(*runs.c)
    )
    row = inserted.mappings().first()
    return (run_row(row), True) if row else (run_row(_row(c, run.run_id)), False)


def _row(c: Connection, run_id: str, *, lock: bool = False) -> RowMapping:
    query = select(runs, now().label("now")).where(runs.c.run_id == run_id)
    row = c.execute(query.with_for_update(of=runs, key_share=True) if lock else query).mappings().first()
    if row is None:
        raise UnknownRunError(run_id)
    return row


def _folded(row: RowMapping) -> int:
    """How far the snapshot has folded the log; -1 where this program cannot read the snapshot."""
    return int(row["state_seq"]) if knows(row["state"]) else -1


def _look(row: RowMapping, tail: Sequence[Event]) -> Look:
    run = fold(tail, onto=Run.from_snapshot(row["state"], row["state_seq"], row["terms"]))
    return Look(run_row(row), run, row["now"])


def _events(c: Connection, run_id: str, after: int = -1, *more: Any) -> list[Event]:
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


def _append(c: Connection, run_id: str, head: int, facts: Sequence[Fact]) -> None:
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


def _claim(c: Connection, ask: Ask, lease_s: float) -> Claimed | None:
    of_run = exists().where(runs.c.run_id == ask.run_id, runs.c.executor == ask.executor, runs.c.status.not_in(ENDED))
    free = (
        select(steps.c.step)
        .where(
            steps.c.run_id == ask.run_id,
            steps.c.step == ask.step,
            or_(steps.c.claim.is_(None), steps.c.lease_until < now(), steps.c.claim == ask.token),
            steps.c.available_at <= now(),
            of_run,
        )
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    # Asked again after a lost answer: the claim is ours already and must not count twice.
    anew = case((steps.c.claim == ask.token, 0), else_=1)
    crashed = case((or_(steps.c.claim.is_(None), steps.c.claim == ask.token), 0), else_=1)
    taken = (
        update(steps)
        .where(steps.c.run_id == ask.run_id, steps.c.step == free)
        .values(
            claim=ask.token,
            worker=ask.worker,
            lease_until=now(lease_s),
            attempt=steps.c.attempt + anew,
            crashes=steps.c.crashes + crashed,
            sends=0,
        )
        .returning(*steps.c)
    )
    step = c.execute(taken).mappings().first()
    if step is None:
        return None
    row = _row(c, ask.run_id)
    folded = _folded(row)
    if step["kind"] == "model" or folded < 0:
        log = _events(c, ask.run_id)
    else:
        decision = and_(events.c.type == "model_decision", events.c.step == row["state"]["decision"])
        log = _events(c, ask.run_id, folded, events.c.step == ask.step, decision)
    look = _look(row, [event for event in log if event.seq > folded])
    decisions = [event for event in log if event.type == "model_decision" and (event.step or 0) < ask.step]
    return Claimed(
        ask=ask,
        kind=step["kind"],
        name=step["name"],
        attempt=step["attempt"],
        failures=step["failures"],
        crashes=step["crashes"],
        outcome=step["outcome"],
        look=look,
        facts=tuple(event for event in log if event.step == ask.step),
        decision=decisions[-1] if decisions else None,
        events=tuple(log) if step["kind"] == "model" else (),
    )


def _settle(c: Connection, move: Move) -> Moved:
    row = _row(c, move.run_id, lock=True)
    if row["head_seq"] != move.head:
        return Moved("moved", look=_look(row, _events(c, move.run_id, after=_folded(row))))
    if move.claim is not None and not _give_up_claim(c, move.claim, park=move.park):
        return Moved("lost")
    _append(c, move.run_id, move.head, move.facts)
    opened = _open(c, row, move.opens, reopen=move.reopen)
    c.execute(update(runs).where(runs.c.run_id == move.run_id).values(_projections(row, move)))
    return Moved("ok", opened=tuple(opened))


def _projections(row: RowMapping, move: Move) -> dict[str, Any]:
    """What the run's row says after a move, all of it derivable from the log."""
    run = move.run
    values: dict[str, Any] = {
        "head_seq": move.head + len(move.facts),
        "status": run.status,
        "wake_at": None if move.wake_in_s is None or run.ended else now(move.wake_in_s),
        "updated_at": now(),
    }
    if row["state"] is None or knows(row["state"]):  # a newer program's snapshot is left alone; readers fold the tail
        values |= {"state": run.to_snapshot(), "state_seq": run.seq}
    for fact in move.facts:
        if fact.type == "run_started":
            values["terms"] = fact.payload["config"]
        elif fact.type in ("run_finished", "run_failed", "run_cancelled"):
            values |= {"finished_at": now(), "error": fact.payload.get("error")}
    if not run.ended:
        values |= {"finished_at": None, "error": None}
    return values


def _give_up_claim(c: Connection, claim: Ask, *, park: bool) -> bool:
    if park:
        return bool(c.execute(update(steps).where(*_held(claim)).values(**_unclaimed(0))).rowcount)
    return bool(c.execute(delete(steps).where(*_held(claim))).rowcount)


def _open(c: Connection, row: RowMapping, opens: Sequence[Open], *, reopen: bool) -> list[StepRef]:
    opened: list[StepRef] = []
    if reopen:
        parked = (
            update(steps)
            .where(steps.c.run_id == row["run_id"], steps.c.claim.is_(None))
            .values(**_unclaimed(0), failures=0, crashes=0, sends=0)
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
            }
            for step in opens
        ]
        inserted = c.execute(make(steps).values(fresh).on_conflict_do_nothing().returning(*steps.c))
        opened += [step_ref(step) for step in inserted.mappings()]
    return sorted(opened, key=lambda ref: ref.step)
