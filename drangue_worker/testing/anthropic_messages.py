"""Anthropic's Messages API, seen from the provider's side: requests into neutral words, replies into bytes.

The invariant is that of `chat_completions`: the same call and reply always give the same bytes, and nothing a script
wrote is repaired. Of a request it refuses what the real API refuses for its form: a missing output ceiling, ids it does
not take, empty texts, a message of the assistant that ends in thoughts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from drangue_worker.testing.script import Json, ProviderCall, Reply

_KINDS = {
    200: "overloaded_error",  # in the middle of a stream
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicMessages:
    """Anthropic's format."""

    def read(self, body: Json) -> tuple[str, list[Json], tuple[str, ...]]:
        """The system text, the messages in neutral form (a result is a message of its own), the names of the tools."""
        if not isinstance(body.get("max_tokens"), int):
            raise ValueError("max_tokens: Field required")
        system = [_text(block) for block in _blocks(body.get("system") or [])]
        messages: list[Json] = []
        used: set[str] = set()
        for given in body["messages"]:
            role, blocks = given["role"], _blocks(given["content"])
            if role == "user":
                messages += _from_user(blocks)
            elif role == "assistant":
                messages.append(_from_assistant(blocks, used))
            else:
                raise ValueError(f"unknown role {role!r}")
        return "\n\n".join(system), messages, tuple(tool["name"] for tool in body.get("tools") or ())

    def error(self, reply: Reply) -> bytes:
        """The body of a refusal; the status goes beside it."""
        return _json(self._error(reply))

    def answer(self, call: ProviderCall, reply: Reply) -> bytes:
        """The whole reply in one body."""
        message = self._head(call, reply) | {
            "content": self._content(call, reply),
            "stop_reason": self._stop(reply),
            "usage": self._input(reply) | {"output_tokens": reply.output_tokens},
        }
        return _json(message)

    def stream(self, call: ProviderCall, reply: Reply) -> Iterator[bytes]:
        """Server-sent events: the head with what went in, block after block, the stop with what came out."""
        head = self._head(call, reply) | {"usage": self._input(reply) | {"output_tokens": 1}}
        yield _event({"type": "message_start", "message": head})
        yield _event({"type": "ping"})
        for index, block in enumerate(self._content(call, reply)):
            empty, deltas = _taken_apart(block)
            yield _event({"type": "content_block_start", "index": index, "content_block": empty})
            for delta in deltas:
                yield _event({"type": "content_block_delta", "index": index, "delta": delta})
            yield _event({"type": "content_block_stop", "index": index})
        if reply.error:
            yield _event(self._error(reply))
            return
        stop = {"stop_reason": self._stop(reply), "stop_sequence": None}
        yield _event({"type": "message_delta", "delta": stop, "usage": {"output_tokens": reply.output_tokens}})
        yield _event({"type": "message_stop"})

    def _head(self, call: ProviderCall, reply: Reply) -> Json:
        head = {"id": f"msg_{call.number}", "type": "message", "role": "assistant", "model": call.model}
        return head | {"content": [], "stop_reason": None, "stop_sequence": None}

    def _content(self, call: ProviderCall, reply: Reply) -> list[Json]:
        content: list[Json] = [
            {"type": "redacted_thinking", "data": signature}
            if thought is None
            else {"type": "thinking", "thinking": thought, "signature": signature}
            for thought, signature in reply.thinking
        ]
        if reply.text:
            content.append({"type": "text", "text": reply.text})
        for index, (name, arguments, *given) in enumerate(reply.tool_calls):
            call_id = given[0] if given else f"toolu_{call.number}_{index}"
            content.append({"type": "tool_use", "id": call_id, "name": name, "input": arguments})
        return content

    def _stop(self, reply: Reply) -> str:
        return reply.finish_reason or ("tool_use" if reply.tool_calls else "end_turn")

    def _input(self, reply: Reply) -> Json:
        """Counts that do not overlap, which is this provider's way."""
        return {
            "input_tokens": reply.input_tokens - reply.cached_tokens - reply.cache_write_tokens,
            "cache_creation_input_tokens": reply.cache_write_tokens,
            "cache_read_input_tokens": reply.cached_tokens,
        }

    def _error(self, reply: Reply) -> Json:
        fallback = "api_error" if reply.status >= 500 else "invalid_request_error"
        kind = reply.error_code or _KINDS.get(reply.status, fallback)
        return {"type": "error", "error": {"type": kind, "message": reply.error}}


def _from_user(blocks: list[Json]) -> Iterator[Json]:
    texts: list[str] = []
    for block in blocks:
        if block["type"] == "tool_result":
            if texts:
                raise ValueError("tool_result blocks must come before text")
            content = "".join(part.get("text", "") for part in _blocks(block.get("content") or []))
            yield {"role": "tool", "call_id": block["tool_use_id"], "content": content}
        else:
            texts.append(_text(block))
    if texts:
        yield {"role": "user", "content": "".join(texts)}


def _from_assistant(blocks: list[Json], used: set[str]) -> Json:
    if not blocks or blocks[-1]["type"] in ("thinking", "redacted_thinking"):
        raise ValueError("the final block in an assistant message cannot be `thinking`, nor can there be none")
    calls = [block for block in blocks if block["type"] == "tool_use"]
    for call in calls:
        if not re.fullmatch(r"[a-zA-Z0-9_-]+", call["id"]) or call["id"] in used:
            raise ValueError(f"tool_use ids must be unique and match '^[a-zA-Z0-9_-]+$', unlike {call['id']!r}")
        if not isinstance(call["input"], dict):
            raise ValueError("tool_use.input: Input should be a valid dictionary")
        used.add(call["id"])
    return {
        "role": "assistant",
        "content": "".join(_text(block) for block in blocks if block["type"] == "text"),
        "tool_calls": [{"id": call["id"], "name": call["name"], "arguments": call["input"]} for call in calls],
    }


def _blocks(content: str | list[Json]) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(block: Json) -> str:
    text: str = block["text"]
    if not text.strip():
        raise ValueError("text content blocks must contain non-whitespace text")
    return text


def _taken_apart(block: Json) -> tuple[Json, list[Json]]:
    """A block as it starts, and what is added to it then: words, arguments in pieces of a few characters."""
    match block["type"]:
        case "text":
            return block | {"text": ""}, [{"type": "text_delta", "text": word} for word in _words(block["text"])]
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": word} for word in _words(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return block | {"thinking": "", "signature": ""}, deltas
        case "tool_use":
            given = block["input"]
            raw = given if isinstance(given, str) else json.dumps(given)
            pieces = ["", *re.findall(r"(?s).{1,8}", raw)]
            return block | {"input": {}}, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        case _:
            return block, []


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def _event(data: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), _json(data))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
