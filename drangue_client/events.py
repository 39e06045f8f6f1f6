"""Events: the facts a log is made of.

An event never changes its meaning and is never rewritten. A new meaning is a new type, or a new format version with a
lift from the one before; FORMAT is the newest version this program writes, and an event of a newer one is refused.

    1  the first format
    2  the config of run_started also holds budget, guards, memory and answer schema, which whoever decides must obey
    3  a turn may hold a deadline, a call may wait for a person to say what became of it, a result may say that nobody
       knows (`unknown`), and a request may need several people, expire, or be granted with other arguments
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from drangue_client.errors import FormatError

FORMAT = 3
_MOST_BITS = 14_000  # Python writes integers of up to 4,300 decimal digits

EventType = Literal[
    "run_started",
    "memory_recalled",
    "input_screened",
    "model_decision",
    "step_started",
    "step_stopped",
    "tool_result",
    "approval_requested",
    "approval_granted",
    "approval_denied",
    "approval_escalated",
    "approval_expired",
    "outcome_requested",
    "outcome_given",
    "outcome_corrected",
    "schema_feedback",
    "user_message",
    "run_resumed",
    "run_cancelled",
    "run_failed",
    "run_finished",
    "model_delta",
]
STREAMED = "model_delta"  # shown to whoever watches, and never stored
EVENT_TYPES: frozenset[str] = frozenset(get_args(EventType)) - {STREAMED}


@dataclass(frozen=True, slots=True)
class Event:
    """One fact of one run.

    `seq` is its place in the log (0, 1, 2 ...), `step` the step it belongs to (None where it belongs to the run), `ts`
    the epoch seconds of the database's clock when it began, `duration_ms` how long it took (None where nothing ran).
    """

    seq: int
    type: EventType
    payload: dict[str, Any]
    ts: float | None = None
    duration_ms: float | None = None
    step: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict of the same six values, for `--json` and files."""
        return {
            "seq": self.seq,
            "type": self.type,
            "step": self.step,
            "payload": self.payload,
            "ts": self.ts,
            "duration_ms": self.duration_ms,
        }


@dataclass(frozen=True, slots=True)
class Fact:
    """An event about to be appended: its place and, unless given, its time come from the log."""

    type: EventType
    payload: dict[str, Any]
    step: int | None = None
    ts: float | None = None
    duration_ms: float | None = None

    def __post_init__(self) -> None:
        # Before it is folded, compared or written: what is decided from is what will be read back.
        object.__setattr__(self, "payload", normalise(self.payload))

    def at(self, seq: int) -> Event:
        """This fact at its place in a log."""
        return Event(seq, self.type, self.payload, self.ts, self.duration_ms, self.step)


def delta(text: str, step: int, attempt: int, index: int) -> Event:
    """A piece of an answer that is still being written: the `index`-th of this attempt at this step.

    `retry` marks the first piece of another attempt: what was shown of the step before is void.
    """
    payload: dict[str, Any] = {"text": _text(text), "step": step, "attempt": attempt, "index": index}
    if attempt > 1 and index == 0:
        payload["retry"] = True
    return Event(-1, "model_delta", payload, step=step)


def lift(event_type: str, version: int) -> EventType:
    """Check that an event read from a log is one this program understands; FormatError if it is newer."""
    if version > FORMAT or event_type not in EVENT_TYPES:
        raise FormatError(
            f"the log holds a {event_type!r} event of format {version}; this program knows formats up to {FORMAT}. "
            "Upgrade it, then try again: the run is untouched."
        )
    return event_type  # type: ignore[return-value]  # membership was checked just above


def normalise(value: Any) -> Any:
    """`value` as strict JSON that every store and every provider can hold.

    NUL and lone surrogates become their visible escapes (Postgres and UTF-8 refuse them), NaN and the infinities their
    names, integers that no JSON writer takes hexadecimal text, tuples and sets lists, keys and unknown objects text.
    Normalising twice changes nothing. Raises RecursionError for a value nested deeper than the interpreter's stack.
    """
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > _MOST_BITS:
        return hex(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {_text(key if isinstance(key, str) else str(key)): normalise(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [normalise(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((normalise(item) for item in value), key=repr)
    if isinstance(value, bytes | bytearray):
        return _text(bytes(value).decode("utf-8", "backslashreplace"))
    return _text(str(value))


def _text(value: str) -> str:
    if "\x00" in value:
        value = value.replace("\x00", "\\u0000")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        value = value.encode("utf-8", "backslashreplace").decode("utf-8")
    return str.__str__(value)  # a member of a text Enum becomes its value, not its name


def canonical(value: Any) -> str:
    """One text for equal JSON values, whatever their key order."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
