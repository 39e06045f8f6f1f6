"""From commands to facts: how each decision that opens no step is written into the log.

Pure. What a fact repeats (a call's arguments, a person's reason) comes from the log itself, and is asked for only where
it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from drangue_client import answer
from drangue_client.autonomy import Approval
from drangue_client.events import Event, Fact
from drangue_client.outcomes import failure, shadow
from drangue_client.run import DEADLINE, Run
from drangue_client.terms import arguments_hash
from drangue_worker.rules.commands import (
    AskApproval,
    CallModel,
    CallTool,
    Command,
    Correct,
    Deliver,
    Deny,
    Escalate,
    Expire,
    Finish,
    Judge,
    Propose,
    Recall,
    Refuse,
    Screen,
)
from drangue_worker.tools.invoke import RAW_ARGUMENTS, unreadable

EXPIRED = "nobody decided about this call in time"

Evidence = Callable[[], Sequence[Event]]
Check = Callable[[str, dict[str, Any]], str | None]  # (tool, arguments) -> why the call could not be made


def fact_of(command: Command, run: Run, now: float, evidence: Evidence, check: Check) -> Fact:
    """The fact that obeys a command at `now`. `evidence` is asked for the events since the latest decision."""
    match command:
        case AskApproval(step, name) | Propose(step, name):
            events = evidence()
            _, call = _call(events, step)
            asked = isinstance(command, AskApproval)
            problem = check(name, call["arguments"]) if asked else unreadable(call["arguments"])
            if problem:  # refused whatever a person would say, so nobody is asked
                return tool_result(step, name, call["id"], failure(name, "invalid_arguments", problem))
            if asked:
                assert run.terms is not None
                return approval_request(step, name, events, run.terms.approval_of(name), now)
            return tool_result(step, name, call["id"], shadow(name, call["arguments"]))
        case Escalate(step, name) | Expire(step, name):
            assert run.terms is not None
            request = next(e for e in reversed(evidence()) if e.step == step and e.type == "approval_requested")
            call_id = request.payload["call_id"]
            if isinstance(command, Escalate):
                group = run.terms.approval_of(name).escalate_to
                return Fact("approval_escalated", {"call_id": call_id, "group": group}, step=step)
            told = {"call_id": call_id, "outcome": request.payload.get("on_expiry", "reject"), "reason": EXPIRED}
            return Fact("approval_expired", told, step=step)
        case Deny(step, name):
            events = evidence()
            _, call = _call(events, step)
            denial = next(e for e in events if e.step == step and e.type in ("approval_denied", "approval_expired"))
            reason = denial.payload.get("reason") or "a person refused this call"
            return tool_result(step, name, call["id"], failure(name, "denied", reason))
        case Refuse(step, name, category, message):
            _, call = _call(evidence(), step)
            return tool_result(step, name, call["id"], failure(name, category, message))
        case Judge(step):
            return _judgement(run, step, _call(evidence(), step)[1])
        case Correct(text):
            return Fact("schema_feedback", {"text": text})
        case Deliver(step, matches):
            _, call = _call(evidence(), step)
            raw = call["arguments"].get(RAW_ARGUMENTS) if unreadable(call["arguments"]) else None
            output = str(raw) if raw is not None else answer.written(_answer(run, call["arguments"]))
            how = {"reason": "answered", "structured": True} if matches else {"reason": "schema"}
            return Fact("run_finished", {"output": output, **how}, step=run.last_step)
        case Finish(output, reason, structured):
            finish: dict[str, Any] = {"output": output, "reason": reason}
            if structured:
                finish |= {"structured": True}
            elif reason == "blocked":
                finish |= {"blocked": True}
            elif reason == DEADLINE:  # the next thought may have been opened, and not have been recorded
                finish |= {"last_step": run.last_step + 1}
            return Fact("run_finished", finish, step=run.last_step)
        case CallModel() | CallTool() | Screen() | Recall():
            raise AssertionError("steps are opened, not recorded")
        case _:
            assert_never(command)


def _judgement(run: Run, step: int, call: dict[str, Any]) -> Fact:
    """The result of a call that delivers an answer."""
    assert run.terms is not None
    schema = run.terms.output_schema or {}
    problem = unreadable(call["arguments"])
    wrong = [problem] if problem else answer.mistakes(schema, _answer(run, call["arguments"]))
    if wrong:
        content = failure(call["name"], "validation", answer.feedback(wrong))
        return tool_result(step, call["name"], call["id"], content)
    return tool_result(step, call["name"], call["id"], json.dumps({"ok": True}), {"accepted": True})


def _answer(run: Run, arguments: dict[str, Any]) -> Any:
    assert run.terms is not None
    return answer.delivered(run.terms.output_schema or {}, arguments)


def _call(events: Sequence[Event], step: int) -> tuple[Event, dict[str, Any]]:
    """The decision that asked for the call of this step, and the call."""
    decision = next(e for e in reversed(events) if e.type == "model_decision" and e.step is not None and e.step < step)
    assert decision.step is not None
    return decision, decision.payload["tool_calls"][step - decision.step - 1]


def approval_request(
    step: int, name: str, events: Sequence[Event], policy: Approval, now: float, granted_by: Sequence[str] = ()
) -> Fact:
    """The question put to a person: what the call would do, and what the model said about it."""
    decision, call = _call(events, step)
    return Fact(
        "approval_requested",
        {
            "call_id": call["id"],
            "tool": name,
            "arguments": call["arguments"],
            "arguments_hash": arguments_hash(call["arguments"]),
            "reasoning": decision.payload.get("reasoning"),
            "text": decision.payload["text"],
            **policy.asked(now),
            **({"again": True, "granted_by": list(granted_by)} if granted_by else {}),
        },
        step=step,
    )


def tool_result(
    step: int, name: str, call_id: str, content: str, more: Mapping[str, Any] | None = None, **timing: Any
) -> Fact:
    """A call's result, as every kind of result is written."""
    payload = {"call_id": call_id, "name": name, "content": content, **(more or {})}
    return Fact("tool_result", payload, step=step, **timing)
