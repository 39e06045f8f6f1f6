"""`SqlLog`: the Log on Postgres and SQLite, one plain statement after the other; what there is most of, claims and
settlements, goes together on Postgres (`together`) and by prepared strings on SQLite (`onefile`).

Locks are taken in the order run, then step, and a claim skips a step that somebody else holds: no two calls can wait
for each other. Every check of a move comes before its first write, so a refused one leaves nothing behind.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, and_, case, inspect, select, text, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.schema import CreateColumn

from drangue_client.errors import ConflictError, DatabaseUnavailable, UnknownRunError
from drangue_client.events import Event, Fact
from drangue_client.run import ENDED, MOVING
from drangue_client.store.checking import Checking
from drangue_client.store.claiming import claim_step
from drangue_client.store.conversations import Conversations
from drangue_client.store.counting import Counting
from drangue_client.store.database import Database
from drangue_client.store.forgetting import Forgetting
from drangue_client.store.holding import Holding
from drangue_client.store.listing import Listing
from drangue_client.store.onefile import claim_here, events_here, look_here, open_steps_here, settle_here, submit_here
from drangue_client.store.reading import begun, events_of, held, look_now, step_ref, unclaimed
from drangue_client.store.serving import Serving
from drangue_client.store.settling import append_facts, settle_each
from drangue_client.store.submitting import submit_run
from drangue_client.store.sweeping import Sweeping
from drangue_client.store.tables import metadata, now, runs, steps
from drangue_client.store.together import (
    claim_together,
    halted_together,
    is_chain,
    look_together,
    rows_together,
    settle_together,
    submit_together,
)
from drangue_client.store.values import (
    MOST,
    Ask,
    Claimed,
    Look,
    Move,
    Moved,
    NewRun,
    QueueState,
    RunRow,
    StepRef,
    all_of,
)

T = TypeVar("T")
Item = TypeVar("Item", NewRun, Move)


class SqlLog(Listing, Sweeping, Holding, Serving, Checking, Counting, Forgetting):
    """A Log in the database at `url`. On SQLite the tables are made on opening; on Postgres by `drangue migrate`."""

    _plain = True  # also what rides on a transaction of somebody else's, in which every statement has its place

    def __init__(self, url: str | URL, pool_size: int = 5, *, plain: bool = False) -> None:
        """With `plain` everything is done the plain way, by which the other one is measured."""
        self.db = Database(url, pool_size)
        self._plain = plain
        self._conversations: dict[int, Conversations] = {}
        if not self.db.postgres:
            self.db.run(_make_tables)

    @property
    def at_hand(self) -> bool:
        """Whether its calls are over at once, in a fraction of a millisecond and a wait for the disk, unless another
        process holds the file."""
        return not self.db.postgres

    @property
    def _onefile(self) -> bool:
        return not (self._plain or self.db.postgres)

    async def load(self, run_id: str) -> list[Event]:
        """The whole log of a run, oldest first; empty for an unknown one."""
        return self.events(run_id)

    def close(self) -> None:
        self.db.close()

    # Runs and their logs

    def submit(self, new: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
        if self._plain or not new:
            return self.db.run(lambda c: _by_run(new, lambda its: [submit_run(c, run) for run in its]))
        return (submit_here if self._onefile else submit_together)(self.db, new)

    def look(self, run_id: str) -> Look:
        if self._plain:
            return self.db.run(lambda c: look_now(c, run_id))
        try:
            return self.looks([run_id])[run_id]
        except KeyError:
            raise UnknownRunError(run_id) from None

    def looks(self, run_ids: Sequence[str]) -> dict[str, Look]:
        if not self._plain:
            return (look_here if self._onefile else look_together)(self.db, run_ids)
        found = {}
        for run_id in run_ids:
            with suppress(UnknownRunError):
                found[run_id] = self.look(run_id)
        return found

    def rows(self, run_ids: Sequence[str]) -> dict[str, RunRow]:
        return super().rows(run_ids) if self._plain or self._onefile else rows_together(self.db, run_ids)

    def events(self, run_id: str, after: int = -1) -> list[Event]:
        if self._onefile:
            return events_here(self.db, run_id, after)
        return self.db.run(lambda c: events_of(c, run_id, after))

    # Steps

    def claim(self, asks: Sequence[Ask], lease_s: float) -> list[Claimed | None]:
        if self._plain:
            return self.db.run(lambda c: [claim_step(c, ask, lease_s) for ask in asks], durable=False)
        if self._onefile:
            return claim_here(self.db, self._conversations_here(), asks, lease_s)
        answers: list[Claimed | Exception | None] = []
        for some in _some(asks):
            answers += self._claim_together(some, lease_s)
        unreadable = [ask for ask, answer in zip(asks, answers, strict=True) if isinstance(answer, Exception)]
        if unreadable:  # a newer program can read them
            self.db.run(lambda c: [c.execute(_untouched(ask)) for ask in unreadable], durable=False)
        return all_of(answers)

    def begin(self, ask: Ask, fact: Fact, *, again: bool = False) -> bool:
        def work(c: Connection) -> bool:
            run = c.execute(_locked(ask.run_id)).first()
            ours = c.execute(select(begun().label("begun")).where(*held(ask)).with_for_update(of=steps)).first()
            if run is None or run.status in ENDED or ours is None or (ours.begun and not again):
                return False
            append_facts(c, ask.run_id, run.head_seq, [fact])
            c.execute(
                update(runs).where(runs.c.run_id == ask.run_id).values(head_seq=run.head_seq + 1, updated_at=now())
            )
            return True

        try:
            return self.db.run(work)
        except ConflictError:  # this attempt has begun: the answer was lost, and it was asked again
            return False

    def halted(self, asks: Sequence[Ask]) -> set[str]:
        return super().halted(asks) if self._plain or self._onefile else halted_together(self.db, asks)

    def settle(self, moves: Sequence[Move]) -> list[Moved]:
        if self._plain:
            return self.db.run(lambda c: _by_run(moves, lambda its: settle_each(c, its)))
        bundles: dict[str, list[Move]] = {}
        for move in moves:
            bundles.setdefault(move.run_id, []).append(move)
        answers: dict[str, list[Moved | Exception]] = {}
        for some in _some([run_id for run_id, its in bundles.items() if is_chain(its)]):
            answers |= self._settle_together({run_id: bundles[run_id] for run_id in some})
        for run_id in sorted(bundles.keys() - answers.keys()):
            answers[run_id] = self._settle_plainly(bundles[run_id])
        for run_id in [run_id for run_id, its in bundles.items() if its[-1].run.status not in MOVING]:
            self._conversations_here().forget(run_id)
        places = {run_id: iter(its) for run_id, its in answers.items()}
        return all_of([next(places[move.run_id]) for move in moves])

    def _claim_together(self, asks: Sequence[Ask], lease_s: float) -> list[Claimed | Exception | None]:
        try:
            return claim_together(self.db, self._conversations_here(), asks, lease_s)
        except (DatabaseError, ValueError) as error:  # of one of them, and none was claimed
            return [error] if len(asks) == 1 else [one for ask in asks for one in self._claim_together([ask], lease_s)]

    def _settle_together(self, bundles: dict[str, list[Move]]) -> dict[str, list[Moved | Exception]]:
        try:
            settle = settle_here if self._onefile else settle_together
            return {
                run_id: list(moved) for run_id, moved in settle(self.db, self._conversations_here(), bundles).items()
            }
        except (DatabaseError, sqlite3.Error, ValueError, OverflowError):  # of one of them; which, that shows plainly
            return {}

    def _settle_plainly(self, moves: Sequence[Move]) -> list[Moved | Exception]:
        try:
            return list(self.db.run(lambda c: settle_each(c, moves)))
        except DatabaseUnavailable:
            raise
        except Exception as error:  # of one of them: written apart, each says for itself
            return [error] if len(moves) == 1 else [one for move in moves for one in self._settle_plainly([move])]

    def _conversations_here(self) -> Conversations:
        return self._conversations.setdefault(os.getpid(), Conversations())

    def open_steps(self, run_id: str) -> list[tuple[StepRef, float, bool]]:
        if self._onefile:
            return open_steps_here(self.db, run_id)
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

    # What sweeps look for stands in `sweeping`.

    def queues(self, patience_s: float, limit: int = 100) -> list[QueueState]:
        return self._queues(patience_s, limit)


def _by_run(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[T]]) -> list[T]:
    """Do `work` on the items of each run, run after run by their ids, so that two batches never wait for each other;
    answers in the items' order."""
    of: dict[str, list[Item]] = {}
    for item in items:
        of.setdefault(item.run_id, []).append(item)
    answers = {run_id: iter(work(of[run_id])) for run_id in sorted(of)}
    return [next(answers[item.run_id]) for item in items]


def _some(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + MOST] for start in range(0, len(items), MOST))


def _make_tables(c: Connection) -> None:
    """On SQLite: make what is missing, also the columns that a file of an older program lacks."""
    metadata.create_all(c)
    for table in metadata.sorted_tables:
        there = {column["name"] for column in inspect(c).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                c.execute(text(f"alter table {table.name} add column {CreateColumn(column).compile(c.engine)}"))


def _untouched(ask: Ask) -> Any:
    """What takes a claim back as if it had not been made; a sweep sends the step again in its time."""
    return update(steps).where(*held(ask)).values(**unclaimed(None), attempt=steps.c.attempt - 1)


def _locked(run_id: str) -> Any:
    return select(runs.c.head_seq, runs.c.status).where(runs.c.run_id == run_id).with_for_update(key_share=True)
