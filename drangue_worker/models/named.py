"""A model by its name: `Agent("claude-sonnet-5")`."""

from __future__ import annotations

import re
from typing import Any

from drangue_client import checks
from drangue_worker.models.anthropic import AnthropicModel
from drangue_worker.models.model import Model, check_model
from drangue_worker.models.openai import OpenAIModel
from drangue_worker.models.sdk import MAX_TOKENS

_OPENAI_NAMES = re.compile(r"(gpt|chatgpt|o1|o3|o4)-|o[134]$", re.IGNORECASE)


def model_named(text: str, *, max_tokens: int = MAX_TOKENS, cache: bool = False) -> Model:
    """The adapter for "claude-...", "gpt-...", "chatgpt-...", "o1-..." (o3, o4), "anthropic:NAME" or "openai:NAME".

    `max_tokens` is the output ceiling; `cache` turns on Anthropic's prompt cache. Raises ValueError for another name,
    and for `cache=True` with a provider that has no such switch.
    """
    checks.text("model", text, "a name, such as 'claude-sonnet-5'")
    checks.flag("cache", cache)
    provider, colon, name = text.partition(":")
    if not colon:
        name = text
        provider = "anthropic" if text.lower().startswith("claude-") else ""
        provider = "openai" if _OPENAI_NAMES.match(text) else provider
    if provider == "anthropic":
        return AnthropicModel(name, max_tokens=max_tokens, cache=cache)
    if provider == "openai":
        if cache:
            raise ValueError(
                f"cache=True only applies to Anthropic's models, and {text!r} is none: OpenAI caches by itself. "
                "Leave it out."
            )
        return OpenAIModel(name, max_tokens=max_tokens)
    raise ValueError(
        f"model is {text!r}, which names no provider. Use 'claude-...', 'gpt-...', 'chatgpt-...', 'o1-...', 'o3-...' "
        "or 'o4-...', put 'anthropic:' or 'openai:' before any other name, or pass a model object."
    )


def as_model(argument: str, model: Any) -> Any:
    """A model as it is, or the one of this name. TypeError or ValueError, naming the argument, for what is neither."""
    if isinstance(model, str):
        return model_named(model)
    check_model(argument, model)
    return model
