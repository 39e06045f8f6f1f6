"""Turns: what is said to a run after its answer, how a turn is ended from outside, or taken up again.

One rule for applications and for agents in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from drangue_client import checks
from drangue_client.errors import ConflictError, InFlightError, TurnExistsError
from drangue_client.events import Event, Fact, normalise
from drangue_client.outcomes import cancelled, unknown_outcome
from drangue_client.run import OVER, fold
from drangue_client.store.port import Held, Kind, Log, Move, RunRow, StepRef
from drangue_client.wire.queue import HANDOFF_S


def say(log: Log, run_id: str, text: str, turn_id: str | None = None) -> tuple[RunRow, bool]:
    """Begin another turn of a run, under the run's lock; True where it is new.

    The same `turn_id` twice is one turn, whatever has happened since, so repeating is safe with one; with another text
    it is a TurnExistsError. Raises InFlightError while the latest turn has not ended, or has failed, and
    UnknownRunError.
    """
    checks.text("run_id", run_id)
    text, turn_id = normalise(text), normalise(turn_id)
    look = log.look(run_id)
    while True:
        if turn_id is not None:
            said = turns(look.row, log.events(run_id)).get(turn_id)
            if said is not None and said != text:
                raise TurnExistsError(run_id, turn_id)
            if said is not None:
                return look.row, False
        never_began = look.run.terms is None
        if look.run.ended not in OVER or never_began or _is_stopping(log, look.row):
            raise InFlightError(run_id, look.row.status)
        fact = Fact("user_message", {"text": text} | ({} if turn_id is None else {"turn_id": turn_id}))
        run = fold([fact.at(look.run.seq + 1)], onto=look.run)
        # What was given back since the turn was over must not be taken for a part of the new one.
        moved = log.settle([Move(run_id, look.row.head_seq, run, facts=(fact,), clear=True, wake_in_s=HANDOFF_S)])[0]
        if moved.verdict == "ok":
            return look.row, True
        assert moved.look is not None
        look = moved.look


def resume(log: Log, run_id: str, *, by: str = "resume", reason: str = "") -> tuple[RunRow, tuple[StepRef, ...]]:
    """Take a failed run up again where it failed, its steps with fresh retries; returns the steps to be sent.

    A run that has not failed is left as it is. Raises UnknownRunError.
    """
    checks.text("run_id", run_id)
    checks.text("by", by)
    checks.text("reason", reason, hidden=True)
    look = log.look(run_id)
    while look.run.ended == "failed":
        fact = resumed(by, reason)
        run = fold([fact.at(look.run.seq + 1)], onto=look.run)
        move = Move(run_id, look.row.head_seq, run, facts=(fact,), reopen=True, wake_in_s=HANDOFF_S)
        moved = log.settle([move])[0]
        if moved.verdict == "ok":
            return look.row, moved.opened
        assert moved.look is not None
        look = moved.look
    return look.row, ()


def cancel(log: Log, run_id: str, *, by: str = "", reason: str = "") -> tuple[RunRow, bool]:
    """End the turn that a run is at: nothing new is begun, what is under way is told to stop. True where it was done.

    A run whose turn has ended, be it by failure, is left as it is. Raises UnknownRunError.
    """
    checks.text("run_id", run_id)
    checks.text("by", by)
    checks.text("reason", reason, hidden=True)
    look = log.look(run_id)
    while look.run.ended is None:
        # One more than was given out: the next thought may have been opened, and not have been recorded.
        fact = Fact("run_cancelled", {"by": by, "reason": reason, "last_step": look.run.last_step + 1})
        run = fold([fact.at(look.run.seq + 1)], onto=look.run)
        moved = log.settle([Move(run_id, look.row.head_seq, run, facts=(fact,), clear=True)])[0]
        if moved.verdict == "ok":
            return look.row, True
        assert moved.look is not None
        look = moved.look
    return look.row, False


def close(log: Log, held: Held) -> None:
    """Record what a step came to whose turn is over and which nobody works on any more; repeating is safe."""
    run_id, step = held.ask.run_id, held.ask.step
    look = log.look(run_id)
    events = log.events(run_id)
    begun = any(event.type == "step_started" and event.step == step for event in events)
    fact = stopped(held.kind, step, held.name, called_at(step, events), begun)
    judged = look.run.terms is not None and look.run.terms.guards is not None and look.run.terms.guards.result
    if held.outcome is not None and not judged:  # kept, and only its record was missing
        fact = replace(fact, payload={**fact.payload, "content": held.outcome["content"]})
    claim = held.ask if held.ask.token else None
    while True:
        run = fold([fact.at(look.run.seq + 1)], onto=look.run)
        try:
            moved = log.settle([Move(run_id, look.row.head_seq, run, facts=(fact,), claim=claim, clear=True)])[0]
        except ConflictError:
            return  # somebody else has closed it meanwhile
        if moved.look is None or moved.look.run.ended not in OVER:
            return
        look = moved.look


def called_at(step: int, events: Sequence[Event]) -> str:
    """The id of the call that this step performs; empty for other steps."""
    decisions = [event for event in events if event.type == "model_decision" and (event.step or 0) < step]
    calls = decisions[-1].payload["tool_calls"] if decisions else []
    place = step - (decisions[-1].step or 0) - 1 if decisions else 0
    return str(calls[place]["id"]) if 0 <= place < len(calls) else ""


def stopped(kind: Kind, step: int, name: str | None, call_id: str, begun: bool) -> Fact:
    """What is recorded of a step that was stopped since its turn is over; `begun` of an irreversible call."""
    if kind != "tool":
        return Fact("step_stopped", {"kind": kind}, step)
    tool = name or ""
    content = unknown_outcome(tool) if begun else cancelled(tool)
    return Fact("tool_result", {"call_id": call_id, "name": tool, "content": content}, step)


def _is_stopping(log: Log, row: RunRow) -> bool:
    """Whether something of a turn that is over may still be recorded; what nobody will record any more is closed."""
    left = log.held(row.run_id)
    for held in left:
        if not held.live:
            close(log, held)
    return any(held.live for held in left)


def resumed(by: str = "resume", reason: str = "") -> Fact:
    """The fact that a failed run was taken up again."""
    return Fact("run_resumed", {"by": by, "reason": reason})


def turns(row: RunRow, events: list[Event]) -> dict[str, str]:
    """What was said in the turns that have an id, {turn_id: text}."""
    first = {row.overrides["turn_id"]: row.input} if "turn_id" in row.overrides else {}
    later = [event.payload for event in events if event.type == "user_message"]
    return first | {payload["turn_id"]: payload["text"] for payload in later if "turn_id" in payload}


def check_turn_id(turn_id: str | None) -> str | None:
    """A turn id as a log holds it. TypeError or ValueError for what cannot name a turn."""
    named: str | None = normalise(checks.text("turn_id", turn_id, most=checks.LONGEST_NAME, optional=True))
    return named
