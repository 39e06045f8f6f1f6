"""The scripted provider, judged by the SDK its users will point at it."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from drangue_worker.testing.provider import Provider, ProviderCall, Reply

USER = {"role": "user", "content": "How is the disk?"}
TOOLS = [{"type": "function", "function": {"name": "disk_free", "parameters": {"type": "object"}}}]
DECISION = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "disk_free", "arguments": '{"path": "/"}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "93%"}
PATIENCE_S = 20.0  # for a state that normally comes within milliseconds


@asynccontextmanager
async def sdk(provider: Provider) -> AsyncIterator[Callable[..., Coroutine[Any, Any, Any]]]:
    """The SDK's own create(), with a model and a user message unless told otherwise, and no retries."""
    async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="test", max_retries=0) as client:

        async def create(**given: Any) -> Any:
            return await client.chat.completions.create(**{"model": "m-1", "messages": [USER], **given})

        yield create


def ask(provider: Provider, **given: Any) -> ChatCompletion:
    async def one() -> ChatCompletion:
        async with sdk(provider) as create:
            answer = await create(**given)
            assert isinstance(answer, ChatCompletion)
            return answer

    return asyncio.run(one())


def ask_streamed(provider: Provider, **given: Any) -> list[ChatCompletionChunk]:
    async def one() -> list[ChatCompletionChunk]:
        async with sdk(provider) as create:
            return [c async for c in await create(stream=True, stream_options={"include_usage": True}, **given)]

    return asyncio.run(one())


def post(provider: Provider, path: str, body: bytes) -> tuple[int, Any]:
    """A request no SDK would send. The status and the decoded body of its answer."""
    port = int(provider.base_url.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    status, _, rest = answer.partition(b"\r\n")
    return int(status.split()[1]), json.loads(rest[rest.index(b"{") : rest.rindex(b"}") + 1])


def test_a_text_reply_arrives_whole_with_its_usage() -> None:
    """Budgets are computed from these numbers, the cached share of the prompt included."""
    with Provider([Reply("All is well.", input_tokens=100, output_tokens=7, cached_tokens=64)]) as provider:
        answer = ask(provider)

    assert answer.id == "chatcmpl-1"
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("All is well.", "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (100, 7, 107)
    assert answer.usage.prompt_tokens_details.cached_tokens == 64


def test_tool_calls_carry_their_arguments_and_stable_ids() -> None:
    """An id may be given by the script, to test one that comes twice; otherwise it follows from the call's number."""
    with Provider([Reply(tool_calls=(("disk_free", {"path": "/"}), ("page", {}, "mine")))]) as provider:
        choice = ask(provider).choices[0]

    assert choice.message.tool_calls is not None
    assert [call.id for call in choice.message.tool_calls] == ["call_1_0", "mine"]
    assert choice.message.tool_calls[0].function.arguments == '{"path": "/"}'  # type: ignore[union-attr]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")


def test_malformed_arguments_are_sent_verbatim() -> None:
    """Models do write broken JSON; what handles it can only be tested if the provider does not repair it."""
    with Provider([Reply(tool_calls=(("disk_free", '{"path": '),))]) as provider:
        whole = ask(provider).choices[0].message.tool_calls
        chunks = ask_streamed(provider)

    assert whole is not None
    assert whole[0].function.arguments == '{"path": '  # type: ignore[union-attr]
    assert fragments(chunks)[0] == '{"path": '


def fragments(chunks: list[ChatCompletionChunk]) -> dict[int, str]:
    """The arguments of each streamed call, put together by index."""
    found: dict[int, str] = {}
    for chunk in chunks:
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            assert call.function is not None
            found[call.index] = found.get(call.index, "") + (call.function.arguments or "")
    return found


def test_a_stream_splits_words_and_arguments_and_ends_with_the_usage() -> None:
    """A client that forgets to join fragments by index, or to read past the finish, must fail here."""
    arguments = {"path": "/var/lib/postgresql", "unit": "GiB"}
    reply = Reply("  Let me look. ", (("disk_free", arguments), ("page", {"who": "on call"})), 30, 9)
    with Provider([reply]) as provider:
        chunks = ask_streamed(provider)

    texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    opened = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or [] if call.id]
    pieces = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or [] if not call.id]
    assert texts == ["  ", "Let ", "me ", "look. "]
    assert [(call.index, call.id, call.function.name) for call in opened if call.function] == [
        (0, "call_1_0", "disk_free"),
        (1, "call_1_1", "page"),
    ]
    assert len(pieces) > 4
    assert [arguments, {"who": "on call"}] == [json.loads(raw) for raw in fragments(chunks).values()]
    assert chunks[-2].choices[0].finish_reason == "tool_calls"
    assert chunks[-1].choices == []
    assert [None] * (len(chunks) - 1) == [c.usage for c in chunks[:-1]]
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (30, 9)


