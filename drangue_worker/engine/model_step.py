"""A model step: show the conversation to the model that the router chooses, and record what it answers."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from drangue_client.budget import INPUT_COUNTS, OUTPUT_COUNTS, spent_on
from drangue_client.errors import TransientError, may_have_cost
from drangue_client.events import Fact
from drangue_client.messages import Message, copied, read, recollection
from drangue_client.terms import Terms
from drangue_worker.engine.decision import decision_payload, refused_calls
from drangue_worker.engine.runtime import Watcher
from drangue_worker.engine.step import Attempt, Outcome, Settle
from drangue_worker.models.model import OnDelta, ceiling_of, name_of, overhead_of, takes_deltas
from drangue_worker.models.routing import SingleModel, models_of
from drangue_worker.observability.logs import get_logger
from drangue_worker.rules.budget import stop
from drangue_worker.rules.retry import MAX_BACKOFF_S, MODEL_BACKOFF_S
from drangue_worker.tools.invoke import CancelledItself, either
from drangue_worker.tools.tool import Tool

log = get_logger("drangue.model_step")

BYTES_PER_TOKEN = 4  # of English text, as OpenAI's tokenizer guide has it; a hard budget counts every byte


class _Unaffordable(Exception):
    """The call may not be made: the text is the run's output."""


async def call_model(attempt: Attempt) -> Outcome:
    """Ask the model once. A failure that may pass is given back to be tried again, any other one ends the run."""
    lost = attempt.claimed.lost
    try:
        payload = await _answer(attempt)
    except _Unaffordable as stopped:
        finish = {"output": str(stopped), "reason": "budget", **attempt.lost(lost)}
        return Settle((Fact("run_finished", finish, step=attempt.run.last_step),))
    except (TransientError, CancelledItself) as error:  # clients tell of a lost connection by cancelling
        again = attempt.again(error, attempt.blueprint.model_retries, MODEL_BACKOFF_S, MAX_BACKOFF_S)
        return again or attempt.raised(error, **attempt.lost(lost + may_have_cost(error)))
    except Exception as error:
        return attempt.raised(error, **attempt.lost(lost + may_have_cost(error)))
    decision = Fact("model_decision", payload | attempt.retries(), attempt.step, **attempt.timing())
    return Settle((decision, *refused_calls(payload, attempt.step)))


async def _answer(attempt: Attempt) -> dict[str, Any]:
    terms, run = attempt.terms, attempt.run
    reading = read(attempt.claimed.events, onto=attempt.claimed.reading)
    messages = reading.messages()
    tools = [_offered(one) for one in terms.offered()]
    system = _system(terms.instructions, recollection(reading.recalled))
    model = await _chosen(attempt, messages)
    stopped = stop(run, attempt.claimed.lost) if attempt.claimed.lost else None
    if stopped or _unforeseen(model, terms):
        raise _Unaffordable(stopped or _unforeseen(model, terms))
    shown = {"model": name_of(model), "system": system, "messages": messages}
    with attempt.runtime.span("model", seq=run.seq + 1, **shown) as span:
        async with _watched(attempt, model) as more:
            call = functools.partial(
                model.generate, system=system, messages=messages, tools=tools, idempotency_key=attempt.key, **more
            )
            response = await either(call, attempt.runtime.settings.call_timeout_s)
        payload = decision_payload(response, response.model or name_of(model), attempt.step, reading.call_ids)
        payload |= attempt.lost(attempt.claimed.lost, response.unanswered)
        if terms.budget is not None:
            payload |= _estimated(terms, payload, {"system": system, "messages": messages, "tools": terms.offered()})
        for name in ("text", "tool_calls", "usage", "reasoning", "stop_reason"):
            span.set(name, payload[name])
        span.set("response_model", payload["model"])
        span.set("duration_ms", attempt.duration_ms())
    return payload


async def _chosen(attempt: Attempt, messages: list[Message]) -> Any:
    """The model that the router chooses; a router of the author's own may block, or raise anything."""
    router, limit_s = attempt.blueprint.router, attempt.runtime.settings.call_timeout_s
    if type(router) is SingleModel:
        return router.model
    return await either(
        functools.partial(router.choose, messages=messages, step_index=attempt.run.model_calls), limit_s
    )


def _unforeseen(model: Any, terms: Terms) -> str | None:
    """Why a hard budget cannot hold this model: its worst case was worked out for the models recorded with the run."""
    if terms.budget is None or not terms.budget.hard:
        return None
    asked = models_of(model)
    for one in asked:
        ceiling = ceiling_of(one)
        known = name_of(one) in terms.models and ceiling is not None and ceiling <= (terms.output_ceiling or 0)
        if not known or overhead_of(one) > terms.prompt_overhead or len(asked) > terms.asked_per_step:
            return f"(stopped: budget unenforceable: the run was not started with model {name_of(one)!r} as it is now)"
    return None


def _system(instructions: str, remembered: str) -> str:
    return "\n\n".join(part for part in (instructions, remembered) if part)


def _offered(told: dict[str, Any]) -> Tool:
    """A tool as the run recorded it, to be shown to a model; whoever performs its calls has the function."""
    return Tool(told["name"], told["description"], copied(told["input_schema"]), _shown_only)


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


def _estimated(terms: Terms, payload: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """What stands for the counts that a model did not report, {"usage", "usage_estimated"}; nothing where it did.

    A hard budget takes the worst case: every byte sent as one token, and the whole output ceiling.
    """
    usage = payload["usage"] or {}
    hard = terms.budget is not None and terms.budget.hard
    size = 1 if hard else BYTES_PER_TOKEN
    missing = {}
    if not spent_on(usage, INPUT_COUNTS):
        missing["input_tokens"] = _tokens(shown, size)
    if not spent_on(usage, OUTPUT_COUNTS):
        said = [payload["text"], payload["tool_calls"], payload["reasoning"]]
        missing["output_tokens"] = (terms.output_ceiling or 0) if hard else _tokens(said, size)
    return {"usage": usage | missing, "usage_estimated": True} if missing else {}


def _tokens(value: object, bytes_per_token: int) -> int:
    return math.ceil(len(json.dumps(value, ensure_ascii=False).encode()) / bytes_per_token)
