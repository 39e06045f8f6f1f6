"""OpenAI's Chat Completions without a provider: what is sent, and how an answer or a refusal is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest

from drangue_client.errors import (
    AuthError,
    NoCredentials,
    PermanentError,
    RateLimitError,
    ToolError,
    TransientError,
)
from drangue_client.messages import Message, ModelResponse, ToolCall
from drangue_client.submission import check_run_id
from drangue_worker.models.openai import OpenAIModel
from drangue_worker.tools.invoke import RAW_ARGUMENTS
from drangue_worker.tools.tool import tool


@tool
def read(city: str) -> str:
    """Read."""
    return city


HELLO: list[Message] = [{"role": "user", "content": "hello"}]
ANSWER: dict[str, Any] = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
}


def request(
    model: str = "gpt-4o", *, system: str = "", messages: list[Message] = HELLO, key: str | None = None, **given: Any
) -> dict[str, Any]:
    """What the SDK is asked to send."""
    tools = given.pop("tools", [])
    return OpenAIModel(model, **given)._request(system, messages, tools, key)


def exchange(answer: Callable[[httpx2.Request], httpx2.Response]) -> ModelResponse:
    """One call through the real SDK to a transport that answers without a network."""

    async def go() -> ModelResponse:
        transport = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
        async with openai.AsyncOpenAI(
            api_key="k", base_url="http://provider/v1", max_retries=0, http_client=transport
        ) as client:
            return await OpenAIModel("m", client=client).generate(system="", messages=HELLO, tools=[])

    return asyncio.run(go())


def answering(body: Any, status: int = 200, **headers: str) -> ModelResponse:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(
        lambda _: httpx2.Response(status, content=text, headers={"content-type": "application/json", **headers})
    )


def saying(usage: Any = None, stop: str = "stop", **message: Any) -> ModelResponse:
    """A completion whose one message has these fields."""
    choice = {"index": 0, "finish_reason": stop, "message": {"role": "assistant", "content": None, **message}}
    return answering({**ANSWER, "choices": [choice], "usage": usage})


def calling(arguments: Any, **call: Any) -> list[ToolCall]:
    """The calls read from an answer with one tool call."""
    one = {"id": "a", "type": "function", "function": {"name": "read", "arguments": arguments}, **call}
    return saying(tool_calls=[one], stop="tool_calls").tool_calls


# What is sent


def test_a_conversation_is_rendered_message_by_message() -> None:
    """Every compatible server reads this shape."""
    messages: list[Message] = [
        {"role": "user", "content": "How is Oslo?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "a", "name": "read", "arguments": {"city": "Oslo"}}],
        },
        {"role": "tool", "call_id": "a", "name": "read", "content": "cold"},
        {"role": "assistant", "content": "Cold."},
        {"role": "user", "content": "Thanks"},
    ]
    function = {"name": "read", "arguments": '{"city": "Oslo"}'}
    assert request(system="Be brief.", messages=messages)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "a", "content": "cold"},
        {"role": "assistant", "content": "Cold."},
        {"role": "user", "content": "Thanks"},
    ]


def test_arguments_that_could_not_be_read_are_shown_as_the_model_wrote_them() -> None:
    """Our own marker is nothing it ever said."""
    calls = [{"id": "a", "name": "read", "arguments": {RAW_ARGUMENTS: '{"city": '}}]
    rendered = request(messages=[{"role": "assistant", "content": "", "tool_calls": calls}])["messages"]
    assert rendered[0]["tool_calls"][0]["function"]["arguments"] == '{"city": '


def test_tools_are_sent_as_functions_and_not_at_all_where_there_are_none() -> None:
    """An empty list is refused by some servers."""
    function = {"name": "read", "description": "Read.", "parameters": read.parameters}
    assert request(tools=[read])["tools"] == [{"type": "function", "function": function}]
    assert "tools" not in request()


@pytest.mark.parametrize(
    ("model", "ceiling"),
    [
        ("gpt-4o", "max_tokens"),
        ("deepseek-chat", "max_tokens"),
        ("o1-mini", "max_completion_tokens"),
        ("O3", "max_completion_tokens"),
        ("o4-mini", "max_completion_tokens"),
        ("gpt-5-mini", "max_completion_tokens"),
    ],
)
def test_the_output_ceiling_goes_by_the_name_the_model_knows(model: str, ceiling: str) -> None:
    """Reasoning models refuse the old name, and other servers the new one."""
    assert {name: value for name, value in request(model, max_tokens=99).items() if "tokens" in name} == {ceiling: 99}


def test_a_new_style_ceiling_of_one_s_own_replaces_ours() -> None:
    """Both together are refused."""
    sent = request(max_tokens=99, max_completion_tokens=7)
    assert {name: value for name, value in sent.items() if "tokens" in name} == {"max_completion_tokens": 7}


def test_further_keywords_go_into_every_request_and_win() -> None:
    """Whatever a server wants that this adapter has never heard of."""
    sent = request(temperature=0.1, model="gpt-4o", extra_body={"seed": 1})
    assert (sent["temperature"], sent["extra_body"]) == (0.1, {"seed": 1})


def test_the_key_is_sent_as_a_header_beside_those_of_the_user() -> None:
    """A provider that knows it answers a repeated attempt without doing the work twice."""
    given = {"X-Team": "ops"}
    assert request(key="r1:3", extra_headers=given)["extra_headers"] == {"X-Team": "ops", "Idempotency-Key": "r1:3"}
    assert given == {"X-Team": "ops"}
    assert "extra_headers" not in request()


@pytest.mark.parametrize("run_id", ["größe-1", "実行", "r1"])
def test_every_run_id_that_is_accepted_can_be_sent(run_id: str) -> None:
    """A header is ASCII; a run with another letter in its id would fail at its first thought, every time."""
    header = request(key=f"{check_run_id(run_id)}:3")["extra_headers"]["Idempotency-Key"]
    assert header.isascii()
    assert header != request(key="other:3")["extra_headers"]["Idempotency-Key"]


def test_an_id_of_plain_letters_is_sent_as_it_is() -> None:
    """Whoever searches the provider's logs for it must find it."""
    assert request(key="order/17#a%b:3")["extra_headers"]["Idempotency-Key"] == "order/17#a%b:3"


