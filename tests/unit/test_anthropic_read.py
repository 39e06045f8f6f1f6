"""Anthropic's Messages without a provider: how an answer, whole or in events, is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest

from drangue_client.errors import PermanentError, ToolError, TransientError
from drangue_client.messages import ModelResponse, ToolCall
from drangue_worker.models.anthropic import AnthropicModel
from drangue_worker.tools.invoke import RAW_ARGUMENTS

SIGNED = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
REDACTED = {"type": "redacted_thinking", "data": "b3BhcXVl"}


def exchange(answer: Callable[[httpx2.Request], httpx2.Response], *, streamed: bool = False) -> ModelResponse:
    """One call through the real SDK to a transport that answers without a network."""

    async def nowhere(text: str) -> None: ...

    async def go() -> ModelResponse:
        transport = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
        async with anthropic.AsyncAnthropic(
            api_key="k", base_url="http://provider", max_retries=0, http_client=transport
        ) as client:
            model = AnthropicModel("m", client=client)
            return await model.generate(
                system="",
                messages=[{"role": "user", "content": "hello"}],
                tools=[],
                on_delta=nowhere if streamed else None,
            )

    return asyncio.run(go())


def answering(body: Any, kind: str = "application/json", status: int = 200) -> ModelResponse:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(lambda _: httpx2.Response(status, content=text, headers={"content-type": kind}))


def saying(*content: Any, **more: Any) -> ModelResponse:
    """A message of these blocks."""
    return answering({"type": "message", "role": "assistant", "content": list(content), "stop_reason": "x", **more})


def streaming(*events: dict[str, Any]) -> ModelResponse:
    text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return exchange(
        lambda _: httpx2.Response(200, content=text.encode(), headers={"content-type": "text/event-stream"}),
        streamed=True,
    )


def test_texts_are_joined_and_what_is_unknown_is_passed_over() -> None:
    """The API answers in blocks, and gets new kinds of them."""
    one, two = ({"type": "text", "text": text} for text in ("a", "b"))
    assert saying(one, {"type": "nova", "text": "?"}, two) == ModelResponse("ab", stop_reason="x")


def test_thoughts_are_kept_for_people_and_for_the_way_back() -> None:
    """People read the reasoning; the provider wants its blocks."""
    response = saying(SIGNED, REDACTED, {"type": "text", "text": "Hi."})
    assert (response.reasoning, response.thinking_blocks) == ("Hm.", [SIGNED, REDACTED])
    assert (saying().reasoning, saying(REDACTED).reasoning) == (None, None)


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ({"city": "Oslo"}, {"city": "Oslo"}),
        ({}, {}),
        (None, {}),
        ([1], {RAW_ARGUMENTS: "[1]"}),
        ("Oslo", {RAW_ARGUMENTS: "Oslo"}),
    ],
)
def test_arguments_are_an_object_or_what_was_written(given: Any, arguments: dict[str, Any]) -> None:
    """Compatible servers are not all as strict as the real one."""
    response = saying({"type": "tool_use", "id": "a", "name": "read", "input": given})
    assert response.tool_calls == [ToolCall("a", "read", arguments)]


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, None),
        ({"input_tokens": 3, "output_tokens": 1}, {"input_tokens": 3, "output_tokens": 1}),
        (
            {"input_tokens": 3, "output_tokens": 1, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 7},
            {"input_tokens": 3, "output_tokens": 1, "cache_creation_input_tokens": 7},
        ),
    ],
)
def test_usage_names_the_cache_where_it_was_used(usage: Any, counts: Any) -> None:
    """Without any, zero would be a claim."""
    assert saying(usage=usage).usage == counts


@pytest.mark.parametrize(
    ("body", "kind", "error", "words"),
    [
        (b"<html>Welcome to nginx</html>", "text/html", PermanentError, "Welcome.*base_url"),
        (b'{"id": "c1", "cont', "application/json", TransientError, "JSONDecodeError"),
        ({"type": "error", "error": {"message": "x"}}, "application/json", TransientError, "without the content"),
    ],
    ids=["a page", "half an answer", "an error"],
)
def test_what_is_no_message_is_said_in_our_own_words(body: Any, kind: str, error: type[ToolError], words: str) -> None:
    """A wrong base URL answers with a web page, a gateway tells its troubles with status 200."""
    with pytest.raises(error, match=words):
        answering(body, kind)


START = {
    "type": "message_start",
    "message": {"content": [], "usage": {"input_tokens": 9, "output_tokens": 1, "cache_read_input_tokens": 4}},
}
STOP = {"type": "message_stop"}


def test_the_counts_of_a_stream_are_totals() -> None:
    """Added up, the output would be paid twice; a count that is not repeated stands."""
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 6}}
    response = streaming(START, {"type": "ping"}, {"type": "nova"}, end, STOP)
    assert response.usage == {"input_tokens": 9, "output_tokens": 6, "cache_read_input_tokens": 4}
    assert response.stop_reason == "end_turn"


def test_a_stream_may_give_a_block_whole_and_hold_what_nobody_knows() -> None:
    """Compatible servers do the first, the API's future the second."""
    events: list[dict[str, Any]] = [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hi"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "nova_delta", "x": 1}},
        {"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta", "text": "?"}},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "a", "name": "read", "input": {"city": "Oslo"}},
        },
    ]
    response = streaming(START, *events, STOP)
    assert (response.text, response.tool_calls) == ("Hi", [ToolCall("a", "read", {"city": "Oslo"})])


def test_a_stream_without_its_end_is_no_answer() -> None:
    """A proxy that closes politely in the middle leaves no other trace."""
    with pytest.raises(TransientError, match="ended before"):
        streaming(START, {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hi"}})


def test_a_spent_account_is_no_rate_limit() -> None:
    """It comes as one, but waiting does not help."""
    details = {"error_code": "enforced_spend_limit_reached"}
    body = {"type": "error", "error": {"type": "rate_limit_error", "message": "no money", "details": details}}
    with pytest.raises(PermanentError, match="no money"):
        answering(body, status=429)
