"""The benchmark's agent: a model in process that reads from its input what to ask for, and one tool.

Not `FakeModel`: that keeps and copies everything it is shown, which a run of 200 steps would pay for 200 times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from drangue_client.autonomy import Autonomy
from drangue_client.messages import Message, ModelResponse, ToolCall
from drangue_worker.agent import Agent
from drangue_worker.bench.shapes import AGENT, ASKING_AGENT, Shape
from drangue_worker.tools.tool import Tool, tool

MAX_STEPS = 1_000_000
USAGE = {"input_tokens": 10, "output_tokens": 5}

shape_of = lru_cache(maxsize=64)(Shape.of_input)


class Shaped:
    """A model whose next answer depends on nothing but the conversation, so any process may go on with any run."""

    model = "bench"

    async def generate(
        self, *, system: str, messages: list[Message], tools: Sequence[Tool], idempotency_key: str | None = None
    ) -> ModelResponse:
        """Ask for the tools of the next round, or answer."""
        shape = shape_of(messages[0]["content"])
        if shape.think_s:
            await asyncio.sleep(shape.think_s)
        decided = sum(message["role"] == "assistant" for message in messages)
        if decided >= shape.rounds:
            return ModelResponse(text="done", usage=USAGE, stop_reason="stop")
        arguments = {"size": shape.size, "seconds": shape.tool_s}
        calls = [ToolCall(f"call_{decided}_{place}", tools[0].name, dict(arguments)) for place in range(shape.calls)]
        return ModelResponse(tool_calls=calls, usage=USAGE, stop_reason="tool_calls")


@tool
async def fetch(size: int, seconds: float) -> str:
    """Give a result of so many bytes, after so many seconds."""
    if seconds:
        await asyncio.sleep(seconds)
    return "x" * size


@tool
async def spend(size: int, seconds: float) -> str:
    """A tool that a person is asked about; nobody ever answers."""
    return "x" * size


def make(**options: Any) -> Agent:
    """The agent that every workload uses."""
    return Agent(Shaped(), [fetch], "Do what you are asked.", max_steps=MAX_STEPS, name=AGENT, **options)


bench = make()
waiting = Agent(Shaped(), [spend], "Ask.", autonomy=Autonomy(modes={"spend": "assisted"}), name=ASKING_AGENT)
