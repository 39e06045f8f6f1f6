"""Turns: what is said to a run after its answer. One rule for applications and for agents in one process."""

from __future__ import annotations

from drangue_client.errors import InFlightError, TurnExistsError
from drangue_client.events import Event, Fact, normalise
from drangue_client.run import fold
from drangue_client.store.port import Log, Move, RunRow
from drangue_client.wire.queue import HANDOFF_S


def say(log: Log, run_id: str, text: str, turn_id: str | None = None) -> tuple[RunRow, bool]:
    """Begin another turn of a run, under the run's lock; True where it is new.

    The same `turn_id` twice is one turn, whatever has happened since, so repeating is safe with one; with another text
    it is a TurnExistsError. Raises InFlightError while the latest turn has not ended, or has failed, and
    UnknownRunError.
    """
    text = normalise(text)
    look = log.look(run_id)
    while True:
        if turn_id is not None:
            said = turns(look.row, log.events(run_id)).get(turn_id)
            if said is not None and said != text:
                raise TurnExistsError(run_id, turn_id)
            if said is not None:
                return look.row, False
        if look.run.ended not in ("completed", "cancelled"):
            raise InFlightError(run_id, look.row.status)
        fact = Fact("user_message", {"text": text} | ({} if turn_id is None else {"turn_id": turn_id}))
        run = fold([fact.at(look.run.seq + 1)], onto=look.run)
        moved = log.settle([Move(run_id, look.row.head_seq, run, facts=(fact,), wake_in_s=HANDOFF_S)])[0]
        if moved.verdict == "ok":
            return look.row, True
        assert moved.look is not None
        look = moved.look


def turns(row: RunRow, events: list[Event]) -> dict[str, str]:
    """What was said in the turns that have an id, {turn_id: text}."""
    first = {row.overrides["turn_id"]: row.input} if "turn_id" in row.overrides else {}
    later = [event.payload for event in events if event.type == "user_message"]
    return first | {payload["turn_id"]: payload["text"] for payload in later if "turn_id" in payload}


def check_turn_id(turn_id: str | None) -> None:
    """Raise ValueError for what cannot name a turn."""
    if turn_id is not None and (not isinstance(turn_id, str) or not 0 < len(turn_id) <= 200):
        raise ValueError(f"turn_id is {str(turn_id)[:220]!r}; it must be text of 1 to 200 characters, or None.")
