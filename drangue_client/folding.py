"""The fold: what each event makes of a run.

Pure and incremental: `fold(events)` equals `fold(tail, onto=Run.from_snapshot(...))` wherever the log is cut. What
should happen next is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from drangue_client.autonomy import same_person
from drangue_client.budget import counted
from drangue_client.events import Event
from drangue_client.messages import size_of
from drangue_client.outcomes import unknown_outcome
from drangue_client.run import Call, Request, Run, Verdict
from drangue_client.terms import Terms

_ANSWER_WRAPPING = 300  # bytes around one result: ids, names and what a provider adds


def fold(events: Iterable[Event], onto: Run | None = None) -> Run:
    """Apply `events` in order; events at or before the run's own `seq` have been applied already and are skipped."""
    run = onto or Run()
    for event in events:
        if event.seq > run.seq:
            run = apply(run, event)
    return run


def apply(run: Run, event: Event) -> Run:
    """The run after one more event. A type that changes no control state moves `seq` alone."""
    run = _counted(run, event)
    payload = event.payload
    match event.type:
        case "run_started":
            terms = Terms.from_json(payload["config"])
            return _grown(replace(run, turn=1, terms=terms, deadline_at=payload.get("deadline_at")), event)
        case "user_message":
            return replace(
                run,
                turn=run.turn + 1,
                context=run.context + _answered_in_place(run),
                ended=None,
                reason=None,
                decision=0,
                calls=(),
                answer=None,
                accepted=None,
                turn_model_calls=0,
                screened=False,
                blocked=None,
                corrections=0,
                deadline_at=payload.get("deadline_at"),
            )
        case "input_screened" if payload["turn"] == run.turn:  # said of this turn, and not late of another
            return replace(run, screened=True, blocked=payload["reason"] if payload["blocked"] else None)
        case "memory_recalled":
            return replace(run, recalled=True)
        case "model_decision":
            assert event.step is not None
            calls = tuple(Call(event.step + i, call["name"]) for i, call in enumerate(payload["tool_calls"], start=1))
            return replace(
                run,
                decision=event.step,
                decision_seq=event.seq,
                last_step=event.step + len(calls),
                calls=calls,
                answer=None if calls else payload["text"],
                turn_model_calls=run.turn_model_calls + 1,
                model_calls=run.model_calls + 1,
            )
        case "schema_feedback":
            return replace(run, corrections=run.corrections + 1, decision=0, calls=(), answer=None)
        case "tool_result":
            call = run.call(event.step)
            unknown = bool(payload.get("unknown")) and not (call and call.verdict == "known")
            settled = _told(_with_call(run, event.step, settled=True), event.step, unknown=unknown)
            if call is None or not run.delivers(call):
                return settled
            if payload.get("accepted"):
                return replace(settled, accepted=event.step)
            first = not any(other.settled for other in run.calls if run.delivers(other))  # of this decision
            return replace(settled, corrections=settled.corrections + first)
        case "approval_requested":
            call = run.call(event.step)
            again = call is not None and call.verdict == "granted" and payload.get("again")  # by a stricter worker
            if call is None or not (call.verdict == "none" or again):
                return run
            return _with_call(run, event.step, verdict="asked", request=_request(payload))
        case "approval_granted":
            return _granted(run, event)
        case "approval_denied":
            return _with_verdict(run, event.step, "denied")
        case "approval_expired":
            return _with_verdict(run, event.step, "expired" if payload.get("outcome") == "fallback" else "denied")
        case "approval_escalated":
            call = run.call(event.step)
            waiting = call.request if call else None
            return _with_call(run, event.step, request=replace(waiting, escalates_at=None)) if waiting else run
        case "outcome_requested":
            return _told(_with_call(run, event.step, verdict="uncertain"), event.step, unknown=True)
        case "outcome_given" | "outcome_corrected":
            call = run.call(event.step)
            known = _with_call(run, event.step, verdict="known") if call and not call.settled else run
            return _told(known, event.step, unknown=False)
        case "run_resumed":
            return replace(run, ended=None, reason=None, deadline_at=payload.get("deadline_at"))
        case "run_finished":
            last = max(run.last_step, payload.get("last_step", 0))
            return replace(run, ended="completed", reason=payload.get("reason"), answer=None, last_step=last)
        case "run_failed":
            return replace(run, ended="failed", reason=payload.get("category"))
        case "run_cancelled":
            # A step that nobody has decided may be under way still: a later turn must not number one like it.
            last = max(run.last_step, payload.get("last_step", 0))
            return replace(run, ended="cancelled", reason="cancelled", answer=None, last_step=last)
        case _:
            return run


def _counted(run: Run, event: Event) -> Run:
    """The run with this event's place, what it used, and what it adds to the next prompt."""
    budget = run.terms.budget if run.terms else None
    total = counted(run.spent, event, budget.prices if budget else None)
    return _grown(replace(run, seq=event.seq, spent=total), event)


def _grown(run: Run, event: Event) -> Run:
    """Only a hard budget asks how large the next prompt may be."""
    if run.terms is None or run.terms.budget is None or not run.terms.budget.hard:
        return run
    return replace(run, context=run.context + size_of(event))


def _answered_in_place(run: Run) -> int:
    """The bytes with which the conversation answers the calls that a turn has left open, at most."""
    if not run.cut_short or run.terms is None or run.terms.budget is None or not run.terms.budget.hard:
        return 0
    return sum(len(unknown_outcome(call.name).encode()) + _ANSWER_WRAPPING for call in run.unsettled)


def _with_call(run: Run, step: int | None, **change: Any) -> Run:
    return replace(run, calls=tuple(replace(call, **change) if call.step == step else call for call in run.calls))


def _told(run: Run, step: int | None, *, unknown: bool) -> Run:
    """The run with what is known of a step's outcome."""
    if step is None or unknown == (step in run.unknown):
        return run
    others = tuple(one for one in run.unknown if one != step)
    return replace(run, unknown=(*others, step) if unknown else others)


def _request(payload: dict[str, Any]) -> Request | None:
    granted_by = tuple(payload.get("granted_by", ()))
    request = Request(payload.get("people", 1), granted_by, payload.get("expires_at"), payload.get("escalates_at"))
    return None if request == Request() else request


def _granted(run: Run, event: Event) -> Run:
    """The run after one person's word: other arguments are another question, for which nobody else has spoken yet."""
    call = run.call(event.step)
    if call is None or call.verdict != "asked" or call.request is None or call.request.people == 1:
        return _with_verdict(run, event.step, "granted")
    earlier = () if event.payload.get("edited") else call.request.granted_by
    granted_by = (*earlier, event.payload["by"])
    if len(set(map(same_person, granted_by))) < call.request.people:
        return _with_call(run, event.step, request=replace(call.request, granted_by=granted_by))
    return _with_verdict(run, event.step, "granted")


def _with_verdict(run: Run, step: int | None, verdict: Verdict) -> Run:
    call = run.call(step)
    if call is None or call.verdict != "asked":  # the first verdict on a request is the one that holds
        return run
    return _with_call(run, step, verdict=verdict)
