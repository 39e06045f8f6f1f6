"""The conformance checks of stores find what they are for: stores that are almost right are told what is not."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import text

from drangue_client.events import Event
from drangue_client.store.values import Ask, Claimed, Move, Moved, NewRun, RunRow
from drangue_worker import InMemoryStore
from drangue_worker.testing import (
    check_store,
    check_store_claims,
    check_store_idempotent_append,
    check_store_with_agent,
)
from tests.kit.anything import Unprintable


class Guessing(InMemoryStore):
    """Takes every run for one there is."""

    def look(self, run_id: str) -> Any:
        return None if not self.events(run_id) else super().look(run_id)


class Backwards(InMemoryStore):
    """Gives the newest event first."""

    def events(self, run_id: str, after: int = -1) -> list[Event]:
        return super().events(run_id, after)[::-1]


class Timeless(InMemoryStore):
    """Keeps no durations."""

    def events(self, run_id: str, after: int = -1) -> list[Event]:
        return [dataclasses.replace(event, duration_ms=None) for event in super().events(run_id, after)]


class Late(InMemoryStore):
    """Dates an event by its own clock, whenever it happened."""

    def events(self, run_id: str, after: int = -1) -> list[Event]:
        return [dataclasses.replace(event, ts=2e9) for event in super().events(run_id, after)]


class Mixing(InMemoryStore):
    """Does not tell runs apart once there are two."""

    first = ""

    def submit(self, new: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
        self.first = self.first or new[0].run_id
        return super().submit(new)

    def events(self, run_id: str, after: int = -1) -> list[Event]:
        return super().events(self.first if super().events(run_id) else run_id, after)


class Sharing(InMemoryStore):
    """Hands out what it holds, so that every reader can change it."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[tuple[str, int], Event] = {}

    def events(self, run_id: str, after: int = -1) -> list[Event]:
        return [self.held.setdefault((run_id, event.seq), event) for event in super().events(run_id, after)]


class Whole(InMemoryStore):
    """Gives the whole log, whatever place was asked for."""

    def events(self, run_id: str, after: int = -1) -> list[Event]:
        return super().events(run_id)


class Emptied(InMemoryStore):
    """Loads nothing."""

    async def load(self, run_id: str) -> list[Event]:
        return []


class Stale(InMemoryStore):
    """Tells the head of a run by what it was first."""

    def look(self, run_id: str) -> Any:
        look = super().look(run_id)
        head = 0 if self.events(run_id)[2:] else look.row.head_seq
        return dataclasses.replace(look, row=dataclasses.replace(look.row, head_seq=head))


