"""What only Anthropic's API has, thoughts that go back as they came and a prompt cache; and the provider playing it."""

import asyncio
from typing import Any

import anthropic
import pytest

from drangue_client.messages import Message
from drangue_worker.models import AnthropicModel
from drangue_worker.testing.provider import Provider, Reply
from drangue_worker.tools.tool import tool
from tests.kit.ways import HELLO, Way

WAYS = [Way("anthropic", False), Way("anthropic", True)]
both_ways = pytest.mark.parametrize("way", WAYS, ids=str)
THINKING = (("Disks fill up. ", "c2lnLTE="), (None, "b3BhcXVl"), ("So look.", "c2lnLTI="))
BLOCKS = [
    {"type": "thinking", "thinking": "Disks fill up. ", "signature": "c2lnLTE="},
    {"type": "redacted_thinking", "data": "b3BhcXVl"},
    {"type": "thinking", "thinking": "So look.", "signature": "c2lnLTI="},
]


@tool
def disk_free(path: str) -> str:
    """Free space."""
    return path


@tool
def page(who: str) -> str:
    """Call somebody."""
    return who


@both_ways
def test_thoughts_go_back_exactly_as_they_came(way: Way) -> None:
    """They are signed: a conversation in which one was changed or left out is refused."""
    script = [Reply("Hm.", (("disk_free", {"path": "/"}),), thinking=THINKING), Reply("93% full.")]
    with Provider(script) as provider:
        decision = way.ask(provider, tools=[disk_free])
        calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in decision.tool_calls]
        messages: list[Message] = [
            *HELLO,
            {
                "role": "assistant",
                "content": decision.text,
                "tool_calls": calls,
                "thinking_blocks": decision.thinking_blocks,
            },
            {"role": "tool", "call_id": calls[0]["id"], "name": "disk_free", "content": "93%"},
        ]
        answer = way.ask(provider, messages, tools=[disk_free])

    assert decision.thinking_blocks == BLOCKS
    assert decision.reasoning == "Disks fill up. So look."
    assert provider.calls[1].body["messages"][1]["content"] == [
        *BLOCKS,
        {"type": "text", "text": "Hm."},
        {"type": "tool_use", "id": "toolu_1_0", "name": "disk_free", "input": {"path": "/"}},
    ]
    assert (answer.text, answer.reasoning, answer.thinking_blocks) == ("93% full.", None, [])


@both_ways
def test_the_cache_is_asked_for_and_its_share_of_the_tokens_counted(way: Way) -> None:
    """Instructions and tools are the same in every call of a run; from the cache they cost a tenth."""
    with Provider([Reply("hi", input_tokens=100, cached_tokens=60, cache_write_tokens=30)]) as provider:
        response = way.ask(
            provider, options={"cache": True}, system="Be brief.", tools=[disk_free, page], idempotency_key="r1:1"
        )
    (call,) = provider.calls

    mark = {"type": "ephemeral"}
    assert call.body["system"] == [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    assert [one.get("cache_control") for one in call.body["tools"]] == [None, mark]
    assert call.body["messages"] == HELLO
    assert (call.system, call.tools, call.idempotency_key) == ("Be brief.", ("disk_free", "page"), None)
    assert response.usage == {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 60,
    }


def test_a_high_ceiling_needs_no_stream() -> None:
    """The SDK refuses one by itself unless it is told how long to wait, which every request of ours does."""
    with Provider([Reply("hi")]) as provider:
        assert WAYS[0].ask(provider, options={"max_tokens": 100_000}).text == "hi"


# The provider


def sdk(provider: Provider, *, streamed: bool = False, **given: Any) -> Any:
    """What the SDK itself makes of an answer."""
    request = {"model": "claude-test", "max_tokens": 9, "messages": HELLO, **given}

    async def one() -> Any:
        async with anthropic.AsyncAnthropic(base_url=provider.anthropic_base_url, api_key="k", max_retries=0) as client:
            if not streamed:
                return await client.messages.create(**request)
            async with client.messages.stream(**request) as stream:
                return await stream.get_final_message()

    return asyncio.run(one())


def test_the_provider_s_stream_adds_up_to_its_answer() -> None:
    """Judged by the SDK's own reading of both."""
    calls: tuple[Any, ...] = (("disk_free", {"path": "/", "unit": "GiB"}, "a"), ("page", {}, "b"))
    reply = Reply("Let me look. ", calls, 100, thinking=THINKING, cached_tokens=60, cache_write_tokens=30)
    with Provider([reply]) as provider:
        whole, streamed = sdk(provider), sdk(provider, streamed=True)

    kinds = ["thinking", "redacted_thinking", "thinking", "text", "tool_use", "tool_use"]
    assert [block.type for block in whole.content] == kinds
    assert (whole.usage.input_tokens, whole.usage.cache_read_input_tokens, whole.usage.output_tokens) == (10, 60, 5)
    for name in ("content", "usage", "stop_reason", "model"):
        assert streamed.to_dict()[name] == whole.to_dict()[name]


def test_a_refusal_has_the_shape_of_the_real_one() -> None:
    """What reads the error's type, here or in a user's own code, must find it."""
    overloaded = Reply(status=529, error="Overloaded")
    with Provider([overloaded]) as provider, pytest.raises(anthropic.InternalServerError) as caught:
        sdk(provider)

    error = caught.value
    assert (error.status_code, error.type, error.api_message) == (529, "overloaded_error", "Overloaded")


CALL = {"type": "tool_use", "id": "a", "name": "page", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "ok"}


@pytest.mark.parametrize(
    ("turns", "named"),
    [
        ([{"role": "system", "content": "x"}], "unknown role"),
        ([{"role": "user", "content": ""}], "non-whitespace"),
        ([{"role": "assistant", "content": []}], "final block"),
        ([{"role": "assistant", "content": BLOCKS}], "final block"),
        ([{"role": "assistant", "content": [CALL]}], "missing: a"),
        ([{"role": "user", "content": [RESULT]}], "answers no open call"),
        (
            [
                {"role": "assistant", "content": [CALL]},
                {"role": "user", "content": [{"type": "text", "text": "x"}, RESULT]},
            ],
            "must come before text",
        ),
        ([{"role": "assistant", "content": [{**CALL, "id": "a.b"}]}], "must be unique and match"),
        ([{"role": "assistant", "content": [CALL, CALL]}], "must be unique and match"),
        ([{"role": "assistant", "content": [{**CALL, "input": "x"}]}], "valid dictionary"),
    ],
)
def test_the_provider_refuses_what_the_real_one_refuses(turns: list[Any], named: str) -> None:
    """A conversation rebuilt wrongly must fail here, not first where it is paid for."""
    with Provider([Reply("never")]) as provider:
        with pytest.raises(anthropic.BadRequestError, match=named):
            sdk(provider, messages=[*HELLO, *turns])
        assert provider.received == 0


def test_a_model_keeps_no_conversation() -> None:
    """Two runs share one model object, as they share everything of an agent."""

    async def both(provider: Provider) -> list[str]:
        model = AnthropicModel("claude-test", base_url=provider.anthropic_base_url, api_key="k")
        try:
            asked = [
                model.generate(system=name, messages=[{"role": "user", "content": name}], tools=[])
                for name in ("one", "two")
            ]
            return [response.text for response in await asyncio.gather(*asked)]
        finally:
            await model.aclose()

    with Provider(lambda call: Reply(f"{call.system}: {call.last_user()}")) as provider:
        assert asyncio.run(both(provider)) == ["one: one", "two: two"]
