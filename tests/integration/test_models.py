"""The adapters through the real SDKs over HTTP: both wire formats, streamed and whole, must mean the same."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from drangue_client.messages import Message, ModelResponse, ToolCall
from drangue_worker.testing.provider import Provider, Reply
from drangue_worker.tools.invoke import RAW_ARGUMENTS
from drangue_worker.tools.tool import tool
from tests.kit.ways import HELLO, Way, every_stream, every_way


@tool
def disk_free(path: str) -> str:
    """Free space."""
    return path


@tool
def page(who: str) -> str:
    """Call somebody."""
    return who


@every_way
def test_a_text_arrives_with_its_usage_and_its_stop(way: Way) -> None:
    """Counts never overlap: each kind of token has a price of its own."""
    with Provider([Reply("  All is well.\n", input_tokens=100, output_tokens=7, cached_tokens=64)]) as provider:
        response = way.ask(provider)

    stop = "end_turn" if way.wire == "anthropic" else "stop"
    usage = {"input_tokens": 36, "output_tokens": 7, "cache_read_input_tokens": 64}
    assert response == ModelResponse("  All is well.\n", usage=usage, stop_reason=stop)


@every_way
def test_tool_calls_arrive_in_order_beside_the_text(way: Way) -> None:
    """A stream sends each call in fragments; joined wrongly, one tool gets the other's arguments."""
    arguments = {"path": "/var/lib/postgresql", "quote": 'a "b" \\ ü', "deep": {"list": [1, None, True]}}
    reply = Reply("Let me look.", (("disk_free", arguments), ("page", {}), ("page", {"who": "ops"}, "mine")))
    with Provider([reply]) as provider:
        response = way.ask(provider, tools=[disk_free, page])
    (call,) = provider.calls

    prefix = "toolu" if way.wire == "anthropic" else "call"
    assert response.text == "Let me look."
    assert response.tool_calls == [
        ToolCall(f"{prefix}_1_0", "disk_free", arguments),
        ToolCall(f"{prefix}_1_1", "page", {}),
        ToolCall("mine", "page", {"who": "ops"}),
    ]
    assert response.stop_reason == ("tool_use" if way.wire == "anthropic" else "tool_calls")
    assert (call.tools, call.stream) == (("disk_free", "page"), way.streamed)


@every_way
@pytest.mark.parametrize("raw", ['{"path": ', '{"path": "/va', "[1]", "{'path': 1}"])
def test_arguments_that_are_no_object_are_kept_as_they_were_written(way: Way, raw: str) -> None:
    """It is for the model to correct; neither a crash nor a guess at what it meant."""
    with Provider([Reply(tool_calls=(("disk_free", raw),))]) as provider:
        response = way.ask(provider, tools=[disk_free])

    assert response.tool_calls[0].arguments == {RAW_ARGUMENTS: raw}


@every_way
def test_an_answer_cut_at_the_ceiling_says_so_in_the_providers_words(way: Way) -> None:
    """Whoever reads the log looks the word up in the provider's documentation."""
    reason = "max_tokens" if way.wire == "anthropic" else "length"
    with Provider([Reply("It is", finish_reason=reason)]) as provider:
        response = way.ask(provider, options={"max_tokens": 2})

    assert (response.text, response.stop_reason) == ("It is", reason)
    assert provider.calls[0].body["max_tokens"] == 2


@every_way
def test_a_whole_conversation_is_understood_by_the_provider(way: Way) -> None:
    """Parallel calls, a correction, a follow-up: what a run with every kind of turn looks like."""
    calls = [
        {"id": "a", "name": "disk_free", "arguments": {"path": "/"}},
        {"id": "b", "name": "page", "arguments": {RAW_ARGUMENTS: "{'who'"}},
    ]
    messages: list[Message] = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "call_id": "a", "name": "disk_free", "content": "93%"},
        {"role": "tool", "call_id": "b", "name": "page", "content": ""},
        {"role": "user", "content": "Be precise."},
        {"role": "assistant", "content": "93% full."},
        {"role": "user", "content": "Thanks"},
    ]
    with Provider([Reply("You are welcome.")]) as provider:
        way.ask(provider, messages, system="Be brief.", tools=[disk_free, page], idempotency_key="r1:7")
    (call,) = provider.calls

    unread = "{'who'" if way.wire == "openai" else {"INVALID_JSON": "{'who'"}
    assert call.system == "Be brief."
    assert call.messages == (
        {"role": "user", "content": "How is the disk?"},
        {"role": "assistant", "content": "", "tool_calls": [calls[0], {**calls[1], "arguments": unread}]},
        {"role": "tool", "call_id": "a", "content": "93%"},
        {"role": "tool", "call_id": "b", "content": ""},
        {"role": "user", "content": "Be precise."},
        {"role": "assistant", "content": "93% full.", "tool_calls": []},
        {"role": "user", "content": "Thanks"},
    )
    assert call.idempotency_key == ("r1:7" if way.wire == "openai" else None)


@every_stream
def test_a_stream_is_shown_word_by_word_while_it_comes(way: Way) -> None:
    """Somebody watches; and the pieces come in order, one awaited before the next is read."""
    shown: list[str] = []

    async def show(text: str) -> None:
        await asyncio.sleep(0.001)
        shown.append(text)

    with Provider([Reply("Well, that is all.", (("page", {"who": "ops"}),), chunk_delay_s=0.001)]) as provider:
        response = way.ask(provider, on_delta=show)

    assert shown == ["Well, ", "that ", "is ", "all."]
    assert response.text == "Well, that is all."


@every_way
def test_many_calls_share_a_client_and_a_second_loop_gets_its_own(way: Way) -> None:
    """One process holds hundreds of calls in flight; a connection belongs to the loop it was opened on."""

    async def crowd(model: Any) -> list[str]:
        asked = [way.generate(model, [{"role": "user", "content": str(number)}]) for number in range(30)]
        texts = [response.text for response in await asyncio.gather(*asked)]
        await model.aclose()
        return texts

    async def made(provider: Provider) -> Any:
        async with way.model(provider) as model:
            return model

    with Provider(lambda call: Reply(call.last_user(), delay_s=0.05)) as provider:
        model = asyncio.run(made(provider))
        expected = [str(number) for number in range(30)]
        assert [expected, expected] == [asyncio.run(crowd(model)), asyncio.run(crowd(model))]
        assert provider.peak_in_flight > 5


def test_importing_the_worker_loads_no_sdk() -> None:
    """Each costs a good part of a second and tens of megabytes, in every process that never thinks."""
    program = "import sys, drangue_worker; print(*[m for m in ('openai', 'anthropic', 'httpx2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
