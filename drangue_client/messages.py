"""The neutral conversation: what a model is shown and what it answers, in no provider's format.

A conversation is a list of messages, each one of

    {"role": "user", "content": str}
    {"role": "assistant", "content": str, "tool_calls"?: [{"id", "name", "arguments"}], "thinking_blocks"?: [dict]}
    {"role": "tool", "call_id": str, "name": str, "content": str}

and is folded from a log, never kept beside it. Results stand in the order of the calls they answer, whatever order
they came in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from drangue_client.events import Event

Message = dict[str, Any]


# How providers say that the output ceiling cut an answer off, in their own words.
TRUNCATED = ("max_tokens", "length", "model_context_window_exceeded")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call a model asks for: the provider's `id` (may be empty), the tool's `name`, the `arguments` by name."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """What one model call gave: `usage` counts tokens (`input_tokens`, `output_tokens`, ...) that never overlap.

    `model` is who answered, where that is not the model that was asked (a fallback); None otherwise.
    """

    text: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    usage: dict[str, int] | None = None
    reasoning: str | None = None
    stop_reason: str | None = None
    thinking_blocks: list[dict[str, Any]] = field(default_factory=list)
    model: str | None = None


def conversation(events: Iterable[Event]) -> list[Message]:
    """The messages of a log, oldest first. A call without a result yet has no tool message."""
    messages: list[Message] = []
    results: dict[int, Message] = {}  # of the latest decision, by step
    steps: list[int] = []

    def close_decision() -> None:
        messages.extend(results[step] for step in steps if step in results)
        results.clear()
        steps.clear()

    for event in events:
        payload = event.payload
        match event.type:
            case "run_started":
                messages.append({"role": "user", "content": payload["input"]})
            case "user_message" | "schema_feedback":
                close_decision()
                messages.append({"role": "user", "content": payload["text"]})
            case "model_decision":
                close_decision()
                messages.append(_assistant(payload))
                assert event.step is not None
                steps.extend(range(event.step + 1, event.step + 1 + len(payload["tool_calls"])))
            case "tool_result" if event.step is not None:
                results[event.step] = {
                    "role": "tool",
                    "call_id": payload["call_id"],
                    "name": payload["name"],
                    "content": payload["content"],
                }
            case _:
                pass
    close_decision()
    return messages


def _assistant(payload: dict[str, Any]) -> Message:
    message: Message = {"role": "assistant", "content": payload["text"]}
    if payload["tool_calls"]:
        message["tool_calls"] = payload["tool_calls"]
    if payload.get("thinking_blocks"):
        message["thinking_blocks"] = payload["thinking_blocks"]
    return message