def test_one_request_does_not_leak_into_the_next() -> None:
    """The keywords are the model's, shared by all runs."""
    model = OpenAIModel("gpt-4o", extra_headers={"X-Team": "ops"})
    model._request("", HELLO, [read], "r1:1")
    assert model._request("", HELLO, [], None) == OpenAIModel("gpt-4o", extra_headers={"X-Team": "ops"})._request(
        "", HELLO, [], None
    )


# What is read


def test_a_text_is_read_with_its_stop_and_usage() -> None:
    """The plain case."""
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    assert saying(usage, content="hi") == ModelResponse(
        text="hi", usage={"input_tokens": 12, "output_tokens": 3}, stop_reason="stop"
    )


def test_cached_tokens_are_not_counted_twice() -> None:
    """They are part of the provider's prompt tokens and have a price of their own."""
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}
    assert saying(usage, content="hi").usage == {
        "input_tokens": 4,
        "output_tokens": 3,
        "cache_read_input_tokens": 8,
    }


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": 0}, {"cached_tokens": None}])
def test_servers_without_a_cache_count_nothing_cached(details: Any) -> None:
    """Compatible servers fill in what they have."""
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": details}
    assert saying(usage, content="hi").usage == {"input_tokens": 12, "output_tokens": 3}


def test_an_answer_without_usage_has_none() -> None:
    """Zero would be a claim."""
    assert saying(content="hi").usage is None


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"city": "Oslo"}', {"city": "Oslo"}),
        ("", {}),
        ("  ", {}),
        ("{}", {}),
        ('{"city": ', {RAW_ARGUMENTS: '{"city": '}),
        ("[1]", {RAW_ARGUMENTS: "[1]"}),
        ('"Oslo"', {RAW_ARGUMENTS: '"Oslo"'}),
        ("[" * 100_000, {RAW_ARGUMENTS: "[" * 100_000}),
        ("1" * 5_000, {RAW_ARGUMENTS: "1" * 5_000}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_arguments_are_an_object_or_what_the_model_wrote(text: str, arguments: dict[str, Any]) -> None:
    """Models write broken JSON; that is theirs to correct and no reason for the run to fail."""
    assert calling(text) == [ToolCall("a", "read", arguments)]


def test_a_call_without_an_id_is_read() -> None:
    """Some servers give none; the engine numbers calls itself."""
    assert calling("{}", id=None) == [ToolCall("", "read", {})]


def test_a_call_without_a_type_is_read() -> None:
    """Some servers leave it out; dropped, the call would turn into an empty answer that ends the run as answered."""
    one = {"id": "a", "function": {"name": "read", "arguments": "{}"}}
    assert saying(tool_calls=[one], stop="tool_calls").tool_calls == [ToolCall("a", "read", {})]


def test_text_beside_calls_is_kept() -> None:
    """It is what the model says while it acts."""
    one = {"id": "a", "type": "function", "function": {"name": "read", "arguments": "{}"}}
    response = saying(content="Let me look.", tool_calls=[one, {**one, "id": "b"}], stop="tool_calls")
    assert (response.text, [call.id for call in response.tool_calls]) == ("Let me look.", ["a", "b"])
    assert response.stop_reason == "tool_calls"


@pytest.mark.parametrize("body", [{**ANSWER, "choices": []}, {"error": {"message": "overloaded"}}])
def test_an_answer_without_a_choice_is_worth_another_attempt(body: Any) -> None:
    """Gateways send their own troubles with status 200."""
    with pytest.raises(TransientError):
        answering(body)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>Welcome to nginx</html>", "text/html"),
        (b'{"id": "c1", "choi', "application/json"),
        (b'{"id": "c1", "choices": [{"index": 0, "finish_reason": "stop"}]}', "application/json"),
    ],
    ids=["a page", "half an answer", "no message"],
)
def test_what_is_no_completion_is_said_in_our_own_words(body: bytes, kind: str) -> None:
    """A wrong base URL answers with a web page; `'str' object has no attribute 'choices'` helps nobody at night."""
    with pytest.raises(ToolError):
        answering(body, **{"content-type": kind})


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, PermanentError),
        (401, AuthError),
        (403, AuthError),
        (404, PermanentError),
        (408, TransientError),
        (409, TransientError),
        (422, PermanentError),
        (429, RateLimitError),
        (500, TransientError),
        (503, TransientError),
        (529, TransientError),
    ],
)
def test_a_refusal_is_one_of_our_errors(status: int, error: type[Exception]) -> None:
    """The engine retries by type, and its own retries stand in for the SDK's, which would have tried these again."""
    with pytest.raises(ToolError, match="no luck") as caught:
        answering({"error": {"message": "no luck"}}, status)
    assert type(caught.value) is error


