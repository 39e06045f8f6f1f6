"""Perform: claim a step, do it, settle it.

What is done is the business of the kind of step: `prepare_step`, `model_step`, `tool_step`. Whatever happens in
between, the step ends settled or given back: a worker that dies in here leaves a claim that lapses.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import structlog

from drangue_client.errors import ConflictError, DatabaseUnavailable
from drangue_client.store.values import Ask, Claimed, Release, StepRef
from drangue_worker.engine.coordinate import Next, move_on
from drangue_worker.engine.correct import correct
from drangue_worker.engine.model_step import call_model
from drangue_worker.engine.prepare_step import prepare
from drangue_worker.engine.runtime import Runtime
from drangue_worker.engine.step import MISSING_BACKOFF_S, Attempt, GiveBack, Outcome, Settle, told_to_stop
from drangue_worker.engine.tool_step import call_tool
from drangue_worker.observability.logs import get_logger
from drangue_worker.tools.invoke import category_of, text_of

log = get_logger("drangue.perform")


@dataclass(frozen=True, slots=True)
class Performed:
    """What became of a step: the steps it opened, and have been sent where there is a queue; and what failed the run,
    if it did."""

    opened: tuple[StepRef, ...] = ()
    error: BaseException | None = None


NOTHING = Performed()


async def perform(runtime: Runtime, run_id: str, step: int) -> Performed:
    """Do one step if it is free. A message that is doubled, late or wrong finds nothing to claim and does nothing.

    When cancelled, the step is given back at once, and counts as opened.
    """
    ask = runtime.ask(run_id, step, secrets.token_hex(16))
    claimed = await runtime.together(_claim, ask)
    return await work_on(runtime, claimed) if claimed else NOTHING


async def work_on(runtime: Runtime, claimed: Claimed) -> Performed:
    """`perform` for a step that is claimed."""
    try:
        return await _work_on(runtime, claimed)
    finally:
        runtime.going.discard(claimed.ask.token)


async def _work_on(runtime: Runtime, claimed: Claimed) -> Performed:
    ask, run_id, step = claimed.ask, claimed.ask.run_id, claimed.ask.step
    if told_to_stop():
        return await _give_back(runtime, ask, GiveBack(0.0, "drained"))
    with structlog.contextvars.bound_contextvars(run_id=run_id, step=step, attempt=claimed.attempt):
        blueprint = runtime.registry.get(claimed.look.row.agent)
        if blueprint is None:
            log.warning("agent_missing", agent=claimed.look.row.agent)
            return await _give_back(runtime, ask, GiveBack(MISSING_BACKOFF_S, "agent_missing"))
        attempt = Attempt(runtime, claimed, blueprint)
        work = asyncio.create_task(_do(attempt))
        with runtime.leases.hold(ask, work, attempt.may_stop) as lease:
            try:
                outcome = await work
            except asyncio.CancelledError:
                if lease.lost:
                    return NOTHING
                if lease.halted:
                    return await _record(attempt, attempt.stopped())
                return await _give_back(runtime, ask, GiveBack(0.0, "drained", lost=True))
            except DatabaseUnavailable:
                raise
            except Exception as error:  # foreseen by nobody: said once, and not tried by one worker after the other
                outcome = _surprised(attempt, error)
            if isinstance(outcome, GiveBack):
                return await _give_back(runtime, ask, outcome)
            try:
                return await _record(attempt, outcome)
            except (DatabaseUnavailable, ConflictError):
                raise
            except Exception as error:
                return await _record(attempt, _surprised(attempt, error))


def _claim(runtime: Runtime, asks: Sequence[Ask]) -> list[Claimed | None]:
    return runtime.log.claim(asks, runtime.settings.lease_s)


def _surprised(attempt: Attempt, error: Exception) -> Settle:
    log.exception("step_broke", kind=type(error).__name__)
    lost = attempt.lost(attempt.claimed.lost + 1)  # the model may have been asked
    return attempt.failed(text_of(error), category_of(error), error, **lost)


async def _give_back(runtime: Runtime, ask: Ask, outcome: GiveBack) -> Performed:
    log.info("step_given_back", category=outcome.category, delay_s=round(outcome.delay_s, 3))
    release = Release(ask, outcome.delay_s, outcome.failed, outcome.category, outcome.lost, outcome.tries)
    return Performed(await runtime.uninterrupted(_release, runtime, release))


def _release(runtime: Runtime, release: Release) -> tuple[StepRef, ...]:
    given_back = runtime.log.release([release])
    due = [ref for ref in given_back if ref] if release.delay_s <= 0 else []  # else the sweep sends it when it is due
    runtime.publish(due)
    return tuple(due)


async def _record(attempt: Attempt, outcome: Settle) -> Performed:
    runtime, claimed = attempt.runtime, attempt.claimed
    failed = any(fact.type == "run_failed" for fact in outcome.facts)
    look = replace(claimed.look, now=attempt.now())
    settled = Next(claimed.ask.run_id, outcome.facts, claimed.ask, look, failed)
    moved = await runtime.together(move_on, settled)
    if moved.verdict == "lost":
        log.warning("result_late")
        late = [fact for fact in outcome.facts if outcome.begun and fact.type == "tool_result"]
        return (
            Performed(tuple(await runtime.uninterrupted(correct, runtime, claimed.ask, late[0]))) if late else NOTHING
        )
    return Performed(moved.opened, outcome.error)


async def _do(attempt: Attempt) -> Outcome:
    claimed, runtime = attempt.claimed, attempt.runtime
    with runtime.joined(claimed.look.row, claimed.look.run.turn):
        if claimed.crashes >= runtime.settings.max_crashes:
            error = f"step {claimed.ask.step} took down {claimed.crashes} workers"
            return attempt.failed(error, "crashed", None, **attempt.lost(claimed.lost))
        match claimed.kind:
            case "prepare":
                return await prepare(attempt)
            case "model":
                return await call_model(attempt)
            case "tool":
                return await call_tool(attempt)
            case _:
                assert_never(claimed.kind)
