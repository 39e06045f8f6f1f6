"""OpenAI's chat completions, seen from the provider's side: requests into neutral words, replies into bytes.

The invariant: the same call and reply always give the same bytes, down to the ids. It opens no socket and keeps no
time: when a chunk is sent, and whether at all, is for `provider`. It repairs nothing a script wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from drangue_worker.testing.script import Json, ProviderCall, Reply


class ChatCompletions:
    """OpenAI's format."""

    def read(self, body: Json) -> tuple[str, list[Json], tuple[str, ...]]:
        """The system text, the other messages in neutral form, the names of the tools."""
        system, messages = [], []
        for given in body["messages"]:
            role, content = given["role"], given.get("content") or ""
            text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
            message = {"role": role, "content": text}
            if role in ("system", "developer"):
                system.append(text)
                continue
            if role == "tool":
                message["call_id"] = given["tool_call_id"]
            elif role == "assistant":
                message["tool_calls"] = [
                    {"id": c["id"], "name": c["function"]["name"], "arguments": _parsed(c["function"]["arguments"])}
                    for c in given.get("tool_calls") or ()
                ]
            elif role != "user":
                raise ValueError(f"unknown role {role!r}")
            messages.append(message)
        return "\n\n".join(system), messages, tuple(tool["function"]["name"] for tool in body.get("tools") or ())

    def error(self, reply: Reply) -> bytes:
        """The body of a refusal; the status goes beside it."""
        fallback = "invalid_request_error" if 400 <= reply.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(reply.status, fallback)
        return _json({"error": {"message": reply.error, "type": kind, "param": None, "code": reply.error_code}})

    def answer(self, call: ProviderCall, reply: Reply) -> bytes:
        """The whole reply in one body."""
        message: Json = {"role": "assistant", "content": reply.text}
        if reply.tool_calls:
            message |= {"content": reply.text or None, "tool_calls": self._calls(call, reply)}
        choice = {"index": 0, "message": message, "finish_reason": self._finish(reply)}
        return _json(self._head(call, "chat.completion") | {"choices": [choice], "usage": self._usage(reply)})

    def stream(self, call: ProviderCall, reply: Reply) -> Iterator[bytes]:
        """Server-sent events: role, words, calls in fragments, finish, usage if asked for, end."""
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in re.findall(r"\S+\s*|\s+", reply.text)]
        for index, tool_call in enumerate(self._calls(call, reply)):
            name, arguments = tool_call["function"]["name"], tool_call["function"]["arguments"]
            deltas.append({"tool_calls": [tool_call | {"index": index, "function": {"name": name, "arguments": ""}}]})
            for piece in re.findall(r"(?s).{1,8}", arguments):
                deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        head = self._head(call, "chat.completion.chunk")
        events = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        if reply.error:
            yield from (b"data: %b\n\n" % _json(event) for event in events)
            yield b"data: %b\n\n" % self.error(reply)
            return
        events.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": self._finish(reply)}]})
        if (call.body.get("stream_options") or {}).get("include_usage"):
            events = [event | {"usage": None} for event in events]
            events.append(head | {"choices": [], "usage": self._usage(reply)})
        yield from (b"data: %b\n\n" % _json(event) for event in events)
        yield b"data: [DONE]\n\n"

    def _head(self, call: ProviderCall, kind: str) -> Json:
        return {"id": f"chatcmpl-{call.number}", "object": kind, "created": 0, "model": call.model}

    def _calls(self, call: ProviderCall, reply: Reply) -> list[Json]:
        found = []
        for index, (name, arguments, *given) in enumerate(reply.tool_calls):
            call_id = given[0] if given else f"call_{call.number}_{index}"
            raw = arguments if isinstance(arguments, str) else json.dumps(arguments)
            found.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": raw}})
        return found

    def _finish(self, reply: Reply) -> str:
        return reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")

    def _usage(self, reply: Reply) -> Json:
        total = reply.input_tokens + reply.output_tokens
        counts = {"prompt_tokens": reply.input_tokens, "completion_tokens": reply.output_tokens, "total_tokens": total}
        return counts | {"prompt_tokens_details": {"cached_tokens": reply.cached_tokens}}


def _json(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _parsed(arguments: str) -> Json | str:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments
