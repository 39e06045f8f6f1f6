"""The steps before the first thought of a turn: judge the input, then recall what memory holds about it.

The input guard comes first: a text is handed to nobody, a memory's backend included, before it has been judged.
"""

from __future__ import annotations

import functools
from typing import Any

from drangue_client.events import Fact, normalise
from drangue_worker.engine.plan import SCREEN
from drangue_worker.engine.step import Attempt, Outcome, Settle
from drangue_worker.memory import MemoryItem
from drangue_worker.observability.logs import get_logger
from drangue_worker.tools.guards import refusal
from drangue_worker.tools.invoke import either, text_of

log = get_logger("drangue.prepare_step")


async def prepare(attempt: Attempt) -> Outcome:
    """Perform a screening or a recall, as the step's name says."""
    return await (_screen(attempt) if attempt.claimed.name == SCREEN else _recall(attempt))


async def _screen(attempt: Attempt) -> Outcome:
    guards = attempt.blueprint.guardrails
    if guards is None or guards.input_guard is None:
        return attempt.guard_missing("an input guard")
    limit_s = attempt.runtime.settings.call_timeout_s
    try:
        reason = await refusal(guards.input_guard, _input(attempt), of="the input guard", limit_s=limit_s)
    except Exception as error:
        return attempt.guard_failed(error)
    payload = {"turn": attempt.run.turn, "blocked": reason is not None, "reason": reason, **attempt.retries()}
    return Settle((Fact("input_screened", payload, attempt.step, **attempt.timing()),))


async def _recall(attempt: Attempt) -> Outcome:
    memory = attempt.blueprint.memory
    elsewhere = attempt.elsewhere("a memory") if memory is None else None
    if elsewhere:
        return elsewhere
    now = attempt.claimed.look.now
    payload: dict[str, Any] = {"items": [], "recalled_at": now}
    try:
        if memory is None:
            raise LookupError("this run was started with a memory, which the agent no longer has")
        # A memory may be plain functions too; what blocks, blocks a thread.
        limit_s = attempt.runtime.settings.call_timeout_s
        found = await either(functools.partial(memory.recall, _input(attempt)), limit_s)
        items = [_recorded(item) for item in found if item.expires_at is None or item.expires_at > now]
        payload["items"] = normalise(items)  # here, where what cannot be recorded is only forgotten
    except Exception as error:  # a run goes on without what it cannot remember
        log.warning("recall_failed", kind=type(error).__name__)
        payload["error"] = text_of(error)
    return Settle((Fact("memory_recalled", payload, attempt.step, **attempt.timing()),))


def _recorded(item: MemoryItem) -> dict[str, Any]:
    return {"key": item.key, "value": item.value, "expires_at": item.expires_at}


def _input(attempt: Attempt) -> str:
    """What was said at the beginning of this turn."""
    said = [event for event in attempt.claimed.events if event.type in ("run_started", "user_message")][-1]
    return str(said.payload["input" if said.type == "run_started" else "text"])
