"""The switch that keeps tests from asking real models. Nothing here leaves this machine, should it fail."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from drangue_client.errors import PermanentError, may_have_cost
from drangue_worker import Agent, AnthropicModel, InMemoryStore, OpenAIModel, asking
from drangue_worker.testing import (
    ModelRequestForbidden,
    Provider,
    Reply,
    allow_model_requests,
    forbid_model_requests,
)

ELSEWHERE = "http://models.invalid/v1"  # a name that no resolver knows
HELLO = [{"role": "user", "content": "x"}]


def ask(model: Any) -> str:
    """What comes of asking a model: its text, or the kind of error."""

    async def call() -> str:
        try:
            response = await model.generate(system="", messages=HELLO, tools=[])
        except Exception as error:
            return type(error).__name__
        finally:
            await model.aclose()
        return str(response.text)

    return asyncio.run(call())


class StandIn:
    """A client that somebody wrote for a test. It would not get as far as sending."""

    def __init__(self, **attributes: Any) -> None:
        self.chat = self.completions = self
        self.__dict__ |= attributes

    async def create(self, **request: Any) -> Any:
        raise LookupError("sent")


@pytest.mark.parametrize("model", [OpenAIModel, AnthropicModel])
def test_a_forbidden_request_is_never_sent(model: Any) -> None:
    """It fails its run, once, with an error that says what to do instead and that nothing was billed."""
    store = InMemoryStore()
    agent = Agent(model("m", base_url=ELSEWHERE, api_key="k"), store=store)
    with forbid_model_requests(), pytest.raises(ModelRequestForbidden) as caught:
        agent.run_sync("go", run_id="r")
    assert str(caught.value) == (
        "model requests are forbidden in tests, and this one would go to models.invalid. Use FakeModel or Provider, or "
        "allow it with `allow_model_requests()`."
    )
    assert (caught.value.host, may_have_cost(caught.value)) == ("models.invalid", False)
    assert isinstance(caught.value, PermanentError)
    assert [event.type for event in store.events("r")] == ["run_started", "run_failed"]


def test_a_client_of_ones_own_is_looked_at_as_well() -> None:
    """Its address counts, whoever made it; what has none is a stand-in, and nobody's business."""
    real = AsyncOpenAI(api_key="k", base_url=ELSEWHERE)
    with forbid_model_requests():
        assert ask(OpenAIModel("m", client=real)) == "ModelRequestForbidden"
        assert ask(OpenAIModel("m", client=StandIn())) == "LookupError"
    asyncio.run(real.close())


@pytest.mark.parametrize(("wrapped", "comes_of_it"), [(False, "PermanentError"), (True, "ModelRequestForbidden")])
def test_a_transport_that_reaches_nobody_is_no_real_model(wrapped: bool, comes_of_it: str) -> None:
    """Many tests answer there; a transport of somebody's own may hide a real one, and is refused."""

    class Retrying(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(404, json={})

    transport = Retrying() if wrapped else httpx2.MockTransport(lambda request: httpx2.Response(404, json={}))

    async def ask_once() -> str:
        async with httpx2.AsyncClient(transport=transport) as http:
            client = AsyncOpenAI(api_key="k", base_url=ELSEWHERE, http_client=http)
            with forbid_model_requests():
                try:
                    await OpenAIModel("m", client=client).generate(system="", messages=HELLO, tools=[])
                except Exception as error:
                    return type(error).__name__
        return "an answer"

    assert asyncio.run(ask_once()) == comes_of_it


def test_loopback_is_no_real_model() -> None:
    """By number and by name, on a model that was made before."""
    with Provider([Reply("hello")]) as provider:
        models = [
            OpenAIModel("m", base_url=provider.base_url),
            AnthropicModel("m", base_url=provider.anthropic_base_url),
            OpenAIModel("m", base_url=provider.base_url.replace("127.0.0.1", "localhost")),
            OpenAIModel("m", base_url=provider.base_url.replace("127.0.0.1", "LOCALHOST")),
        ]
        with forbid_model_requests():
            assert [ask(model) for model in models] == ["hello"] * 4


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.8.9.1:1/v1", True),
        ("http://[::1]:1/v1", True),
        ("http://it.localhost/v1", True),
        ("http://Ollama:11434/v1", True),
        ("https://api.openai.com/v1", False),
        ("http://127.0.0.1.evil.invalid/v1", False),
        ("http://localhost.invalid/v1", False),
        ("http://user:127.0.0.1@models.invalid/v1", False),
        ("http://0.0.0.0:1/v1", False),
        ("http://[2001:db8::1]/v1", False),
    ],
)
def test_what_is_loopback_is_read_from_the_host_alone(url: str, allowed: bool) -> None:
    """Anything else in an address that looks like it would be a way around."""
    with forbid_model_requests(hosts=["ollama"]):
        assert asking.rule is not None
        client = StandIn(base_url=url)
        if allowed:
            asking.rule(client)
        else:
            with pytest.raises(ModelRequestForbidden):
                asking.rule(client)


def test_the_innermost_block_rules_and_the_outer_one_comes_back() -> None:
    """Also after an exception."""
    model = OpenAIModel("m", client=StandIn(base_url=ELSEWHERE))
    told: list[str] = []

    def allowed() -> None:
        with allow_model_requests():
            told.append(ask(model))
            raise KeyError

    with forbid_model_requests():
        with pytest.raises(KeyError):
            allowed()
        told.append(ask(model))
        with forbid_model_requests(hosts=["models.invalid"]):
            told.append(ask(model))
        told.append(ask(model))
    assert told == ["LookupError", "ModelRequestForbidden", "LookupError", "ModelRequestForbidden"]
