"""A model by its name, and the options every adapter checks."""

from __future__ import annotations

import asyncio
import math
import sys
from typing import Any

import pytest

from drangue_worker.models import AnthropicModel, OpenAIModel, model_named


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("claude-sonnet-5", AnthropicModel, "claude-sonnet-5"),
        ("Claude-Sonnet-5", AnthropicModel, "Claude-Sonnet-5"),
        ("anthropic:whatever", AnthropicModel, "whatever"),
        ("gpt-4o", OpenAIModel, "gpt-4o"),
        ("chatgpt-4o-latest", OpenAIModel, "chatgpt-4o-latest"),
        ("o1", OpenAIModel, "o1"),
        ("o3-mini", OpenAIModel, "o3-mini"),
        ("o4-mini", OpenAIModel, "o4-mini"),
        ("openai:deepseek-chat", OpenAIModel, "deepseek-chat"),
        ("openai:ft:gpt-4o:acme", OpenAIModel, "ft:gpt-4o:acme"),
        ("openai:claude-x", OpenAIModel, "claude-x"),
    ],
)
def test_a_name_leads_to_its_adapter(text: str, kind: type, name: str) -> None:
    """What is recorded and priced is the model's own name, without the provider."""
    model: Any = model_named(text, max_tokens=99)
    assert (type(model), model.model, model.max_tokens) == (kind, name, 99)


@pytest.mark.parametrize("text", ["", "gemini-3", "gpt4", "claude", "o3000", "ft:gpt-4o", "mistral:large", ":gpt-4o"])
def test_an_unknown_name_is_refused_with_what_there_is(text: str) -> None:
    """A guess would send a conversation, and a key, to the wrong company."""
    with pytest.raises(ValueError, match=r"names no provider.*'claude-.*'gpt-.*'anthropic:'.*'openai:'"):
        model_named(text)


@pytest.mark.parametrize("text", ["anthropic:", "openai:"])
def test_a_provider_alone_is_no_model(text: str) -> None:
    """The rest was left in a variable that is not set."""
    with pytest.raises(ValueError, match="model is empty"):
        model_named(text)


def test_what_is_no_text_is_no_name() -> None:
    """A model object belongs where it is, not in here."""
    with pytest.raises(TypeError, match="model is 7"):
        model_named(7)  # type: ignore[arg-type]


def test_the_cache_belongs_to_one_provider() -> None:
    """Asked of another it would be silently without effect."""
    model: Any = model_named("claude-sonnet-5", cache=True)
    assert model.cache is True
    with pytest.raises(ValueError, match=r"cache=True only applies.*'gpt-4o'"):
        model_named("gpt-4o", cache=True)


@pytest.mark.parametrize("kind", [AnthropicModel, OpenAIModel])
@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"model": ""}, ValueError, "model is empty"),
        ({"model": None}, TypeError, "model is None"),
        ({"max_tokens": 0}, ValueError, "max_tokens is 0"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens is 1.5"),
        ({"max_tokens": True}, TypeError, "max_tokens is True"),
        ({"timeout": 0}, ValueError, "timeout is 0"),
        ({"timeout": None}, TypeError, "timeout is None"),
        ({"timeout": math.inf}, ValueError, "timeout is inf"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_name(
    kind: Any, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    """When the agent is made, not at its first step in the night."""
    with pytest.raises(error, match=words):
        kind(**{"model": "m", **given})


@pytest.mark.parametrize(("kind", "package"), [(AnthropicModel, "anthropic"), (OpenAIModel, "openai")])
def test_a_missing_sdk_says_what_to_install(kind: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded at the first call, far from where the package was forgotten."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        asyncio.run(kind("m", api_key="k").generate(system="", messages=[], tools=[]))