def test_an_unreachable_provider_is_worth_another_attempt() -> None:
    """Networks come back."""

    def refuse(sent: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=sent)

    with pytest.raises(TransientError):
        exchange(refuse)


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0.5", 0.5), ("soon", None), ("", None), ("inf", None), ("nan", None)]
)
def test_a_rate_limit_carries_the_wait_that_was_asked_for(header: str, seconds: float | None) -> None:
    """What is no number of seconds is no wish: the ordinary backoff then holds."""
    with pytest.raises(RateLimitError) as caught:
        answering({}, 429, **{"retry-after": header})
    assert caught.value.retry_after == seconds


# Keys and clients


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        ({"api_key": "k"}, {}),
        ({}, {"OPENAI_API_KEY": "k"}),
        ({"base_url": "http://localhost:11434/v1"}, {}),
        ({}, {"OPENAI_BASE_URL": "http://localhost:11434/v1"}),
        ({"client": SimpleNamespace(chat=None)}, {}),
    ],
    ids=["given", "environment", "own server", "own server by environment", "own client"],
)
def test_a_model_that_can_be_called_passes_its_check(
    given: dict[str, Any], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of one's own asks for no key."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    OpenAIModel("m", **given).check()


def test_a_model_without_a_key_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first run, and in words of our own."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NoCredentials, match=r"'m'.*OPENAI_API_KEY.*OPENAI_BASE_URL"):
        OpenAIModel("m").check()


def test_a_model_without_a_name_is_refused() -> None:
    """An unset variable in a config file."""
    with pytest.raises(ValueError, match="model is empty"):
        OpenAIModel("")


def test_a_server_of_one_s_own_is_called_with_some_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not read it, but the SDK insists on one."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert OpenAIModel("m", base_url="http://localhost:11434/v1")._key()


def test_one_client_serves_a_loop_and_no_other() -> None:
    """Connections belong to the loop they were opened on; the SDK's own retries stay off, ours are counted."""
    model = OpenAIModel("m", api_key="k", timeout=3.0)

    async def client() -> Any:
        made = model._client()
        assert model._client() is made
        await model.aclose()
        await model.aclose()
        return made

    first, second = asyncio.run(client()), asyncio.run(client())
    assert first is not second
    assert (first.max_retries, first.timeout) == (0, 3.0)
    assert first.is_closed()