def test_a_stream_with_pauses_shows_its_beginning_before_its_end() -> None:
    """Somebody watching a run sees the first words before the model has thought of the last ones."""

    async def first_chunk(provider: Provider) -> None:
        async with sdk(provider) as create:
            stream = await create(stream=True)
            await anext(stream)
            assert (provider.in_flight, provider.aborted) == (1, 0)
            await stream.close()

    with Provider([Reply("Well, that is all.", chunk_delay_s=600)]) as provider:
        asyncio.run(first_chunk(provider))
        provider.wait_for(lambda p: p.aborted == 1, PATIENCE_S)
    with Provider([Reply("Well, that is all.", chunk_delay_s=0.001)]) as provider:
        chunks = ask_streamed(provider)

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Well, that is all."


def test_a_script_sees_the_conversation_in_neutral_form() -> None:
    """A script written once must serve every wire format the provider speaks."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        USER,
        DECISION,
        RESULT,
    ]
    with Provider([Reply("unused"), Reply("93% full.")]) as provider:
        answer = ask(provider, messages=messages, tools=TOOLS, extra_headers={"Idempotency-Key": "run-7:3"})
    (call,) = provider.calls

    assert answer.choices[0].message.content == "93% full."
    assert (call.model, call.system, call.tools) == ("m-1", "Be brief.\n\nBe kind.", ("disk_free",))
    assert call.messages == (
        {"role": "user", "content": "How is the disk?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "name": "disk_free", "arguments": {"path": "/"}}],
        },
        {"role": "tool", "call_id": "c1", "content": "93%"},
    )
    assert (call.last_user(), call.results(), call.turn, call.number) == ("How is the disk?", ["93%"], 1, 1)
    assert (call.idempotency_key, call.stream, call.headers["authorization"]) == ("run-7:3", False, "Bearer test")
    assert messages == call.body["messages"]


def test_a_sequence_follows_the_conversation_and_not_the_order_of_calls() -> None:
    """Two runs share one provider, and a retried call gets the reply of its turn again."""
    with Provider([Reply("first"), Reply("last")]) as provider:
        answers = [
            ask(provider, messages=messages).choices[0].message.content
            for messages in (
                [USER, {"role": "assistant", "content": "a"}, USER],
                [USER],
                [USER],
                [USER, {"role": "assistant", "content": "a"}, USER, {"role": "assistant", "content": "b"}, USER],
            )
        ]

    assert answers == ["last", "first", "first", "last"]


def test_a_rate_limit_is_the_sdks_own_error_with_its_header() -> None:
    """The wait before the next attempt is read from this header."""
    refusal = Reply(status=429, error="slow down", error_code="rate_limit_exceeded", headers={"Retry-After": "2"})
    with Provider([refusal]) as provider, pytest.raises(openai.RateLimitError, match="slow down") as caught:
        ask(provider)

    assert caught.value.response.headers["retry-after"] == "2"
    assert (caught.value.type, caught.value.code) == ("rate_limit_error", "rate_limit_exceeded")


def test_a_server_error_is_an_answer_and_no_failure_of_the_script() -> None:
    """A scripted 500 tests the caller's retry; the block must leave quietly."""
    with Provider([Reply(status=500, error="overloaded")]) as provider:
        with pytest.raises(openai.InternalServerError, match="overloaded"):
            ask_streamed(provider)
        assert (provider.in_flight, provider.errors) == (0, [])


