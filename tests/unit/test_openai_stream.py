"""OpenAI's streams without a provider: chunks as compatible servers send them, put together."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest

from drangue_client.errors import PermanentError, RateLimitError, TransientError
from drangue_client.messages import Message, ModelResponse, ToolCall
from drangue_worker.models.openai import OpenAIModel

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
STOP: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def streaming(*chunks: dict[str, Any], **given: Any) -> tuple[ModelResponse, dict[str, Any]]:
    """One streamed call through the real SDK, without a network, and what was sent for it."""
    sent: list[dict[str, Any]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(json.loads(request.content))
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        return httpx2.Response(200, content=text.encode(), headers={"content-type": "text/event-stream"})

    async def nowhere(text: str) -> None:
        assert text

    async def go() -> ModelResponse:
        transport = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
        async with openai.AsyncOpenAI(
            api_key="k", base_url="http://provider/v1", max_retries=0, http_client=transport
        ) as client:
            model = OpenAIModel("m", client=client, **given)
            return await model.generate(system="", messages=HELLO, tools=[], on_delta=nowhere)

    return asyncio.run(go()), sent[0]


def delta(finish: str | None = None, index: int | None = 0, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}]}


def fragment(arguments: str, **call: Any) -> dict[str, Any]:
    name = call.pop("name", None)
    return delta(tool_calls=[{**call, "function": {"name": name, "arguments": arguments}}])


def test_a_stream_is_asked_to_end_with_its_usage_unless_told_otherwise() -> None:
    """Without it a budget would see nothing; a server that refuses the option must be servable."""
    assert streaming(STOP)[1]["stream_options"] == {"include_usage": True}
    assert streaming(STOP, stream_options={"include_usage": False})[1]["stream_options"] == {"include_usage": False}


def test_chunks_without_a_choice_carry_only_the_usage() -> None:
    """The last one has it; some servers send empty ones in between, or count in every chunk."""
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    early = {**delta(content="Hi"), "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    response, _ = streaming({"choices": []}, early, STOP, {"choices": [], "usage": usage}, {"choices": []})
    assert response == ModelResponse(
        "Hi", usage={"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 4}, stop_reason="stop"
    )
    assert streaming(delta(content="Hi"), STOP)[0].usage is None


def test_fragments_are_joined_by_index_and_ordered_by_it() -> None:
    """They may come mixed, their id and name once or every time."""
    response, _ = streaming(
        fragment("", index=1, id="b", name="page"),
        fragment('{"a"', index=0, id="a", name="read"),
        fragment('{"b": 2}', index=1, id="b", name="page"),
        fragment(": 1}", index=0),
        delta("tool_calls"),
    )
    assert response.tool_calls == [ToolCall("a", "read", {"a": 1}), ToolCall("b", "page", {"b": 2})]


def test_without_an_index_an_id_begins_the_next_call() -> None:
    """Some servers leave it out."""
    response, _ = streaming(
        fragment('{"a"', id="a", name="read"), fragment(": 1}"), fragment("", id="b", name="page"), delta("tool_calls")
    )
    assert response.tool_calls == [ToolCall("a", "read", {"a": 1}), ToolCall("b", "page", {})]


def test_a_call_without_an_id_is_read() -> None:
    """The engine numbers calls itself."""
    assert streaming(fragment("{}", index=0, name="read"), STOP)[0].tool_calls == [ToolCall("", "read", {})]


def test_only_the_first_choice_is_read() -> None:
    """Whole answers are read the same."""
    response, _ = streaming(delta(content="a", index=None), delta(content="x", index=1), delta(content="b"), STOP)
    assert response.text == "ab"


def test_a_stream_without_its_end_is_no_answer() -> None:
    """A proxy that closes politely in the middle leaves no other trace."""
    with pytest.raises(TransientError, match="ended before"):
        streaming(delta(content="Hi"))


@pytest.mark.parametrize(
    ("code", "error"), [(502, TransientError), (429, RateLimitError), ("400", PermanentError), (None, TransientError)]
)
def test_an_error_in_the_middle_may_carry_the_status_it_could_not_have(code: Any, error: type[Exception]) -> None:
    """Routers between us and a provider pass its failure on so."""
    with pytest.raises(error, match="no luck") as caught:
        streaming(delta(content="Hi"), {"error": {"message": "no luck", "code": code}})
    assert type(caught.value) is error


def test_an_option_for_streams_is_left_out_of_whole_answers() -> None:
    """Servers refuse it there, and the same model serves both."""
    model = OpenAIModel("m", stream_options={"include_usage": False}, client=Recorder())  # type: ignore[arg-type]
    asyncio.run(model.generate(system="", messages=HELLO, tools=[]))


class Recorder:
    """A client of somebody's own making."""

    @property
    def chat(self) -> Recorder:
        return self

    completions = chat

    async def create(self, **request: Any) -> Any:
        assert set(request) == {"model", "messages", "max_tokens", "timeout"}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
        return openai.types.chat.ChatCompletion.construct(choices=[choice])
