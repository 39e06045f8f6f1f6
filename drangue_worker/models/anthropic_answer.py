"""Reading what Anthropic's Messages API answers, whole or as it streams.

The invariant: a thinking block is kept as it came, since the provider signs it; half a message is an error, not an
answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from drangue_client.errors import TransientError
from drangue_client.messages import ModelResponse, ToolCall
from drangue_worker.models.sdk import arguments_of

_COUNTS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class GrowingMessage:
    """A message put together from the events of its stream."""

    def __init__(self) -> None:
        self._blocks: dict[int, Any] = {}
        self._counts: dict[str, int] = {}
        self._stop_reason: str | None = None
        self._complete = False

    def take(self, event: Any) -> str:
        """Note one event; returns the text it adds."""
        match getattr(event, "type", None):
            case "message_start":
                self._counts |= counts_of(event.message.usage) or {}
            case "content_block_start":
                self._blocks[event.index] = event.content_block
                return getattr(event.content_block, "text", None) or ""
            case "content_block_delta" if event.index in self._blocks:
                return _grow(self._blocks[event.index], event.delta)
            case "message_delta":
                self._stop_reason = event.delta.stop_reason
                self._counts |= counts_of(event.usage) or {}
            case "message_stop":
                self._complete = True
        return ""

    def response(self) -> ModelResponse:
        """The whole message. TransientError if its end never came."""
        if not self._complete:
            raise TransientError("the stream ended before the message did")
        return response_of(self._blocks.values(), self._counts or None, self._stop_reason)


def _grow(block: Any, delta: Any) -> str:
    match delta.type:
        case "text_delta":
            block.text = (block.text or "") + delta.text
            return str(delta.text)
        case "thinking_delta":
            block.thinking = (block.thinking or "") + delta.thinking
        case "signature_delta":
            block.signature = delta.signature
        case "input_json_delta" if delta.partial_json:  # text until its end: a lenient parser takes a half for a whole
            block.input = (block.input if isinstance(block.input, str) else "") + delta.partial_json
    return ""


def response_of(content: Iterable[Any], counts: dict[str, int] | None, stop_reason: str | None) -> ModelResponse:
    """A message's blocks as a neutral response."""
    texts: list[str] = []
    thoughts: list[str] = []
    thinking_blocks: list[dict[str, Any]] = []
    calls: list[ToolCall] = []
    for block in content:
        match block.type:
            case "text":
                texts.append(block.text)
            case "thinking":
                thoughts.append(block.thinking)
                thinking_blocks.append({"type": "thinking", "thinking": block.thinking, "signature": block.signature})
            case "redacted_thinking":
                thinking_blocks.append({"type": "redacted_thinking", "data": block.data})
            case "tool_use":
                calls.append(ToolCall(block.id or "", block.name, arguments_of(block.input)))
    return ModelResponse(
        text="".join(texts),
        tool_calls=calls,
        usage=_usage(counts),
        reasoning="".join(thoughts) or None,
        stop_reason=stop_reason,
        thinking_blocks=thinking_blocks,
    )


def counts_of(usage: Any) -> dict[str, int] | None:
    """The counts a usage names; a later one of a stream replaces an earlier one, each being a total."""
    if usage is None:
        return None
    counts = {name: getattr(usage, name, None) for name in _COUNTS}
    return {name: count for name, count in counts.items() if count is not None}


def _usage(counts: dict[str, int] | None) -> dict[str, int] | None:
    """Input and output always, the cache's share where there is one. The provider's own counts do not overlap."""
    if counts is None:
        return None
    return {name: counts.get(name, 0) for name in _COUNTS if counts.get(name) or name in _COUNTS[:2]}
