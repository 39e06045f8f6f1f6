"""The one thing the engine asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from drangue_client.messages import Message, ModelResponse
from drangue_worker.tools.tool import Tool


@runtime_checkable
class Model(Protocol):
    """Any object with this method is a model; its attribute `model`, if it has one, is the recorded name.

    Raise TransientError or RateLimitError for what another attempt may mend; anything else fails the run.
    """

    async def generate(
        self, *, system: str, messages: list[Message], tools: Sequence[Tool], idempotency_key: str | None = None
    ) -> ModelResponse:
        """One answer to a conversation. `idempotency_key` is the same for every attempt of a step."""


def name_of(model: object) -> str | None:
    """The name a model is recorded and priced by, or None."""
    name = getattr(model, "model", None)
    return name if isinstance(name, str) else None
