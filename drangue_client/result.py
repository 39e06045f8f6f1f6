"""`Result`: what a user reads from a run. Everything but the id is derived from the log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from drangue_client.budget import Prices, cost_usd
from drangue_client.events import Event
from drangue_client.folding import fold
from drangue_client.messages import TRUNCATED, Message, conversation
from drangue_client.run import Run, Status
from drangue_client.trace import Span, spans

PAUSED = "(paused: awaiting approval)"
UNCERTAIN = "(paused: awaiting word of an unknown outcome)"


@dataclass(frozen=True)
class Result:
    """A run as of its last event.

    `output` is the answer of the latest turn, or in brackets why there is none; `messages` the neutral conversation;
    `events` the whole log.
    """

    run_id: str
    output: str
    messages: list[Message] = field(repr=False)
    events: list[Event] = field(repr=False)
    run: Run = field(repr=False)

    @classmethod
    def from_events(cls, run_id: str, events: Sequence[Event]) -> Result:
        """Read a log, complete from its first event (an empty one is a queued run)."""
        run = fold(events)
        return cls(run_id, _output(run, events), conversation(events), list(events), run)

    @property
    def status(self) -> Status:
        """`completed`, `failed`, `cancelled`, `paused`, `running` or `queued`, by the latest turn."""
        return self.run.status

    @property
    def reason(self) -> str | None:
        """Why the latest turn ended, for machines: `answered`, `schema` (answered, but not as the schema has it),
        `max_steps`, `budget`, `blocked`, `deadline`, `cancelled`, or a failure's category."""
        return self.run.reason

    @property
    def error(self) -> str | None:
        """The recorded message of a failed run, else None."""
        last = self._last("run_failed")
        return str(last.payload["error"]) if last and self.status == "failed" else None

    @property
    def steps(self) -> int:
        """How many model calls the log holds."""
        return self.run.model_calls

    @property
    def usage(self) -> dict[str, int | float]:
        """Tokens summed over all model calls; `input_tokens` and `output_tokens` are always there."""
        total: dict[str, int | float] = {"input_tokens": 0, "output_tokens": 0}
        for event in self._all("model_decision"):
            for name, count in (event.payload.get("usage") or {}).items():
                if isinstance(count, int | float):
                    total[name] = total.get(name, 0) + count
        return total

    @property
    def usage_estimated(self) -> bool:
        """Whether part of `usage` was estimated, since a model reported none."""
        return any(event.payload.get("usage_estimated") for event in self._all("model_decision"))

    def cost(self, prices: Prices, *, strict: bool = True) -> float:
        """US dollars by `prices` (as in Budget). A used model without a price is a ValueError, or free if not strict.

        (input * p_in + output * p_out + cache_creation * p_write + cache_read * p_read) / 1e6
        """
        return cost_usd(self.events, prices, strict=strict)

    @property
    def output_parsed(self) -> Any:
        """The answer of the latest turn that ended, read as JSON, if it matched the run's output schema; else None."""
        last = self._last("run_finished")
        return json.loads(last.payload["output"]) if last and last.payload.get("structured") else None

    @property
    def latency_ms(self) -> float:
        """Time spent in steps, parallel ones counted in full, waits not counted."""
        return sum(event.duration_ms or 0.0 for event in self.events)

    @property
    def truncated(self) -> bool:
        """Whether the latest answer was cut by the output ceiling."""
        last = self._last("model_decision")
        return last is not None and last.payload.get("stop_reason") in TRUNCATED

    @property
    def pending_approvals(self) -> list[dict[str, Any]]:
        """Requests nobody has decided, in call order, each as `pending_requests` gives it."""
        return pending_requests(self.run, self.events)

    @property
    def unknown_outcomes(self) -> list[dict[str, Any]]:
        """Calls of which nobody knows whether they took effect: {step, call_id, tool, arguments, asked, since}."""
        return unknown_outcomes(self.run, self.events)

    @property
    def trace(self) -> Span:
        """The log as a tree of spans."""
        return spans(self.events, self.output)

    def _all(self, event_type: str) -> list[Event]:
        return [event for event in self.events if event.type == event_type]

    def _last(self, event_type: str) -> Event | None:
        return next((event for event in reversed(self.events) if event.type == event_type), None)


def pending_requests(run: Run, events: Sequence[Event]) -> list[dict[str, Any]]:
    """The undecided requests of a run: {step, call_id, tool, arguments, arguments_hash, reasoning, text}.

    As far as its policy has them also {people, granted_by, group, escalates_at, escalated_to, expires_at}. Where
    somebody has changed the arguments, `asked_arguments` are those of the model.
    """
    waiting = {} if run.ended else {call.step: call for call in run.pending}
    latest = {event.step: event for event in events if event.type == "approval_requested" and event.step in waiting}
    found = []
    for event in sorted(latest.values(), key=lambda event: event.step or 0):
        request = waiting[event.step or 0].request
        item = {"step": event.step, **event.payload}
        if request is not None and request.people > 1:
            item["granted_by"] = list(request.granted_by)
        later = [other for other in events if other.step == event.step and other.seq > event.seq]
        for other in later:
            if other.type == "approval_granted" and "arguments" in other.payload:
                item |= {name: other.payload[name] for name in ("arguments", "arguments_hash")}
                item["asked_arguments"] = event.payload["arguments"]
            elif other.type == "approval_escalated":
                item["escalated_to"] = other.payload["group"]
        found.append(item)
    return found


def unknown_outcomes(run: Run, events: Sequence[Event]) -> list[dict[str, Any]]:
    """The calls of a run with an unknown outcome: {step, call_id, tool, arguments, asked, since}, in step order.

    Where a person had changed the arguments, `asked_arguments` are those of the model. `asked` says that the run waits
    for a person's word on it, `since` (epoch seconds) when the call began.
    """
    waiting = {call.step for call in run.uncertain}
    found = []
    for step in sorted(run.unknown):
        decision = next(e for e in reversed(events) if e.type == "model_decision" and (e.step or 0) < step)
        call = decision.payload["tool_calls"][step - (decision.step or 0) - 1]
        began = [event.ts for event in events if event.step == step and event.type == "step_started"]
        granted = [event.payload for event in events if event.step == step and event.type == "approval_granted"]
        changed = [one["arguments"] for one in granted if "arguments" in one]
        told = {
            "step": step,
            "call_id": call["id"],
            "tool": call["name"],
            "arguments": (changed or [call["arguments"]])[-1],
        }
        if changed:
            told["asked_arguments"] = call["arguments"]
        found.append({**told, "asked": step in waiting, "since": began[-1] if began else decision.ts})
    return found


def _output(run: Run, events: Sequence[Event]) -> str:
    if run.status == "paused":
        return PAUSED if run.pending else UNCERTAIN
    if run.ended == "completed":
        return str(next(event.payload["output"] for event in reversed(events) if event.type == "run_finished"))
    return ""
