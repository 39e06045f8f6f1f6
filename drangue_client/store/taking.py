"""Taking: of the steps that moves open, those that their writer goes on with at once, on Postgres.

They are claimed by the statement that opens them, and nothing is read for them: what performing depends on is what has
just been written, and, for whoever thinks, the conversation that this process holds. Where it does not hold it the step
stays free, for whoever gets its message.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from drangue_client.events import Event
from drangue_client.store.conversations import Conversations, Known
from drangue_client.store.values import Ask, Claimed, Look, Move, Open, RunRow


class Taking:
    """The moves of one run, one behind the other, and what of it they take: `asks`, by step."""

    def __init__(self, cache: Conversations, moves: Sequence[Move]) -> None:
        self._cache = cache
        self._moves = moves
        self._before = _before(cache, moves)
        settled = {move.claim.step for move in moves if move.claim}
        self.asks = {
            ask.step: ask
            for move in moves
            if move.take
            for ask in move.take.asks
            if ask.step not in settled and self._can(ask, move)
        }

    def holds(self, ts: float | None, event_type: str | None) -> bool:
        """Whether the log that was moved on is the one that is held, by its last event; else it is held no more."""
        last = self._before.events[-1] if self._before and self._before.events else None
        same = last is None or (last.ts, last.type) == (ts, event_type)
        if not same:
            self._cache.forget(self._moves[0].run_id)
        return same

    def claimed(self, steps: set[int], now: float) -> list[Claimed]:
        """What was taken and opened, of these steps; what was written `now` is added to the conversation."""
        fresh = self._written(now)
        known = None
        if self._before is not None:
            size = sum(len(json.dumps(event.payload)) for event in fresh)
            known = self._before.grown([*self._before.events, *fresh], size, self._before.created_at)
        taken = [self._claimed(ask, known, fresh, now) for step, ask in sorted(self.asks.items()) if step in steps]
        if self._before is not None and known and (self._before.events or any(one.events for one in taken)):
            self._cache.keep(self._moves[0].run_id, known)
        return taken

    def _can(self, ask: Ask, move: Move) -> bool:
        """Whether nothing has to be read: a call is taken with its decision, a thought with the whole conversation."""
        if _open(move, ask.step).kind != "tool":
            return self._before is not None
        return any(fact.type == "model_decision" for one in self._moves for fact in one.facts)

    def _claimed(self, ask: Ask, known: Known | None, fresh: Sequence[Event], now: float) -> Claimed:
        move = next(move for move in self._moves if move.take and ask in move.take.asks)
        assert move.take is not None
        step = _open(move, ask.step)
        thinks = step.kind != "tool"
        about = known.events if thinks and known else fresh
        behind = (
            place
            for place in range(len(about) - 1, -1, -1)
            if about[place].type == "model_decision" and (about[place].step or 0) < ask.step
        )
        decided = next(behind, None)
        return Claimed(
            ask=ask,
            kind=step.kind,
            name=step.name,
            attempt=1,
            failures=0,
            crashes=0,
            lost=0,
            tries=(),
            outcome=None,
            category=None,
            look=Look(self._row(move.take.row, now), self._moves[-1].run, now),
            # Steps are numbered by what asks for them: nothing is written of one before that.
            facts=tuple(event for event in about[decided or 0 :] if event.step == ask.step),
            decision=None if decided is None else about[decided],
            events=tuple(about) if thinks else (),
            reading=known.reading if thinks and known else None,
        )

    def _row(self, row: RunRow, now: float) -> RunRow:
        run, facts = self._moves[-1].run, sum(len(move.facts) for move in self._moves)
        return replace(
            row,
            status=run.status,
            head_seq=self._moves[0].head + facts,
            error=None,
            updated_at=now,
            finished_at=None,
            wake_at=run.due_at,
            deadline_at=run.deadline_at,
            unknown=len(run.unknown),
        )

    def _written(self, now: float) -> list[Event]:
        """The events of these moves, as they would be read."""
        facts = [fact for move in self._moves for fact in move.facts]
        return [
            replace(fact.at(seq), ts=now if fact.ts is None else round(fact.ts, 6))  # Postgres counts microseconds
            for seq, fact in enumerate(facts, start=self._moves[0].head + 1)
        ]


def _before(cache: Conversations, moves: Sequence[Move]) -> Known | None:
    """The log before these moves, where this process holds it whole."""
    head, created_at = moves[0].head, next((move.take.row.created_at for move in moves if move.take), None)
    if head < 0:
        return None if created_at is None else Known((), created_at)
    known = cache.known(moves[0].run_id)
    same = bool(known.events) and known.events[-1].seq == head and created_at in (None, known.created_at)
    return known if same else None


def _open(move: Move, step: int) -> Open:
    return next(one for one in move.opens if one.step == step)
