"""Perform: claim a step, do it, settle it.

The order protects the world outside. What was begun and cannot be undone is never begun again; what has a recorded
outcome is not repeated; only then is anything run. Whatever happens in between, the step ends settled or given back: a
worker that dies in here leaves a claim that lapses.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from drangue_client.errors import TransientError, ValidationError
from drangue_client.events import Fact
from drangue_client.messages import conversation
from drangue_client.run import fold
from drangue_client.store.port import Ask, Claimed, Release, StepRef
from drangue_client.terms import arguments_hash
from drangue_worker.blueprint import Blueprint
from drangue_worker.engine.coordinate import approval_request, settle, tool_result
from drangue_worker.engine.decision import decision_payload, refused_calls
from drangue_worker.engine.runtime import Runtime
from drangue_worker.models.model import name_of
from drangue_worker.observability.logs import get_logger
from drangue_worker.rules.retry import MAX_BACKOFF_S, MODEL_BACKOFF_S, delay_s
from drangue_worker.tools.invoke import (
    category_of,
    check_arguments,
    failure,
    give_up,
    invoke,
    shadow,
    text_of,
    unknown_outcome,
    unreadable,
)
from drangue_worker.tools.tool import Tool

log = get_logger("drangue.perform")

TOOL_GRACE_S = 600.0  # how long a recorded tool may be missing from the workers before its call is answered without it
MISSING_BACKOFF_S = 5.0


@dataclass(frozen=True, slots=True)
class Performed:
    """What became of a step: `opened` steps are to be sent, `error` is what failed the run, if it did."""

    opened: tuple[StepRef, ...] = ()
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Settle:
    """Record these facts; `error` is what failed the run."""

    facts: tuple[Fact, ...]
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _GiveBack:
    """Try again later."""

    delay_s: float
    category: str
    failed: bool = False


NOTHING = Performed()


async def perform(runtime: Runtime, run_id: str, step: int) -> Performed:
    """Do one step if it is free. A message that is doubled, late or wrong finds nothing to claim and does nothing.

    When cancelled, the step is given back at once and returned as opened, to be sent again.
    """
    ask = Ask(run_id, step, uuid.uuid4().hex, runtime.worker, runtime.executor)
    claimed = (await runtime.uninterrupted(runtime.log.claim, [ask], runtime.settings.lease_s))[0]
    if claimed is None:
        return NOTHING
    if _cancelled_from_outside():
        return await _give_back(runtime, ask, _GiveBack(0.0, "drained"))
    with structlog.contextvars.bound_contextvars(run_id=run_id, step=step, attempt=claimed.attempt):
        work = asyncio.create_task(_Step(runtime, claimed).do())
        with runtime.leases.hold(ask, work) as lease:
            try:
                outcome = await work
            except asyncio.CancelledError:
                if lease.lost:
                    return NOTHING
                return await _give_back(runtime, ask, _GiveBack(0.0, "drained"))
            if isinstance(outcome, _GiveBack):
                return await _give_back(runtime, ask, outcome)
            return await _record(runtime, claimed, outcome)


async def _give_back(runtime: Runtime, ask: Ask, outcome: _GiveBack) -> Performed:
    log.info("step_given_back", category=outcome.category, delay_s=round(outcome.delay_s, 3))
    release = Release(ask, outcome.delay_s, outcome.failed, outcome.category)
    given_back = await runtime.uninterrupted(runtime.log.release, [release])
    due = [ref for ref in given_back if ref] if outcome.delay_s <= 0 else []  # else the sweep sends it when it is due
    return Performed(tuple(due))


async def _record(runtime: Runtime, claimed: Claimed, outcome: _Settle) -> Performed:
    failed = any(fact.type == "run_failed" for fact in outcome.facts)
    moved, _ = await runtime.uninterrupted(settle, runtime, claimed.ask, claimed.look, outcome.facts, park=failed)
    if moved.verdict == "lost":
        log.warning("result_dropped")
        return NOTHING
    return Performed(moved.opened, outcome.error)


class _Step:
    """One attempt at one claimed step."""

    def __init__(self, runtime: Runtime, claimed: Claimed) -> None:
        self.runtime = runtime
        self.claimed = claimed
        self.key = f"{claimed.ask.run_id}:{claimed.ask.step}"
        self.started = time.monotonic()

    async def do(self) -> _Settle | _GiveBack:
        blueprint = self.runtime.registry.get(self.claimed.look.row.agent)
        if self.claimed.crashes >= self.runtime.settings.max_crashes:
            error = f"step {self.claimed.ask.step} took down {self.claimed.crashes} workers"
            return self._failed(error, "crashed", None)
        if blueprint is None:
            log.warning("agent_missing", agent=self.claimed.look.row.agent)
            return _GiveBack(MISSING_BACKOFF_S, "agent_missing")
        if self.claimed.kind == "model":
            return await self._model(blueprint)
        return await self._tool(blueprint)

    # Model calls

    async def _model(self, blueprint: Blueprint) -> _Settle | _GiveBack:
        run = self.claimed.look.run
        assert run.terms is not None
        messages = conversation(self.claimed.events)
        tools = [tool for name, tool in blueprint.tools.items() if name in run.terms.tools]
        try:
            model = blueprint.router.choose(messages=messages, step_index=run.model_calls)
            with self.runtime.tracer.span("model", seq=run.seq + 1, model=name_of(model)) as span:
                response = await model.generate(
                    system=run.terms.instructions, messages=messages, tools=tools, idempotency_key=self.key
                )
                payload = decision_payload(response, response.model or name_of(model), self.claimed.ask.step)
                for name in ("text", "tool_calls", "usage", "reasoning"):
                    span.set(name, payload[name])
                span.set("duration_ms", self._duration_ms())
        except (TransientError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError):
                if _cancelled_from_outside():
                    raise
                error = TransientError("the model call cancelled itself")
            if self.claimed.failures < blueprint.model_retries:
                wait = delay_s(error, self.claimed.failures, MODEL_BACKOFF_S, MAX_BACKOFF_S, random.random())
                return _GiveBack(wait, category_of(error), failed=True)
            return self._failed(text_of(error), category_of(error), error)
        except Exception as error:
            log.warning("model_failed", category=category_of(error), kind=type(error).__name__)
            return self._failed(text_of(error), category_of(error), error)
        decision = Fact("model_decision", payload, self.claimed.ask.step, **self._timing())
        return _Settle((decision, *refused_calls(payload, self.claimed.ask.step)))

    # Tool calls

    async def _tool(self, blueprint: Blueprint) -> _Settle | _GiveBack:
        claimed, run = self.claimed, self.claimed.look.run
        assert claimed.decision is not None
        assert claimed.decision.step is not None
        assert run.terms is not None
        name = str(claimed.name)
        call = claimed.decision.payload["tool_calls"][claimed.ask.step - claimed.decision.step - 1]
        if any(event.type == "step_started" for event in claimed.facts):
            return self._result(name, call["id"], unknown_outcome(name))
        tool = blueprint.tools.get(name)
        if tool is None:
            return self._tool_missing(name, call["id"])
        mode = _stricter(run.terms.mode_for(name), blueprint.terms.mode_for(name))
        granted = next((event for event in claimed.facts if event.type == "approval_granted"), None)
        if granted and granted.payload.get("arguments_hash") != arguments_hash(call["arguments"]):
            return self._result(name, call["id"], failure(name, "denied", "the approval is for other arguments"))
        if mode == "shadow":
            return self._result(name, call["id"], shadow(name, call["arguments"]))
        if mode == "assisted" and granted is None and not unreadable(call["arguments"]):
            # Stricter today than when the run began: the question becomes a fact, and the rules take it from there.
            return _Settle((approval_request(claimed.ask.step, name, [claimed.decision]),))
        return await self._run_tool(tool, call, reversible=run.terms.tools[name].reversible and tool.reversible)

    async def _run_tool(self, tool: Tool, call: dict[str, Any], *, reversible: bool) -> _Settle | _GiveBack:
        run = self.claimed.look.run
        with self.runtime.tracer.span("tool", seq=run.seq + 1, name=tool.name, arguments=call["arguments"]) as span:
            try:
                arguments = check_arguments(tool, call["arguments"])
            except ValidationError as error:
                content = failure(tool.name, "invalid_arguments", str(error))
            else:
                if not reversible:
                    refusal = await self._begin(tool, call["id"])
                    if refusal:
                        return self._result(tool.name, call["id"], refusal)
                try:
                    content = await invoke(tool, arguments, self.key)
                except Exception as error:
                    retry = reversible and isinstance(error, tool.policy.retry_on)
                    if retry and self.claimed.failures < tool.policy.retries:
                        return self._retry_tool(tool, error)
                    log.info("tool_failed", tool=tool.name, category=category_of(error))
                    if isinstance(error, TimeoutError) and not reversible:
                        content = unknown_outcome(tool.name)  # its time is over, its effect may still come
                    else:
                        content = await give_up(tool, category_of(error), text_of(error))
            span.set("content", content)
            span.set("duration_ms", self._duration_ms())
        return self._result(tool.name, call["id"], content, timed=True)

    async def _begin(self, tool: Tool, call_id: str) -> str | None:
        """Write, durably and last of all, that an irreversible call begins; returns why it must not be made."""
        ask = self.claimed.ask
        fact = Fact("step_started", {"call_id": call_id, "tool": tool.name, "attempt": self.claimed.attempt}, ask.step)
        if not await self.runtime.uninterrupted(self.runtime.log.begin, ask, fact):
            return unknown_outcome(tool.name)
        look = self.claimed.look
        row = replace(look.row, head_seq=look.row.head_seq + 1)
        run = fold([fact.at(look.run.seq + 1)], onto=look.run)
        self.claimed = replace(self.claimed, look=replace(look, row=row, run=run))
        if _cancelled_from_outside():
            return failure(tool.name, "transient", "not executed: the worker was told to stop just before")
        return None

    def _retry_tool(self, tool: Tool, error: BaseException) -> _GiveBack:
        policy = tool.policy
        wait = delay_s(error, self.claimed.failures, policy.backoff, policy.max_backoff, random.random())
        return _GiveBack(wait, category_of(error), failed=True)

    def _tool_missing(self, name: str, call_id: str) -> _Settle | _GiveBack:
        asked_at = max(event.ts or 0.0 for event in (self.claimed.decision, *self.claimed.facts) if event)
        others = self.runtime.executor == "celery"  # a worker of a newer deploy may have it
        if others and self.claimed.look.now - asked_at < TOOL_GRACE_S:
            log.warning("tool_missing", tool=name)
            return _GiveBack(MISSING_BACKOFF_S, "tool_missing")
        return self._result(name, call_id, failure(name, "unknown_tool", f"no worker has the tool {name!r} any more"))

    # Facts

    def _result(self, name: str, call_id: str, content: str, *, timed: bool = False) -> _Settle:
        timing = self._timing() if timed else {}
        return _Settle((tool_result(self.claimed.ask.step, name, call_id, content, **timing),))

    def _failed(self, error: str, category: str, cause: BaseException | None) -> _Settle:
        last = self.claimed.look.run.last_step
        return _Settle((Fact("run_failed", {"error": error, "category": category}, step=last),), error=cause)

    def _timing(self) -> dict[str, float]:
        return {"ts": self.claimed.look.now, "duration_ms": self._duration_ms()}

    def _duration_ms(self) -> float:
        return round((time.monotonic() - self.started) * 1000, 3)


def _cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _stricter(one: str, other: str) -> str:
    """The mode that gives less leave."""
    order: Sequence[str] = ("shadow", "assisted", "autonomous")
    return min(one, other, key=order.index)
