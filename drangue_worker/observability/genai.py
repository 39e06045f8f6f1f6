"""The OpenTelemetry semantic conventions for generative AI, version 1.41.0: what of ours is called what there.

Pure. What counts as content is decided here, and on the safe side: text that is not listed as harmless is content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from drangue_client.events import normalise

OPERATIONS = {"run": "invoke_agent", "model": "chat", "tool": "execute_tool"}

# What our own spans carry that is not content. Any other text on them is taken for content: an attribute that somebody
# adds and forgets to list here is missing from a trace, not leaked into one.
_PLAIN = {
    "run": {"run_id", "agent", "status", "reason"},
    "model": {"model", "response_model", "stop_reason", "usage"},
    "tool": {"name", "call_id", "error"},
}
# Content by its name, on a span of anybody's.
_CONTENT = {"arguments", "content", "input", "instructions", "messages", "output", "prompt", "reasoning", "system"}
_CONTENT |= {"text", "thinking", "tool_calls"}

NAMES = {
    ("run", "run_id"): "gen_ai.conversation.id",
    ("run", "agent"): "gen_ai.agent.name",
    ("model", "model"): "gen_ai.request.model",
    ("model", "response_model"): "gen_ai.response.model",
    ("tool", "error"): "error.type",
    ("tool", "name"): "gen_ai.tool.name",
    ("tool", "call_id"): "gen_ai.tool.call.id",
    ("tool", "arguments"): "gen_ai.tool.call.arguments",
    ("tool", "content"): "gen_ai.tool.call.result",
}
_MODEL_FAMILIES = (("claude", "anthropic"), (("gpt-", "chatgpt-", "o1", "o3", "o4"), "openai"))
_INT64 = range(-(2**63), 2**63)  # what the wire format has room for


def is_content(span: str, key: str, value: Any) -> bool:
    if key in _CONTENT:
        return True
    return span in _PLAIN and key not in _PLAIN[span] and not isinstance(value, bool | int | float)


def attributes_of(span: str, key: str, value: Any) -> dict[str, Any]:
    """An attribute that is not content, under our name and under those of the conventions."""
    if (span, key) == ("model", "usage"):
        return _usage(value)
    attribute = _attribute(value)
    attributes: dict[str, Any] = {name: attribute for name in (key, NAMES.get((span, key))) if name}
    if (span, key) == ("model", "stop_reason"):
        attributes["gen_ai.response.finish_reasons"] = [str(attribute)]
    if (span, key) == ("model", "model"):
        provider = next((who for names, who in _MODEL_FAMILIES if str(attribute).lower().startswith(names)), None)
        if provider:
            attributes["gen_ai.provider.name"] = provider
    return attributes


def _usage(usage: Any) -> dict[str, Any]:
    """Token counts. Ours never overlap; the conventions count cached tokens as input, too."""
    if not isinstance(usage, Mapping):
        return {}
    counts = {name: n for name, n in usage.items() if isinstance(n, int | float) and not isinstance(n, bool)}
    written, read = counts.get("cache_creation_input_tokens"), counts.get("cache_read_input_tokens")
    sent = counts.get("input_tokens")
    named = {
        "gen_ai.usage.input_tokens": None if sent is None else sent + (written or 0) + (read or 0),
        "gen_ai.usage.output_tokens": counts.get("output_tokens"),
        "gen_ai.usage.cache_creation.input_tokens": written,
        "gen_ai.usage.cache_read.input_tokens": read,
    }
    return {"usage": as_text(counts)} | {name: _attribute(n) for name, n in named.items() if n is not None}


def message_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """A neutral message in the conventions' form."""
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        answered = {"type": "tool_call_response", "id": message.get("call_id"), "response": content}
        return {"role": role, "parts": [answered]}
    parts = [{"type": "text", "content": content}] if content else []
    return {"role": role, "parts": parts + calls_of(message.get("tool_calls") or [])}


def calls_of(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "tool_call"} | {key: call.get(key) for key in ("id", "name", "arguments")} for call in calls]


def objects_in(text: str) -> list[dict[str, Any]]:
    """The objects of a JSON list; none where redaction left no such list."""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _attribute(value: Any) -> bool | int | float | str | None:
    """A value as an attribute may have it: JSON text for what is structured, text for what has no room."""
    plain = normalise(value)
    if isinstance(plain, bool | float) or plain is None:
        return plain
    if isinstance(plain, int):
        return plain if plain in _INT64 else str(plain)
    return as_text(plain)


def as_text(value: Any) -> str:
    plain = normalise(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
