"""`FakeModel`: a model that says what a test wrote down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drangue_client.messages import Message, ModelResponse, ToolCall
from drangue_worker.tools.tool import Tool


class FakeModel:
    """Answers the n-th call with the n-th response; the last one repeats. Without responses it answers `final`.

    A response is a ModelResponse, a text, or a list of `(tool name, arguments)` to call. `calls` holds what each call
    was given: {system, messages, tools (names), idempotency_key}.
    """

    model = "fake"

    def __init__(
        self, responses: Sequence[ModelResponse | str | list[Any]] | None = None, *, final: str = "done"
    ) -> None:
        self.responses = [_response(one, number) for number, one in enumerate(responses or [final], start=1)]
        self.calls: list[dict[str, Any]] = []

    async def generate(
        self, *, system: str, messages: list[Message], tools: Sequence[Tool], idempotency_key: str | None = None
    ) -> ModelResponse:
        self.calls.append(
            {
                "system": system,
                "messages": messages,
                "tools": [tool.name for tool in tools],
                "idempotency_key": idempotency_key,
            }
        )
        return self.responses[min(len(self.calls), len(self.responses)) - 1]


def _response(value: ModelResponse | str | list[Any], number: int) -> ModelResponse:
    if isinstance(value, ModelResponse):
        return value
    usage = {"input_tokens": 10, "output_tokens": 5}
    if isinstance(value, str):
        return ModelResponse(text=value, usage=usage, stop_reason="stop")
    calls = [
        ToolCall(f"call_{number}_{i}", name, dict(arguments)) for i, (name, arguments) in enumerate(value, start=1)
    ]
    return ModelResponse(tool_calls=calls, usage=usage, stop_reason="tool_calls")
