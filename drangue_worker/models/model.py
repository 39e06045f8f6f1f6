"""The one thing the engine asks of a model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from drangue_client import checks
from drangue_client.messages import Message, ModelResponse
from drangue_worker.tools.tool import Tool

OnDelta = Callable[[str], Awaitable[None]]  # is given the text of an answer piece by piece, in order, none of it empty


@runtime_checkable
class Model(Protocol):
    """Any object with this method is a model; its attribute `model`, if it has one, is the recorded name.

    Raise TransientError or RateLimitError for what another attempt may mend; anything else fails the run. A model that
    can stream names one more keyword, `on_delta` (an OnDelta or None), and still returns the whole answer.
    """

    async def generate(
        self, *, system: str, messages: list[Message], tools: Sequence[Tool], idempotency_key: str | None = None
    ) -> ModelResponse:
        """One answer to a conversation. `idempotency_key` is the same for every attempt of a step."""


def name_of(model: object) -> str | None:
    """The name a model is recorded and priced by, or None."""
    name = getattr(model, "model", None)
    return name if isinstance(name, str) else None


def takes_deltas(model: Any) -> bool:
    """Whether the model can stream: its `generate` names `on_delta`. A `**kwargs` that would swallow it says no."""
    generate = model.generate
    try:
        return _names_deltas(getattr(generate, "__func__", generate))  # a method is another one each time
    except (TypeError, ValueError):  # a callable without a signature
        return False


@functools.lru_cache(maxsize=64)
def _names_deltas(generate: Callable[..., Any]) -> bool:
    return "on_delta" in inspect.signature(generate).parameters


def ceiling_of(model: Any) -> int | None:
    """The most tokens one answer of a model can have, if it says so: its `output_ceiling`, else its `max_tokens`."""
    value = model.output_ceiling if hasattr(model, "output_ceiling") else getattr(model, "max_tokens", None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def overhead_of(model: Any) -> int:
    """How many bytes a model's own settings add to every prompt, as far as it says so: its `prompt_overhead`."""
    value = getattr(model, "prompt_overhead", 0)
    return value if isinstance(value, int) else 0


def check_model(name: str, model: Any) -> None:
    """Raise TypeError, naming the argument, for what is no model."""
    checks.has(name, model, "generate", "a model's name, or an object with an async method `generate`")
