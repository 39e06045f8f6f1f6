"""Ways to ask a model: two wire formats, whole or streamed. What a test says of one it says of all four."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from drangue_client.messages import Message, ModelResponse
from drangue_worker.models import AnthropicModel, OpenAIModel
from drangue_worker.testing.provider import Provider

HELLO: list[Message] = [{"role": "user", "content": "How is the disk?"}]


@dataclass(frozen=True)
class Way:
    """A wire format, asked for its answers whole or as a stream."""

    wire: str
    streamed: bool

    def __str__(self) -> str:
        return f"{self.wire} {'streamed' if self.streamed else 'whole'}"

    @asynccontextmanager
    async def model(self, provider: Provider, **given: Any) -> AsyncIterator[AnthropicModel | OpenAIModel]:
        """A model that talks to the provider, closed afterwards; `given` goes to its constructor."""
        made: AnthropicModel | OpenAIModel
        if self.wire == "anthropic":
            made = AnthropicModel("claude-test", base_url=provider.anthropic_base_url, api_key="k", **given)
        else:
            made = OpenAIModel("gpt-test", base_url=provider.base_url, api_key="k", **given)
        try:
            yield made
        finally:
            await made.aclose()

    async def generate(self, model: Any, messages: list[Message] = HELLO, **given: Any) -> ModelResponse:
        """One call. The pieces of a stream must make up the text."""
        shown: list[str] = []

        async def show(text: str) -> None:
            shown.append(text)

        asked = {"system": "", "tools": [], "messages": messages, "on_delta": show if self.streamed else None, **given}
        response: ModelResponse = await model.generate(**asked)
        if asked["on_delta"] in (None, show):
            assert "".join(shown) == (response.text if self.streamed else "")
        return response

    def ask(
        self, provider: Provider, messages: list[Message] = HELLO, options: dict[str, Any] | None = None, **given: Any
    ) -> ModelResponse:
        """One call of a model made with `options`, on an event loop of its own."""

        async def one() -> ModelResponse:
            async with self.model(provider, **options or {}) as model:
                return await self.generate(model, messages, **given)

        return asyncio.run(one())


WAYS = [Way(wire, streamed) for wire in ("openai", "anthropic") for streamed in (False, True)]
every_way = pytest.mark.parametrize("way", WAYS, ids=str)
every_stream = pytest.mark.parametrize("way", [way for way in WAYS if way.streamed], ids=str)
