"""`FakeModel`: a model that says what a test wrote down."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drangue_client import checks
from drangue_client.messages import Message, ModelResponse, ToolCall
from drangue_worker.models.model import OnDelta
from drangue_worker.tools.tool import Tool


@dataclass(frozen=True, slots=True)
class Shown:
    """What one call showed a model, as it was then: the system text, the messages, and the tools as
    {name, description, input_schema}."""

    system: str
    messages: list[Message]
    tools: list[dict[str, Any]]


class FakeModel:
    """Answers the n-th call with the n-th response; the last one repeats. Without responses it answers `final`.

    A response is a ModelResponse, a text, or a list of `(tool name, arguments)` to call. `calls` holds what each call
    was given: {system, messages, tools (names), idempotency_key}; `shown` the same call as a Shown, with the tools'
    schemas. Whoever streams (`on_delta`) is given the text word by word.

    With `strict`, nothing repeats: a call beyond the last response raises AssertionError, which fails the run, and
    `verify()` fails for a response that nobody asked for. With `by_turn`, the n-th response is the n-th answer of a
    conversation, however often it is asked for and of which FakeModel: what a run needs that another process goes on
    with.
    """

    model = "fake"

    def __init__(
        self,
        responses: Sequence[ModelResponse | str | list[Any]] | None = None,
        *,
        final: str = "done",
        strict: bool = False,
        by_turn: bool = False,
    ) -> None:
        checks.text("final", final)
        script = checks.many("responses", responses, "a list of responses") if responses is not None else []
        self.responses = [_response(one, number) for number, one in enumerate(script or [final], start=1)]
        self.strict = checks.flag("strict", strict)
        self.by_turn = checks.flag("by_turn", by_turn)
        self.calls: list[dict[str, Any]] = []
        self.shown: list[Shown] = []
        self._used: set[int] = set()
        self._unexpected: list[str] = []

    async def generate(
        self,
        *,
        system: str,
        messages: list[Message],
        tools: Sequence[Tool],
        idempotency_key: str | None = None,
        on_delta: OnDelta | None = None,
    ) -> ModelResponse:
        """The next response. AssertionError, if strict, where there is none left."""
        decided = sum(message["role"] == "assistant" for message in messages)
        number = decided if self.by_turn else len(self.calls)
        then = copy.deepcopy(messages)
        self.calls.append(
            {
                "system": system,
                "messages": then,
                "tools": [tool.name for tool in tools],
                "idempotency_key": idempotency_key,
            }
        )
        self.shown.append(Shown(system, then, [copy.deepcopy(tool.to_schema()) for tool in tools]))
        if self.strict and number >= len(self.responses):
            self._unexpected.append(_unexpected(number + 1, len(self.responses), messages))
            raise AssertionError(self._unexpected[-1])
        place = min(number, len(self.responses) - 1)
        self._used.add(place)
        response = self.responses[place]
        if on_delta is not None:
            for word in re.findall(r"\S+\s*|\s+", str(response.text or "")):
                await on_delta(word)
        return response

    def verify(self) -> None:
        """Raise AssertionError for responses that were never asked for, and for calls that found none. Repeatable."""
        unused = [
            f"response {place + 1} was never asked for: {checks.shown(response.text or response.tool_calls)}"
            for place, response in enumerate(self.responses)
            if place not in self._used
        ]
        if unused or self._unexpected:
            raise AssertionError("; ".join([*self._unexpected, *unused]))


def _unexpected(asked: int, there_are: int, messages: list[Message]) -> str:
    last = checks.shown(messages[-1]["content"]) if messages else "nothing"
    count = f"{there_are} response{'s' if there_are != 1 else ''}"
    return f"the script holds {count}, and the model was asked for number {asked}; the last it was shown is {last}"


def _is_call(value: object) -> bool:
    pair = value if isinstance(value, tuple | list) and len(value) == 2 else (None, None)
    return isinstance(pair[0], str) and isinstance(pair[1], Mapping)


def _response(value: ModelResponse | str | list[Any], number: int) -> ModelResponse:
    if isinstance(value, ModelResponse):
        return value
    usage = {"input_tokens": 10, "output_tokens": 5}
    if isinstance(value, str):
        return ModelResponse(text=value, usage=usage, stop_reason="stop")
    what = "a ModelResponse, a text, or a list of (tool name, {arguments})"
    if not isinstance(value, list | tuple) or not all(map(_is_call, value)):
        raise TypeError(checks.refusal(f"responses[{number - 1}]", value, what))
    calls = [
        ToolCall(f"call_{number}_{i}", name, dict(arguments)) for i, (name, arguments) in enumerate(value, start=1)
    ]
    return ModelResponse(tool_calls=calls, usage=usage, stop_reason="tool_calls")
