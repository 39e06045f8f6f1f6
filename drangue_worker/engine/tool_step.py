"""A tool step: every reason not to run the call first, then the call, then the guard of its result.

The order protects the world outside. What has an outcome is only judged. What was begun and cannot be undone is never
begun again. A beginning is recorded last of all, after guards and gates, immediately before the function is invoked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from drangue_client.events import Event, Fact
from drangue_client.folding import fold
from drangue_client.messages import copied
from drangue_client.outcomes import cancelled, failure, unknown_outcome
from drangue_client.run import OVER
from drangue_client.store.values import KILLED, REAPED
from drangue_worker.engine.facts import tool_result
from drangue_worker.engine.leave import answered_without_running, as_approved, as_granted, reversible
from drangue_worker.engine.step import (
    GRACE_S,
    MISSING_BACKOFF_S,
    Attempt,
    GiveBack,
    Outcome,
    Settle,
    told_to_stop,
)
from drangue_worker.observability.logs import get_logger
from drangue_worker.tools.guards import refusal
from drangue_worker.tools.invoke import category_of, check_arguments, give_up, invoke, reconciled, text_of
from drangue_worker.tools.tool import Tool

log = get_logger("drangue.tool_step")

KILL_SLACK_S = 1.0  # a process that can still record the timeout by itself is given the time to


async def call_tool(attempt: Attempt) -> Outcome:
    """Perform one call, or answer it without."""
    claimed = attempt.claimed
    assert claimed.decision is not None
    assert claimed.decision.step is not None
    name = str(claimed.name)
    asked = claimed.decision.payload["tool_calls"][attempt.step - claimed.decision.step - 1]
    call = copied(as_granted(asked, claimed.facts))  # a tool or a guard may change its arguments; what was asked stays
    if claimed.outcome is not None:
        return await _screened(attempt, name, call["id"], claimed.outcome)
    tool = attempt.blueprint.tools.get(name)
    begun = [event.payload["attempt"] for event in claimed.facts if event.type == "step_started"]
    if begun:
        known = await _begun_before(attempt, name, call, tool, dead=_is_dead(attempt, begun[-1]))
        if known is not None:
            return known
    if tool is None:
        return _tool_missing(attempt, name, call["id"])
    try:
        answered = await answered_without_running(attempt, tool, call)
    except Exception as error:
        return attempt.guard_failed(error)
    return answered or await _run(attempt, tool, call, again=bool(begun))


async def _begun_before(
    attempt: Attempt, name: str, call: dict[str, Any], tool: Tool | None, *, dead: bool
) -> Outcome | None:
    """An irreversible call that was interrupted: its tool may know what became of it. None: it may be made anew, since
    it had no effect and, whoever made it being `dead`, can have none any more."""
    late = [event.payload["content"] for event in attempt.claimed.facts if event.type == "outcome_corrected"]
    if late:  # whoever made it came back
        return attempt.result(name, call["id"], late[-1])
    found, content = "unknown", unknown_outcome(name)
    if tool is not None:
        found, content = await reconciled(tool, attempt.key, attempt.runtime.settings.call_timeout_s)
    if found == "done":
        return await _conclude(attempt, name, call["id"], as_approved(call, content))
    if found == "not_done" and dead:
        if attempt.claimed.category != KILLED:
            return None
        told = "its time was over, its process was killed, and it had no effect"
        return attempt.result(name, call["id"], failure(name, "timeout", told))
    return _unknown(attempt, name, call, tool, content)


def _is_dead(attempt: Attempt, begun: int) -> bool:
    """Whether the process is known to have ended in which the attempt ran that has begun. Only the attempt right before
    this one is known of, and a claim that lapsed tells nothing of who held it."""
    return begun == attempt.claimed.attempt - 1 and attempt.claimed.category in (KILLED, REAPED)


def _unknown(attempt: Attempt, name: str, call: dict[str, Any], tool: Tool | None, content: str) -> Settle:
    """An outcome that nobody knows: the model is told, or a person asked, by what was recorded and what holds today."""
    recorded = attempt.terms.tools.get(name)
    if "ask" in (tool and tool.on_unknown, recorded and recorded.on_unknown):
        asked = {"call_id": call["id"], "tool": name, "arguments": call["arguments"], "content": content}
        return Settle((Fact("outcome_requested", asked, attempt.step),))
    result = tool_result(attempt.step, name, call["id"], content, {**attempt.retries(), "unknown": True})
    return Settle((result,))


async def _run(attempt: Attempt, tool: Tool, call: dict[str, Any], *, again: bool) -> Outcome:
    told = {"name": tool.name, "arguments": call["arguments"], "call_id": call["id"]}
    with attempt.runtime.span("tool", seq=attempt.run.seq + 1, **told) as span:
        refused = None if reversible(attempt, tool) else await _begin(attempt, tool, call, again=again)
        if refused:
            return refused
        done = await _content(attempt, tool, call["arguments"])
        if isinstance(done, GiveBack):
            span.set("error", done.category)
            return done
        content, failed = done
        content = as_approved(call, content)
        if failed == "unknown_outcome":
            # Whoever ran over its time may still be at it: what is not done yet may still come.
            outcome = await _begun_before(attempt, tool.name, call, tool, dead=False)
            assert outcome is not None
        else:
            outcome = await _conclude(attempt, tool.name, call["id"], content)
        for fact in outcome.facts if isinstance(outcome, Settle) else ():
            if fact.type == "tool_result":
                span.set("content", fact.payload["content"])  # as the guard let it pass
        span.set("error", failed)
        span.set("duration_ms", attempt.duration_ms())
    return outcome


async def _content(attempt: Attempt, tool: Tool, arguments: dict[str, Any]) -> tuple[str, str | None] | GiveBack:
    """What the call comes to, with the category of its failure (None: the tool's own word), or another attempt."""
    limit_s, policy = attempt.runtime.settings.call_timeout_s, tool.policy
    try:
        if attempt.claimed.category == KILLED:
            raise TimeoutError(f"no answer within {policy.timeout} s, and its process had to be killed")
        checked = check_arguments(tool, arguments)
        if not (attempt.runtime.killable and policy.timeout is not None and not tool.is_async):
            return await invoke(tool, checked, attempt.key, limit_s), None
        if not await _arm(attempt, policy.timeout + KILL_SLACK_S):
            return GiveBack(0.0, "claim_lost")  # to nobody: the claim is somebody else's by now
        return await invoke(tool, checked, attempt.key, limit_s, lambda: _arm(attempt, None)), None
    except Exception as error:
        if reversible(attempt, tool) and isinstance(error, policy.retry_on):
            again = attempt.again(error, policy.retries, policy.backoff, policy.max_backoff)
            if again:
                return again
        category = category_of(error)
        log.info("tool_failed", tool=tool.name, category=category)
        if isinstance(error, TimeoutError) and not reversible(attempt, tool):
            return unknown_outcome(tool.name), "unknown_outcome"  # its time is over, its effect may still come
        return await give_up(tool, category, text_of(error), limit_s), category


async def _arm(attempt: Attempt, limit_s: float | None) -> bool:
    return await attempt.runtime.uninterrupted(attempt.runtime.log.arm, attempt.claimed.ask, limit_s)


async def _conclude(attempt: Attempt, name: str, call_id: str, content: str) -> Outcome:
    """Record what a call came to; where a guard looks at results, keep it first, so that only judging is repeated."""
    guards, recorded = attempt.blueprint.guardrails, attempt.terms.guards
    if not ((guards and guards.result_guard) or (recorded and recorded.result)):
        return attempt.dispatched(name, call_id, content)
    outcome = {"content": content, **attempt.timing()}
    if not await attempt.runtime.uninterrupted(attempt.runtime.log.keep, attempt.claimed.ask, outcome):
        return GiveBack(0.0, "claim_lost")  # to nobody: the claim is somebody else's by now
    if told_to_stop():
        return GiveBack(0.0, "drained")
    return await _screened(attempt, name, call_id, outcome)


async def _screened(attempt: Attempt, name: str, call_id: str, outcome: dict[str, Any]) -> Outcome:
    """Judge what a call came to, and record it. The call is over: a guard that fails repeats only the judgement."""
    guards = attempt.blueprint.guardrails
    content, timing = outcome["content"], {key: outcome[key] for key in ("ts", "duration_ms")}
    if guards is None or guards.result_guard is None:
        if attempt.terms.guards and attempt.terms.guards.result:
            return attempt.guard_missing("a result guard")
        return attempt.result(name, call_id, content, **timing)
    limit_s = attempt.runtime.settings.call_timeout_s
    try:
        withheld = await refusal(guards.result_guard, name, content, of="the result guard", limit_s=limit_s)
    except Exception as error:
        return attempt.guard_failed(error)
    if withheld:
        content = failure(name, "result_blocked", withheld)
    return attempt.result(name, call_id, content, **timing)


async def _begin(attempt: Attempt, tool: Tool, call: dict[str, Any], *, again: bool) -> Outcome | None:
    """Write, durably and last of all, that an irreversible call begins. What it returns is done instead of the call."""
    claimed, name = attempt.claimed, tool.name
    payload = {"call_id": call["id"], "tool": name, "attempt": claimed.attempt}
    fact = Fact("step_started", payload, attempt.step, ts=claimed.look.now)  # as its result will have it
    if not await attempt.runtime.uninterrupted(attempt.runtime.log.begin, claimed.ask, fact, again=again):
        now = await attempt.runtime.uninterrupted(attempt.runtime.log.look, claimed.ask.run_id)
        if now.run.ended == "failed":
            return GiveBack(0.0, "failed")  # it has not begun, and waits for the run to be taken up again
        if now.run.ended in OVER:
            return attempt.result(name, call["id"], cancelled(name))
        return _unknown(attempt, name, call, tool, unknown_outcome(name))
    look = claimed.look
    row = replace(look.row, head_seq=look.row.head_seq + 1)
    run = fold([fact.at(look.run.seq + 1)], onto=look.run)
    attempt.claimed = replace(claimed, look=replace(look, row=row, run=run))
    attempt.begun = True
    if told_to_stop():
        told = "not executed: the worker was told to stop just before"
        return attempt.result(name, call["id"], failure(name, "transient", told))
    return None


def _tool_missing(attempt: Attempt, name: str, call_id: str) -> Outcome:
    known: Sequence[Event | None] = (attempt.claimed.decision, *attempt.claimed.facts)
    asked_at = max(event.ts or 0.0 for event in known if event)
    others = attempt.runtime.executor == "celery"  # a worker of a newer deploy may have it
    if others and attempt.claimed.look.now - asked_at < GRACE_S:
        log.warning("tool_missing", tool=name)
        return GiveBack(MISSING_BACKOFF_S, "tool_missing")
    message = f"no worker has the tool {name!r} any more"
    return attempt.result(name, call_id, failure(name, "unknown_tool", message))
