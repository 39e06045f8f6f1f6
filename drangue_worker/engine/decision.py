"""How a model's answer becomes facts: plain JSON, an id of its own for every call, no call of half an answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Container, Iterator, Mapping
from typing import Any

from drangue_client.events import Fact, normalise
from drangue_client.messages import TRUNCATED, ModelResponse
from drangue_client.outcomes import failure
from drangue_worker.engine.facts import tool_result
from drangue_worker.tools.invoke import RAW_ARGUMENTS


def decision_payload(
    response: ModelResponse, model: str | None, step: int, taken: Container[str] = ()
) -> dict[str, Any]:
    """The payload of a model's answer. Every call gets an id that no other call of its run has: one that is missing,
    repeated, or `taken` by an earlier call is replaced. Some providers count their calls from one with every answer,
    and what a person has said of one call must not be said of another."""
    asked = response.tool_calls or []
    given = [str(normalise(str(call.id or ""))) for call in asked]  # as they will be compared from the log
    seen: set[str] = set()
    calls = []
    for own_step, (call_id, call) in enumerate(zip(given, asked, strict=True), start=step + 1):
        if not call_id or call_id in seen or call_id in taken:
            call_id = next(
                own for own in _own_ids(own_step) if own not in taken and own not in seen and own not in given
            )
        seen.add(call_id)
        calls.append({"id": call_id, "name": str(call.name), "arguments": _arguments(call.arguments)})
    payload: dict[str, Any] = {
        "text": response.text if isinstance(response.text, str) else str(response.text or ""),
        "tool_calls": calls,
        "usage": dict(response.usage) if isinstance(response.usage, Mapping) else None,
        "reasoning": response.reasoning,
        "model": model if isinstance(model, str) else None,
        "stop_reason": response.stop_reason,
    }
    if response.thinking_blocks:
        payload["thinking_blocks"] = response.thinking_blocks
    result: dict[str, Any] = normalise(payload)
    return result


def _arguments(arguments: Any) -> dict[str, Any]:
    """Arguments as a log can hold them; what is no object, or nested too deeply, is kept as text to be refused."""
    try:
        plain = normalise(arguments)
        json.dumps(plain)
    except RecursionError:
        return {RAW_ARGUMENTS: "(nested too deeply to be read)"}
    if isinstance(plain, dict):
        return plain
    return {} if plain is None else {RAW_ARGUMENTS: plain if isinstance(plain, str) else json.dumps(plain)}


def refused_calls(payload: dict[str, Any], step: int) -> list[Fact]:
    """The results of calls that a cut-off answer asked for: what was meant is not what is there, so none is made."""
    if payload["stop_reason"] not in TRUNCATED:
        return []
    message = "the answer was cut off by the output ceiling, so its calls were not made. Ask again, for less at a time."
    return [
        tool_result(own_step, call["name"], call["id"], failure(call["name"], "truncated", message))
        for own_step, call in enumerate(payload["tool_calls"], start=step + 1)
    ]


def _own_ids(step: int) -> Iterator[str]:
    yield f"call_{step}"
    yield from (f"call_{step}_{number}" for number in itertools.count(2))
