"""What a recorded run says to somebody who does it again: what was said to it, and how each call was answered.

Pure, and read from the log alone. A call is known by its tool and its arguments, as the model gave them. The same call
made several times is answered as it was each time, in order. Nothing is run here; `replay` does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from drangue_client.answer import FINAL_ANSWER
from drangue_client.events import Event
from drangue_client.result import Result
from drangue_client.terms import arguments_hash

REFUSALS = ("blocked", "denied", "invalid_arguments", "skipped", "unknown_tool")  # of calls that no tool was run for

DifferenceKind = Literal["missing", "stubbed", "runs_now", "asks_now"]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded run: its `result`, the name of the `agent` that made it, and the `output_schema` it was submitted
    with, if it had one of its own."""

    result: Result
    agent: str = ""
    output_schema: Mapping[str, Any] | None = None

    @property
    def run_id(self) -> str:
        """The id of the recorded run."""
        return self.result.run_id

    @property
    def inputs(self) -> list[str]:
        """What was said at the beginning of each turn; empty for a log that has not begun."""
        names = {"run_started": "input", "user_message": "text"}
        return [event.payload[names[event.type]] for event in self.result.events if event.type in names]

    @property
    def recalled(self) -> list[dict[str, Any]]:
        """What was recalled from memory, [{"key", "value", "expires_at"}]."""
        return [
            item for event in self.result.events if event.type == "memory_recalled" for item in event.payload["items"]
        ]


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call of a recorded run. `content` is its result (None: it has none), `verdict` the event by which a person
    decided about it, `asked` whether one was asked at all."""

    name: str
    arguments: dict[str, Any]
    content: str | None = None
    asked: bool = False
    verdict: Event | None = None

    @property
    def refused(self) -> bool:
        """Whether its result says that no tool was run."""
        try:
            told = json.loads(self.content or "")
            proposed = told.get("shadow") is True and "proposed" in told
            return proposed or (told["ok"] is False and told["error"]["category"] in REFUSALS)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # a tool's own words
            return False


@dataclass(frozen=True, slots=True)
class Difference:
    """A call in which a replay parted from its record.

    `missing`: the record has no result for it, and it was told so. `stubbed`: neither, but a stub answered. `runs_now`:
    it was refused then, and nothing would refuse it today. `asks_now`: it waits for a person today, and did not then.
    """

    kind: DifferenceKind
    tool: str
    arguments: dict[str, Any]


def decisions(result: Result) -> list[list[RecordedCall]]:
    """The calls of every model decision, in order; deliveries of a structured answer are none."""
    results, asked, verdicts = _by_step(result.events)
    terms = result.run.terms
    delivers = FINAL_ANSWER if terms is not None and terms.output_schema is not None else None
    return [
        [
            RecordedCall(call["name"], call["arguments"], results.get(step), step in asked, verdicts.get(step))
            for step, call in enumerate(event.payload["tool_calls"], start=(event.step or 0) + 1)
            if call["name"] != delivers
        ]
        for event in result.events
        if event.type == "model_decision"
    ]


def choices(result: Result) -> list[tuple[str, str]]:
    """What the model chose to do: (tool, hash of the arguments) of every call. Calls of one decision stand in an order
    of their own, since models name them in any."""
    return [
        choice
        for calls in decisions(result)
        for choice in sorted((call.name, arguments_hash(call.arguments)) for call in calls)
    ]


class Answers:
    """The results and verdicts of a recorded run, given out once each. Keeps what differed."""

    def __init__(self, recording: Recording) -> None:
        self.differences: list[Difference] = []
        self._calls: dict[tuple[str, str], list[RecordedCall]] = {}
        self._answered: Counter[tuple[str, str]] = Counter()
        self._decided: Counter[tuple[str, str]] = Counter()
        for calls in decisions(recording.result):
            for call in calls:
                self._calls.setdefault(_key(call.name, call.arguments), []).append(call)

    def content(self, name: str, arguments: dict[str, Any], *, once: bool) -> str | None:
        """The recorded result of a call, None where there is none.

        A call made more often than it was then gets its last result again, unless it may be made `once` per record.
        """
        key = _key(name, arguments)
        known = [call for call in self._calls.get(key, ()) if call.content is not None]
        # What a person refused first and granted later has a result; only what was never run has its refusal.
        known = [call for call in known if not call.refused] or known
        number = self._answered[key]
        if not known or (once and number >= len(known)):
            return None
        self._answered[key] += 1
        call = known[min(number, len(known) - 1)]
        if call.refused:
            self.differs("runs_now", name, arguments)
        return call.content

    def refused(self, name: str, arguments: dict[str, Any]) -> bool:
        """Whether a call was made then and never let through."""
        known = self._calls.get(_key(name, arguments), ())
        return bool(known) and all(call.refused for call in known)

    def verdict(self, name: str, arguments: dict[str, Any]) -> tuple[bool, str, str] | None:
        """What a person said to this request: (granted, by, reason). None where nobody has said anything yet.

        A call that nobody was asked about is granted: nothing is run for it but its record.
        """
        key = _key(name, arguments)
        known = self._calls.get(key, ())
        number = self._decided[key]
        call = known[number] if number < len(known) else None
        if call is not None and call.asked and call.verdict is None:
            return None
        self._decided[key] += 1
        if call is not None and call.verdict is not None:
            said = call.verdict.payload
            return call.verdict.type == "approval_granted", said.get("by") or "", said.get("reason") or ""
        if call is not None:
            self.differs("asks_now", name, arguments)
        return True, "replay", "the record has no verdict on it"

    def differs(self, kind: DifferenceKind, name: str, arguments: dict[str, Any]) -> None:
        """Take note of a difference."""
        self.differences.append(Difference(kind, name, arguments))


def _key(name: str, arguments: dict[str, Any]) -> tuple[str, str]:
    return name, arguments_hash(arguments)


def _by_step(events: Sequence[Event]) -> tuple[dict[int, str], set[int], dict[int, Event]]:
    """Of each step: its result, corrected where the true one came late; whether it was asked about; the verdict."""
    results: dict[int, str] = {}
    asked: set[int] = set()
    verdicts: dict[int, Event] = {}
    for event in events:
        if event.step is None:
            continue
        match event.type:
            case "tool_result" | "outcome_corrected":
                results[event.step] = event.payload["content"]
            case "approval_requested":
                asked.add(event.step)
            case "approval_granted" | "approval_denied" | "approval_expired":
                verdicts.setdefault(event.step, event)
    return results, asked, verdicts
