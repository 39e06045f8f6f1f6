"""A tool step: every reason not to run the call first, then the call, then the guard of its result.

The order protects the world outside. What has an outcome is only judged. What was begun and cannot be undone is never
begun again. A beginning is recorded last of all, after guards and gates, immediately before the function is invoked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from drangue_client.errors import TransientError, ValidationError
from drangue_client.events import Event, Fact
from drangue_client.run import fold
from drangue_client.terms import MODES, Mode, arguments_hash
from drangue_worker.engine.coordinate import approval_request, tool_result
from drangue_worker.engine.step import (
    GUARD_RETRIES,
    MISSING_BACKOFF_S,
    Attempt,
    GiveBack,
    Outcome,
    Settle,
    told_to_stop,
)
from drangue_worker.observability.logs import get_logger
from drangue_worker.rules.retry import MAX_BACKOFF_S, MODEL_BACKOFF_S
from drangue_worker.tools.guards import approved, refusal
from drangue_worker.tools.invoke import (
    category_of,
    check_arguments,
    failure,
    give_up,
    invoke,
    reconciled,
    shadow,
    text_of,
    unknown_outcome,
)
from drangue_worker.tools.tool import Tool

log = get_logger("drangue.tool_step")

TOOL_GRACE_S = 600.0  # how long a recorded tool may be missing from the workers before its call is answered without it


async def call_tool(attempt: Attempt) -> Outcome:
    """Perform one call, or answer it without."""
    claimed = attempt.claimed
    assert claimed.decision is not None
    assert claimed.decision.step is not None
    name = str(claimed.name)
    call = claimed.decision.payload["tool_calls"][attempt.step - claimed.decision.step - 1]
    if claimed.outcome is not None:
        return await _screened(attempt, name, call["id"], claimed.outcome)
    tool = attempt.blueprint.tools.get(name)
    if any(event.type == "step_started" for event in claimed.facts):
        content = await reconciled(tool, attempt.key) if tool else unknown_outcome(name)
        return _result(attempt, name, call["id"], content)
    if tool is None:
        return _tool_missing(attempt, name, call["id"])
    try:
        answered = await _answered_without_running(attempt, tool, call)
    except Exception as error:  # a guard that cannot be asked is no leave
        again = attempt.again(error, GUARD_RETRIES, MODEL_BACKOFF_S, MAX_BACKOFF_S)
        return again if again and isinstance(error, TransientError) else attempt.raised(error)
    return answered or await _run(attempt, tool, call)


async def _answered_without_running(attempt: Attempt, tool: Tool, call: dict[str, Any]) -> Outcome | None:
    """Permissions, in their order: names, shadow, arguments, the author's guard, a person, the author's approver.

    The stricter of what was recorded and what the agent says today holds. Raises what a guard raises.
    """
    terms, today, guards = attempt.terms, attempt.blueprint.terms, attempt.blueprint.guardrails
    forbidden = terms.refusal(tool.name) or today.refusal(tool.name)
    if forbidden:
        return _result(attempt, tool.name, call["id"], failure(tool.name, "blocked", forbidden))
    mode = _stricter(terms.mode_for(tool.name), today.mode_for(tool.name))
    if mode == "shadow":
        return _result(attempt, tool.name, call["id"], shadow(tool.name, call["arguments"]))
    granted = next((event for event in attempt.claimed.facts if event.type == "approval_granted"), None)
    if granted and granted.payload.get("arguments_hash") != arguments_hash(call["arguments"]):
        return _result(
            attempt, tool.name, call["id"], failure(tool.name, "denied", "the approval is for other arguments")
        )
    try:
        check_arguments(tool, call["arguments"])
    except ValidationError as error:
        return _result(attempt, tool.name, call["id"], failure(tool.name, "invalid_arguments", str(error)))
    if terms.guards and terms.guards.output and not (guards and guards.output_guard):
        return attempt.missing("an output guard")
    if guards and guards.output_guard:
        blocked = await refusal(guards.output_guard, tool.name, call["arguments"], of="the output guard")
        if blocked:
            return _result(attempt, tool.name, call["id"], failure(tool.name, "blocked", blocked))
    if granted:
        return None
    approver = guards.approver if guards else None
    gated = terms.gated(tool.name) or today.gated(tool.name)
    if mode == "assisted" or (gated and approver is None):
        # Stricter today than when the run began, or a guard came first: the question becomes a fact, the rules go on.
        assert attempt.claimed.decision is not None
        return Settle((approval_request(attempt.step, tool.name, [attempt.claimed.decision]),))
    if gated and approver and not await approved(approver, tool.name, call["arguments"]):
        message = f"{tool.name} needs an approval, and the approver refused this call"
        return _result(attempt, tool.name, call["id"], failure(tool.name, "blocked", message))
    return None


async def _run(attempt: Attempt, tool: Tool, call: dict[str, Any]) -> Outcome:
    recorded = attempt.terms.tools.get(tool.name)
    reversible = tool.reversible and (recorded is None or recorded.reversible)
    run = attempt.run
    told = {"name": tool.name, "arguments": call["arguments"], "call_id": call["id"]}
    with attempt.runtime.tracer.span("tool", seq=run.seq + 1, **told) as span:
        refused = None if reversible else await _begin(attempt, tool, call["id"])
        if refused:
            return _result(attempt, tool.name, call["id"], refused)
        try:
            content = await invoke(tool, check_arguments(tool, call["arguments"]), attempt.key)
        except Exception as error:
            policy = tool.policy
            if reversible and isinstance(error, policy.retry_on):
                again = attempt.again(error, policy.retries, policy.backoff, policy.max_backoff)
                if again:
                    return again
            log.info("tool_failed", tool=tool.name, category=category_of(error))
            if isinstance(error, TimeoutError) and not reversible:
                content = unknown_outcome(tool.name)  # its time is over, its effect may still come
            else:
                content = await give_up(tool, category_of(error), text_of(error))
        span.set("content", content)
        span.set("duration_ms", attempt.duration_ms())
    outcome = {"content": content, **attempt.timing()}
    if not _judged(attempt):
        return _result(attempt, tool.name, call["id"], content, **attempt.timing())
    if not await attempt.runtime.uninterrupted(attempt.runtime.log.keep, attempt.claimed.ask, outcome):
        return GiveBack(0.0, "claim_lost")  # to nobody: the claim is somebody else's by now
    return await _screened(attempt, tool.name, call["id"], outcome)


def _judged(attempt: Attempt) -> bool:
    """Whether a guard looks at results: today's, or the one the run was started with."""
    guards, recorded = attempt.blueprint.guardrails, attempt.terms.guards
    return bool((guards and guards.result_guard) or (recorded and recorded.result))


