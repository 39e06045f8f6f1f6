"""What is wrong with one log, by itself and against the plan of its run. Pure; each finding is a sentence for a person.

A log may stop anywhere, since a run may be cut off; what it holds must still be in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from drangue_client.events import Event
from drangue_worker.chaos.plan import PlannedRun

ENDINGS = ("run_finished", "run_failed", "run_cancelled")
AFTERWARDS = ("outcome_corrected",)  # a late true outcome is told whenever it comes
CAME_TO = ("model_decision", "tool_result", "step_stopped")  # what was under way when its run was cancelled


def gaps(events: Sequence[Event]) -> list[str]:
    """What cannot be in a log that lost nothing and doubled nothing."""
    return [*_places(events), *_repeated(events), *_unsettled(events), *_after_the_end(events)]


def strays(plan: PlannedRun, events: Sequence[Event]) -> list[str]:
    """Where a log tells of other decisions than the plan, or of a call whose result names another subject."""
    planned = {decision.step: decision for decision in plan.decisions}
    subjects = {call.step: str(call.arguments["subject"]) for call in plan.calls}
    found = []
    for event in events:
        if event.type == "model_decision":
            decision = planned.get(event.step or 0)
            asked = [(call["name"], call["arguments"]) for call in event.payload["tool_calls"]]
            if decision is None or asked != [(call.tool, call.arguments) for call in decision.calls]:
                found.append(f"step {event.step} is not the decision that was planned")
        if event.type in ("tool_result", "outcome_corrected"):
            content, subject = str(event.payload["content"]), subjects.get(event.step or 0)
            if subject is None or (content.startswith("done: ") and content != f"done: {subject}"):
                found.append(f"step {event.step} has the result of another call: {content!r}")
    return found


def _places(events: Sequence[Event]) -> Iterator[str]:
    for place, event in enumerate(events):
        if event.seq != place:
            yield f"seq {event.seq} stands at place {place}"
            return


def _repeated(events: Sequence[Event]) -> Iterator[str]:
    counts = Counter((e.type, e.step) for e in events if e.type in ("model_decision", "tool_result"))
    for (kind, step), count in counts.items():
        if count > 1:
            yield f"step {step} has {count} events of type {kind}"


def _unsettled(events: Sequence[Event]) -> Iterator[str]:
    """Every call of a decision is settled before the next decision, and before the end of a run that finished."""
    asked: set[int] = set()
    known: set[int] = set()
    for event in events:
        if event.type == "tool_result":
            if event.step not in known:
                yield f"step {event.step} has a result and was never asked for"
            asked.discard(event.step or 0)
        if event.type in ("model_decision", "run_finished"):
            for step in sorted(asked):
                yield f"step {step} had no result when {event.type} was written"
            asked = set()
        if event.type == "model_decision":
            first = (event.step or 0) + 1
            asked = set(range(first, first + len(event.payload["tool_calls"])))
            known |= asked


def _after_the_end(events: Sequence[Event]) -> Iterator[str]:
    ended = ""
    for event in events:
        told = (*AFTERWARDS, *CAME_TO) if ended == "run_cancelled" else AFTERWARDS
        if ended and event.type not in told:
            yield f"{event.type} stands behind {ended}"
        if event.type in ENDINGS:
            ended = event.type