def test_hanging_up_is_a_connection_error() -> None:
    """The caller cannot know whether the provider worked, and billed, before the line broke."""
    with Provider([Reply(hang_up=True)]) as provider:
        with pytest.raises(openai.APIConnectionError):
            ask(provider)
        with pytest.raises(openai.APIConnectionError):
            ask_streamed(provider)
        assert (provider.received, provider.in_flight, provider.aborted) == (2, 0, 0)


def test_hanging_up_in_the_middle_of_a_stream_is_seen_after_the_first_chunks() -> None:
    """Text already shown must be followed by an error, never taken for the whole answer."""
    texts: list[str | None] = []

    async def read(provider: Provider) -> None:
        async with sdk(provider) as create:
            async for chunk in await create(stream=True):
                texts.append(chunk.choices[0].delta.content)  # noqa: PERF401 - what came before the error is the point

    broken = Reply("one two three", hang_up=True, hang_up_after=3)
    with Provider([broken]) as provider, pytest.raises(openai.APIConnectionError):
        asyncio.run(read(provider))

    assert texts == ["", "one ", "two "]


def test_two_hundred_slow_calls_are_in_flight_together() -> None:
    """A provider that answered one call after the other would hide every fault of concurrency."""
    full = asyncio.Event()

    async def when_full(call: ProviderCall) -> Reply:
        if call.number == 200:
            full.set()
        await full.wait()
        return Reply(call.last_user(), delay_s=0.2)

    async def crowd(provider: Provider) -> list[str]:
        async with sdk(provider) as create:
            asked = [create(messages=[{"role": "user", "content": str(n)}]) for n in range(200)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    with Provider(when_full) as provider:
        answers = asyncio.run(crowd(provider))

    assert [str(n) for n in range(200)] == answers
    assert (provider.received, provider.peak_in_flight, provider.in_flight, provider.aborted) == (200, 200, 0, 0)


def test_a_client_that_gives_up_is_noticed_and_counted() -> None:
    """A cancelled run must not leave its model call running; this is where a test sees that it did not."""

    async def give_up(provider: Provider) -> None:
        async with sdk(provider) as create:
            asked = asyncio.create_task(create())
            await asyncio.to_thread(provider.wait_for, lambda p: p.in_flight == 1, PATIENCE_S)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await asyncio.to_thread(provider.wait_for, lambda p: p.aborted == 1, PATIENCE_S)

    with Provider([Reply("too late", delay_s=600)]) as provider:
        asyncio.run(give_up(provider))
        assert (provider.received, provider.in_flight) == (1, 0)


def test_stopping_cuts_calls_off_and_starting_again_takes_the_same_address() -> None:
    """An outage: the provider is gone in the middle of a call and comes back where its clients look for it."""

    async def cut_off(provider: Provider) -> None:
        async with sdk(provider) as create:
            asked = asyncio.create_task(create())
            await asyncio.to_thread(provider.wait_for, lambda p: p.in_flight == 1, PATIENCE_S)
            await asyncio.to_thread(provider.stop)
            with pytest.raises(openai.APIConnectionError):
                await asked
            with pytest.raises(openai.APIConnectionError):
                await create()

    with Provider(lambda call: Reply("back", delay_s=600 if call.number == 1 else 0)) as provider:
        before = provider.base_url
        asyncio.run(cut_off(provider))
        provider.start()
        assert ("back", before) == (ask(provider).choices[0].message.content, provider.base_url)
        assert (provider.received, provider.in_flight, provider.aborted) == (2, 0, 0)


def test_a_script_that_raises_is_told_to_the_client_and_raised_on_leaving() -> None:
    """A mistake in a script must not pass for the provider failure it looks like from the client's side."""

    def broken(call: ProviderCall) -> Reply:
        pytest.fail(f"unexpected call {call.number}")

    with (
        pytest.RaisesGroup(pytest.RaisesExc(pytest.fail.Exception, match="unexpected call 1")),
        Provider(broken) as provider,
        pytest.raises(openai.InternalServerError, match="the script raised Failed: unexpected call 1"),
    ):
        ask(provider)


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ("no Reply", "TypeError: a script returns a Reply"),
        (Reply(tool_calls=(("page", {"who": object()}),)), "TypeError: Object of type object"),
        (Reply(headers={"retry-after": "2\r\n"}), "LocalProtocolError"),
    ],
)
def test_a_reply_that_cannot_be_sent_is_an_error_of_the_script(reply: Any, named: str) -> None:
    """The client gets an answer, not silence, and an expected error is taken out of the list."""
    with Provider(lambda call: reply) as provider:
        with pytest.raises(openai.InternalServerError, match=named):
            ask(provider)
        provider.errors.pop()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"model": ""}, "'model'"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user2", "content": "x"}]}, "unknown role 'user2'"),
        ({"messages": [USER, DECISION, USER]}, "missing: c1"),
        ({"messages": [USER, DECISION]}, "missing: c1"),
        ({"messages": [USER, RESULT]}, "'c1' answers no open call"),
        ({"messages": [USER, DECISION, RESULT, RESULT]}, "'c1' answers no open call"),
        ({"tools": [{"type": "function"}]}, "KeyError: 'function'"),
    ],
)
def test_a_request_no_provider_would_take_is_refused_by_name(given: dict[str, Any], named: str) -> None:
    """A conversation rebuilt wrongly after a crash must fail here, not first at a real provider."""
    with Provider([Reply("never")]) as provider:
        with pytest.raises(openai.BadRequestError, match=named):
            ask(provider, **given)
        assert (provider.received, provider.calls) == (0, ())


