"""A model step: show the conversation to the model that the router chooses, and record what it answers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from drangue_client.errors import TransientError
from drangue_client.events import Event, Fact
from drangue_client.messages import Message, conversation, recollection
from drangue_worker.engine.decision import decision_payload, refused_calls
from drangue_worker.engine.runtime import Watcher
from drangue_worker.engine.step import Attempt, Outcome, Settle, told_to_stop
from drangue_worker.models.model import OnDelta, name_of, takes_deltas
from drangue_worker.observability.logs import get_logger
from drangue_worker.rules import budget as affordable
from drangue_worker.rules.retry import MAX_BACKOFF_S, MODEL_BACKOFF_S
from drangue_worker.tools.tool import Tool

log = get_logger("drangue.model_step")

BYTES_PER_TOKEN = 4  # of English text, as OpenAI's tokenizer guide has it; a hard budget counts every byte


async def call_model(attempt: Attempt) -> Outcome:
    """Ask the model once. A failure that may pass is given back to be tried again, any other one ends the run."""
    lost = attempt.claimed.lost + attempt.claimed.crashes
    stopped = affordable.stop(attempt.run, lost) if lost else None
    if stopped:
        payload = {"output": stopped, "reason": "budget", **_lost(attempt, lost)}
        return Settle((Fact("run_finished", payload, step=attempt.run.last_step),))
    try:
        payload = await _answer(attempt)
    except (TransientError, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError):
            if told_to_stop():
                raise
            error = TransientError("the model call cancelled itself")
        again = attempt.again(error, attempt.blueprint.model_retries, MODEL_BACKOFF_S, MAX_BACKOFF_S)
        return again or attempt.raised(error)
    except Exception as error:
        return attempt.raised(error)
    payload |= {**attempt.retries(), **(_lost(attempt, lost) if lost else {})}
    decision = Fact("model_decision", payload, attempt.step, **attempt.timing())
    return Settle((decision, *refused_calls(payload, attempt.step)))


async def _answer(attempt: Attempt) -> dict[str, Any]:
    events, terms, run = attempt.claimed.events, attempt.terms, attempt.run
    messages = conversation(events)
    tools = [_offered(one) for one in terms.offered()]
    system = _system(terms.instructions, events)
    model = attempt.blueprint.router.choose(messages=messages, step_index=run.model_calls)
    shown = {"model": name_of(model), "system": system, "messages": messages}
    with attempt.runtime.tracer.span("model", seq=run.seq + 1, **shown) as span:
        async with _watched(attempt, model) as more:
            response = await model.generate(
                system=system, messages=messages, tools=tools, idempotency_key=attempt.key, **more
            )
        payload = decision_payload(response, response.model or name_of(model), attempt.step)
        if payload["usage"] is None and terms.budget is not None:
            size = BYTES_PER_TOKEN if not terms.budget.hard else 1
            payload |= {"usage": _estimate(system, messages, tools, payload, size), "usage_estimated": True}
        for name in ("text", "tool_calls", "usage", "reasoning", "stop_reason"):
            span.set(name, payload[name])
        span.set("response_model", payload["model"])
        span.set("duration_ms", attempt.duration_ms())
    return payload


def _system(instructions: str, events: Sequence[Event]) -> str:
    recalled = [event.payload["items"] for event in events if event.type == "memory_recalled"]
    remembered = recollection(recalled[-1]) if recalled else ""
    return "\n\n".join(part for part in (instructions, remembered) if part)


def _offered(told: dict[str, Any]) -> Tool:
    """A tool as the run recorded it, to be shown to a model; whoever performs its calls has the function."""
    return Tool(told["name"], told["description"], told["input_schema"], _shown_only)


def _shown_only(**_: Any) -> None:
    raise TypeError("this tool is for a model to see; its calls are steps of their own")


@asynccontextmanager
async def _watched(attempt: Attempt, model: Any) -> AsyncIterator[dict[str, OnDelta]]:
    """The keywords that let a model show its answer piece by piece, if it can and anybody watches.

    Watching never fails the call: a watcher that raises is not told any more.
    """
    row = attempt.claimed.look.row
    watcher = attempt.runtime.watch(row, attempt.step, attempt.claimed.attempt) if takes_deltas(model) else None
    if watcher is None:
        yield {}
        return
    watching = [watcher]

    async def tell(call: Callable[[Watcher], Awaitable[None]]) -> None:
        try:
            for one in watching:
                await call(one)
        except Exception:
            log.exception("watcher_failed")
            watching.clear()

    async def on_delta(text: str) -> None:
        await tell(lambda one: one.say(text))

    try:
        yield {"on_delta": on_delta}
    finally:
        await tell(lambda one: one.done())


def _estimate(
    system: str, messages: list[Message], tools: Sequence[Tool], payload: dict[str, Any], bytes_per_token: int
) -> dict[str, int]:
    shown = {"system": system, "messages": messages, "tools": [tool.to_schema() for tool in tools]}
    said = [payload["text"], payload["tool_calls"], payload["reasoning"]]
    return {
        "input_tokens": _tokens(shown, bytes_per_token),
        "output_tokens": _tokens(said, bytes_per_token),
    }


def _tokens(value: object, bytes_per_token: int) -> int:
    return math.ceil(len(json.dumps(value, ensure_ascii=False).encode()) / bytes_per_token)


def _lost(attempt: Attempt, lost: int) -> dict[str, Any]:
    """What a hard budget counts for attempts whose answers never came: {"lost": {"tokens", "usd"}}."""
    budget = attempt.terms.budget
    if budget is None or not budget.hard or not lost:
        return {}
    most = affordable.reserve(attempt.run, attempt.terms, budget)
    return {"lost": {"tokens": lost * most.tokens, "usd": lost * most.usd}}
