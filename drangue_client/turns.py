"""Turns: what is said to a run after its answer. One rule for applications and for agents in one process."""

from __future__ import annotations

from drangue_client import checks
from drangue_client.errors import InFlightError, TurnExistsError
from drangue_client.events import Event, Fact, normalise
from drangue_client.run import fold
from drangue_client.store.port import Log, Move, RunRow, StepRef
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
        if look.run.ended not in ("completed", "cancelled") or look.run.terms is None:  # it never began
            raise InFlightError(run_id, look.row.status)
        fact = Fact("user_message", {"text": text} | ({} if turn_id is None else {"turn_id": turn_id}))
        run = fold([fact.at(look.run.seq + 1)], onto=look.run)
        moved = log.settle([Move(run_id, look.row.head_seq, run, facts=(fact,), wake_in_s=HANDOFF_S)])[0]
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