def test_bad_json_and_unknown_paths_are_client_errors() -> None:
    """The wrong base URL is the most common mistake there is, so the refusal says what is served."""
    with Provider([Reply("never")]) as provider:
        assert post(provider, "/v1/chat/completions", b"{")[0] == 400
        assert post(provider, "/v1/chat/completions", b"[]")[0] == 400
        status, body = post(provider, "/chat/completions", b"{}")

    assert status == 404
    served = "/v1/chat/completions, /v1/messages"
    assert body["error"]["message"] == f"there is no POST /chat/completions here, only POST {served}"


def test_the_list_of_models_is_empty() -> None:
    """Some tools ask for it to see whether a provider is there."""

    async def listed(provider: Provider) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="test", max_retries=0) as client:
            return [model async for model in client.models.list()]

    with Provider([Reply("never")]) as provider:
        assert asyncio.run(listed(provider)) == []


def test_waiting_in_vain_tells_what_was_seen_instead() -> None:
    """A test that times out should not need a debugger."""
    with Provider([Reply("hello")]) as provider:
        ask(provider)
        with pytest.raises(TimeoutError, match="'received': 1"):
            provider.wait_for(lambda p: p.received == 2, 0.01)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_as_a_process_of_its_own_until_told_to_stop(tmp_path: Path, stop: signal.Signals) -> None:
    """Benchmarks and the demo need the provider's work outside the process they measure or show."""
    (tmp_path / "demo_script.py").write_text(
        "from drangue_worker.testing.provider import Reply\n\ndef script(call):\n    return Reply(call.last_user())\n"
    )
    command = [sys.executable, "-m", "drangue_worker.testing.provider", "demo_script:script", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base_url = process.stdout.readline().strip()

            async def one() -> str:
                async with openai.AsyncOpenAI(base_url=base_url, api_key="test", max_retries=0) as client:
                    answer = await client.chat.completions.create(model="m-1", messages=[USER])  # type: ignore[list-item]
                    return str(answer.choices[0].message.content)

            assert asyncio.run(one()) == "How is the disk?"
            process.send_signal(stop)
            assert process.wait(timeout=PATIENCE_S) == 0
        finally:
            process.kill()