class Renewing(InMemoryStore):
    """Calls every submission a new run."""

    def submit(self, new: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
        return [(row, True) for row, _ in super().submit(new)]


class Replacing(InMemoryStore):
    """Takes the input that was submitted last."""

    def submit(self, new: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
        for run in new:
            self.db.run(lambda c, run=run: c.execute(text("update runs set input = :input"), {"input": run.input}))
        return super().submit(new)


class Overwriting(InMemoryStore):
    """Writes a move wherever its log ends by now."""

    def settle(self, moves: Sequence[Move]) -> list[Moved]:
        heads = [self.look(move.run_id).row.head_seq for move in moves]
        return super().settle([dataclasses.replace(move, head=head) for move, head in zip(moves, heads, strict=True)])


class Silent(InMemoryStore):
    """Refuses a move without saying where the log stands."""

    def settle(self, moves: Sequence[Move]) -> list[Moved]:
        return [dataclasses.replace(moved, look=None) for moved in super().settle(moves)]


class Twice(InMemoryStore):
    """Lets a step have two results."""

    def __init__(self) -> None:
        super().__init__()
        self.db.run(lambda c: c.execute(text("drop index ux_events_once")))


class Again(InMemoryStore):
    """Lets an attempt begin twice."""

    def __init__(self) -> None:
        super().__init__()
        self.db.run(lambda c: c.execute(text("drop index ux_events_attempt")))


class Unfenced(InMemoryStore):
    """Lets anybody settle a step."""

    def settle(self, moves: Sequence[Move]) -> list[Moved]:
        return super().settle([dataclasses.replace(move, claim=None) for move in moves])


class Trusting(InMemoryStore):
    """Says of every beginning that it is the first."""

    def begin(self, ask: Ask, fact: Any, *, again: bool = False) -> bool:
        return super().begin(ask, fact) or True


class Open(InMemoryStore):
    """Gives a step to whoever asks."""

    def claim(self, asks: Sequence[Ask], lease_s: float) -> list[Claimed | None]:
        self.db.run(lambda c: c.execute(text("update steps set lease_until = 0")))
        return super().claim(asks, lease_s)


class Counting(InMemoryStore):
    """Counts every claim, a repeated one too."""

    def claim(self, asks: Sequence[Ask], lease_s: float) -> list[Claimed | None]:
        self.db.run(lambda c: c.execute(text("update steps set attempt = attempt + 1 where claim is not null")))
        return super().claim(asks, lease_s)


class Everybodys(InMemoryStore):
    """Gives a step of a run in one process to a fleet."""

    def claim(self, asks: Sequence[Ask], lease_s: float) -> list[Claimed | None]:
        return super().claim([dataclasses.replace(ask, executor="inline") for ask in asks], lease_s)


class Strict(InMemoryStore):
    """Takes a claim away the moment it lapses."""

    def renew(self, asks: Sequence[Ask], lease_s: float) -> set[str]:
        kept = super().renew(asks, lease_s)
        return kept if lease_s > 0 else set()


class Loyal(InMemoryStore):
    """Renews claims that are somebody else's by now."""

    def renew(self, asks: Sequence[Ask], lease_s: float) -> set[str]:
        super().renew(asks, lease_s)
        return {ask.token for ask in asks}


class Forgetful(InMemoryStore):
    """Keeps no outcomes."""

    def keep(self, ask: Ask, outcome: dict[str, Any]) -> bool:
        return super().keep(ask, outcome) and super().keep(ask, {})


class Holding(InMemoryStore):
    """Gives nothing back."""

    def release(self, releases: Sequence[Any]) -> list[Any]:
        return [None for _ in releases]


class Idle(InMemoryStore):
    """Shows no open steps."""

    def open_steps(self, run_id: str) -> list[Any]:
        return []


class Restarting(InMemoryStore):
    """Takes a finished run for one that goes on."""

    def look(self, run_id: str) -> Any:
        look = super().look(run_id)
        return dataclasses.replace(look, run=dataclasses.replace(look.run, ended=None, answer=None))


STORES: list[tuple[Callable[..., Any], type[InMemoryStore], str]] = [
    (check_store, Guessing, "looking at an unknown run: expected UnknownRunError; it gave None"),
    (check_store, Backwards, r"the places of three events.*expected \[0, 1, 2\]; found \[2, 1, 0\]"),
    (check_store, Timeless, "what was written of an event"),
    (check_store, Late, "the time that was written"),
    (check_store, Mixing, "the log of another run"),
    (check_store, Sharing, "a log whose reader has changed what he was given"),
    (check_store, Whole, "the events after a place"),
    (check_store, Emptied, "a log that is loaded"),
    (check_store, Stale, r"head and status of the run's row: expected \(2, 'completed'\); found \(0"),
    (check_store_idempotent_append, Renewing, "whether a run is new, submitted twice"),
    (check_store_idempotent_append, Replacing, "a run that was submitted again with another input"),
    (check_store_idempotent_append, Overwriting, "decided before the log went on"),
    (check_store_idempotent_append, Silent, "the run as it is now, with a move that was refused"),
    (check_store_idempotent_append, Twice, "a second model_decision of one step: expected ConflictError"),
    (check_store_idempotent_append, Again, "a second step_started of one step: expected ConflictError"),
    (check_store_idempotent_append, Unfenced, "somebody who does not hold the step: expected 'lost'; found 'ok'"),
    (check_store_idempotent_append, Trusting, "no beginning of a step by somebody who does not hold it"),
    (check_store_idempotent_append, Idle, "the open steps after a refused move"),
    (check_store_claims, Open, "a claim of a step that is held"),
    (check_store_claims, Counting, "asked for again with the same token: expected 1; found 3"),
    (check_store_claims, Everybodys, "a claim for those whose run it is not"),
    (check_store_claims, Strict, "by one that has just lapsed"),
    (check_store_claims, Loyal, "the tokens still held: expected"),
    (check_store_claims, Forgetful, "what the one before has kept"),
    (check_store_claims, Unfenced, "the verdict on a result that is late: expected 'lost'"),
    (check_store_claims, Holding, "a holder to give a step back"),
    (check_store_with_agent, Restarting, "the result of a run that is read again"),
]


@pytest.mark.parametrize(("check", "store", "message"), STORES, ids=lambda one: getattr(one, "__name__", ""))
def test_a_store_that_is_almost_right_is_told_what_is_not(check: Any, store: Any, message: str) -> None:
    """Each of these has lost or doubled somebody's work somewhere."""
    with pytest.raises(AssertionError, match=message):
        asyncio.run(check(store))


CHECKS = [check_store, check_store_idempotent_append, check_store_claims, check_store_with_agent]


@pytest.mark.parametrize("check", CHECKS, ids=lambda one: one.__name__)
def test_a_check_wants_a_factory_and_says_so(check: Any) -> None:
    """A store that is handed in already made may have been used before."""
    with pytest.raises(TypeError, match=r"factory is .*; it must be a function or a class that gives a store"):
        asyncio.run(check(Unprintable()))


@pytest.mark.parametrize("check", CHECKS, ids=lambda one: one.__name__)
def test_a_store_is_closed_after_its_check(check: Any) -> None:
    """A suite that checks a hundred stores must not end with a hundred connections."""
    made: list[Closing] = []

    def make() -> Closing:
        made.append(Closing())
        return made[-1]

    asyncio.run(check(make))
    assert [store.closed for store in made] == [1]


class Closing(InMemoryStore):
    """Counts how often it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()