async def _screened(attempt: Attempt, name: str, call_id: str, outcome: dict[str, Any]) -> Outcome:
    """Judge what a call came to, and record it. The call is over: a guard that fails repeats only the judgement."""
    guards = attempt.blueprint.guardrails
    content, timing = outcome["content"], {key: outcome[key] for key in ("ts", "duration_ms")}
    if guards is None or guards.result_guard is None:
        if attempt.terms.guards and attempt.terms.guards.result:
            return attempt.missing("a result guard")
        return _result(attempt, name, call_id, content, **timing)
    try:
        withheld = await refusal(guards.result_guard, name, content, of="the result guard")
    except Exception as error:
        again = attempt.again(error, GUARD_RETRIES, MODEL_BACKOFF_S, MAX_BACKOFF_S)
        return again if again and isinstance(error, TransientError) else attempt.raised(error)
    if withheld:
        content = failure(name, "result_blocked", withheld)
    return _result(attempt, name, call_id, content, **timing)


async def _begin(attempt: Attempt, tool: Tool, call_id: str) -> str | None:
    """Write, durably and last of all, that an irreversible call begins; returns why it must not be made."""
    claimed = attempt.claimed
    payload = {"call_id": call_id, "tool": tool.name, "attempt": claimed.attempt}
    fact = Fact("step_started", payload, attempt.step)
    if not await attempt.runtime.uninterrupted(attempt.runtime.log.begin, claimed.ask, fact):
        return unknown_outcome(tool.name)
    look = claimed.look
    row = replace(look.row, head_seq=look.row.head_seq + 1)
    run = fold([fact.at(look.run.seq + 1)], onto=look.run)
    attempt.claimed = replace(claimed, look=replace(look, row=row, run=run))
    if told_to_stop():
        return failure(tool.name, "transient", "not executed: the worker was told to stop just before")
    return None


def _tool_missing(attempt: Attempt, name: str, call_id: str) -> Outcome:
    known: Sequence[Event | None] = (attempt.claimed.decision, *attempt.claimed.facts)
    asked_at = max(event.ts or 0.0 for event in known if event)
    others = attempt.runtime.executor == "celery"  # a worker of a newer deploy may have it
    if others and attempt.claimed.look.now - asked_at < TOOL_GRACE_S:
        log.warning("tool_missing", tool=name)
        return GiveBack(MISSING_BACKOFF_S, "tool_missing")
    message = f"no worker has the tool {name!r} any more"
    return _result(attempt, name, call_id, failure(name, "unknown_tool", message))


def _result(attempt: Attempt, name: str, call_id: str, content: str, **timing: Any) -> Settle:
    return Settle((tool_result(attempt.step, name, call_id, content, attempt.retries(), **timing),))


def _stricter(one: Mode, other: Mode) -> Mode:
    """The mode that gives less leave."""
    return min(one, other, key=MODES.index)
