"""Turns: what is said to a run after its answer, how a turn is ended from outside, or taken up again.

One rule for applications and for agents in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from drangue_client import checks
from drangue_client.appending import append
from drangue_client.errors import ConflictError, InFlightError, TurnExistsError
from drangue_client.events import Event, Fact, normalise
from drangue_client.outcomes import cancelled, unknown_outcome
from drangue_client.run import OVER
from drangue_client.store.port import Log
from drangue_client.store.values import Held, Kind, Look, RunRow, StepRef
from drangue_client.wire.queue import HANDOFF_S


def say(log: Log, run_id: str, text: str, turn_id: str | None = None) -> tuple[RunRow, bool]:
    """Begin another turn of a run, under the run's lock; True where it is new.

    The same `turn_id` twice is one turn, whatever has happened since, so repeating is safe with one; with another text
    it is a TurnExistsError. Raises InFlightError while the latest turn has not ended, or has failed, and
    UnknownRunError.
    """
    checks.text("run_id", run_id)
    text, turn_id = normalise(text), normalise(turn_id)

    def turn(look: Look) -> Sequence[Fact]:
        if turn_id is not None:
            said = turns(look.row, log.events(run_id)).get(turn_id)
            if said is not None and said != text:
                raise TurnExistsError(run_id, turn_id)
            if said is not None:
                return ()
        terms = look.run.terms
        if look.run.ended not in OVER or terms is None or _is_stopping(log, look.row):
            raise InFlightError(run_id, look.row.status)
        named = {} if turn_id is None else {"turn_id": turn_id}
        return (Fact("user_message", {"text": text, **named, **terms.deadline(look.now)}),)

    # What was given back since the turn was over must not be taken for a part of the new one.
    look, moved = append(log, run_id, turn, clear=True, wake_in_s=HANDOFF_S)
    return look.row, moved is not None


def resume(log: Log, run_id: str, *, by: str = "resume", reason: str = "") -> tuple[RunRow, tuple[StepRef, ...]]:
    """Take a failed run up again where it failed, its steps with fresh retries; returns the steps to be sent.

    A run that has not failed is left as it is. Raises UnknownRunError.
    """
    checks.text("run_id", run_id)
    checks.text("by", by)
    checks.text("reason", reason, hidden=True)

    def again(look: Look) -> Sequence[Fact]:
        return (resumed(look, by, reason),) if look.run.ended == "failed" else ()

    look, moved = append(log, run_id, again, reopen=True, wake_in_s=HANDOFF_S)
    return look.row, moved.opened if moved else ()


def resumed(look: Look, by: str = "resume", reason: str = "") -> Fact:
    """The fact that a failed run is taken up again; its turn has its whole time once more."""
    deadline = look.run.terms.deadline(look.now) if look.run.terms else {}
    return Fact("run_resumed", {"by": by, "reason": reason, **deadline})


def cancel(log: Log, run_id: str, *, by: str = "", reason: str = "") -> tuple[RunRow, bool]:
    """End the turn that a run is at: nothing new is begun, what is under way is told to stop. True where it was done.

    A run whose turn has ended, be it by failure, is left as it is. Raises UnknownRunError.
    """
    checks.text("run_id", run_id)
    checks.text("by", by)
    checks.text("reason", reason, hidden=True)

    def end(look: Look) -> Sequence[Fact]:
        # One more than was given out: the next thought may have been opened, and not have been recorded.
        told = {"by": by, "reason": reason, "last_step": look.run.last_step + 1}
        return () if look.run.ended else (Fact("run_cancelled", told),)

    look, moved = append(log, run_id, end, clear=True)
    return look.row, moved is not None


def close(log: Log, held: Held) -> None:
    """Record what a step came to whose turn is over and which nobody works on any more; repeating is safe."""
    run_id, step = held.ask.run_id, held.ask.step
    events = log.events(run_id)
    begun = any(event.type == "step_started" and event.step == step for event in events)
    fact = stopped(held.kind, step, held.name, called_at(step, events), begun)

    def end(look: Look) -> Sequence[Fact]:
        judged = look.run.terms is not None and look.run.terms.guards is not None and look.run.terms.guards.result
        if look.run.ended not in OVER:
            return ()
        if held.outcome is None or judged:
            return (fact,)
        told = {name: value for name, value in fact.payload.items() if name != "unknown"}
        return (replace(fact, payload=told | {"content": held.outcome["content"]}),)  # kept, and not recorded yet

    # Where somebody else has closed it meanwhile, it is recorded.
    with suppress(ConflictError):
        append(log, run_id, end, claim=held.ask if held.ask.token else None, clear=True)


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
    told: dict[str, Any] = (
        {"content": unknown_outcome(tool), "unknown": True} if begun else {"content": cancelled(tool)}
    )
    return Fact("tool_result", {"call_id": call_id, "name": tool, **told}, step)


def _is_stopping(log: Log, row: RunRow) -> bool:
    """Whether something of a turn that is over may still be recorded; what nobody will record any more is closed."""
    left = log.held(row.run_id)
    for held in left:
        if not held.live:
            close(log, held)
    return any(held.live for held in left)


def turns(row: RunRow, events: list[Event]) -> dict[str, str]:
    """What was said in the turns that have an id, {turn_id: text}."""
    first = {row.overrides["turn_id"]: row.input} if "turn_id" in row.overrides else {}
    later = [event.payload for event in events if event.type == "user_message"]
    return first | {payload["turn_id"]: payload["text"] for payload in later if "turn_id" in payload}


def check_turn_id(turn_id: str | None) -> str | None:
    """A turn id as a log holds it. TypeError or ValueError for what cannot name a turn."""
    named: str | None = normalise(checks.text("turn_id", turn_id, most=checks.LONGEST_NAME, optional=True))
    return named
