"""Anthropic's Messages without a provider: what is sent, by whom, and over which client."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from drangue_client.errors import NoCredentials
from drangue_client.messages import Message
from drangue_worker.models.anthropic import AnthropicModel
from drangue_worker.tools.invoke import RAW_ARGUMENTS
from drangue_worker.tools.tool import tool


@tool
def read(city: str) -> str:
    """Read."""
    return city


HELLO: list[Message] = [{"role": "user", "content": "hello"}]
SIGNED = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
REDACTED = {"type": "redacted_thinking", "data": "b3BhcXVl"}


def request(*, system: str = "", messages: list[Message] = HELLO, tools: Any = (), **given: Any) -> dict[str, Any]:
    """What the SDK is asked to send."""
    return AnthropicModel("claude-x", **given)._request(system, messages, tools)


def decision(text: str = "", *ids: str, **more: Any) -> Message:
    """A turn of the assistant that calls `read` under these ids."""
    calls = [{"id": call_id, "name": "read", "arguments": {"city": call_id}} for call_id in ids]
    return {"role": "assistant", "content": text, "tool_calls": calls, **more}


def result(call_id: str, content: str = "ok") -> Message:
    return {"role": "tool", "call_id": call_id, "name": "read", "content": content}


def rendered(*messages: Message) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = request(messages=list(messages))["messages"]
    return found


# What is sent


def test_a_conversation_is_rendered_block_by_block() -> None:
    """Results of one decision stand together in one message: the next one must answer every call."""
    assert rendered(*HELLO, decision("Let me look.", "a", "b"), result("a"), result("b", "cold"), *HELLO) == [
        {"role": "user", "content": "hello"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "a", "name": "read", "input": {"city": "a"}},
                {"type": "tool_use", "id": "b", "name": "read", "input": {"city": "b"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "ok"},
                {"type": "tool_result", "tool_use_id": "b", "content": "cold"},
            ],
        },
        {"role": "user", "content": "hello"},
    ]


def test_results_of_two_decisions_stay_apart() -> None:
    """Each answers the message before it."""
    turns = rendered(decision("", "a"), result("a"), decision("", "b"), result("b"))
    assert [turn["role"] for turn in turns] == ["assistant", "user", "assistant", "user"]


def test_thoughts_come_first_and_unchanged() -> None:
    """They are signed."""
    (turn,) = rendered(decision("Look.", "a", thinking_blocks=[SIGNED, REDACTED]))
    assert turn["content"][:2] == [SIGNED, REDACTED]
    assert [block["type"] for block in turn["content"][2:]] == ["text", "tool_use"]


@pytest.mark.parametrize("said", ["", " \n"])
@pytest.mark.parametrize("thoughts", [[], [SIGNED]])
def test_a_turn_without_words_or_calls_is_left_out(said: str, thoughts: list[Any]) -> None:
    """The API refuses an empty text and a message that ends in thoughts; a run that holds one would never go on."""
    turn = {"role": "assistant", "content": said, "thinking_blocks": thoughts}
    assert rendered(*HELLO, turn, *HELLO) == [*HELLO, *HELLO]


def test_words_of_space_beside_a_call_are_left_out() -> None:
    """The call is what was meant."""
    (turn,) = rendered(decision("\n\n", "a"))
    assert [block["type"] for block in turn["content"]] == ["tool_use"]


def test_ids_of_another_provider_are_made_to_fit_and_results_follow_them() -> None:
    """A router may have asked somebody else before: `functions.read:0`, and once more in the next decision."""
    turns = rendered(
        decision("", "functions.read:0", "functions_read_0", ""),
        *(result(one) for one in ("functions.read:0", "functions_read_0", "")),
        decision("", "functions_read_0"),
        result("functions_read_0"),
    )
    asked = [block["id"] for turn in turns[::2] for block in turn["content"]]
    answered = [block["tool_use_id"] for turn in turns[1::2] for block in turn["content"]]
    assert asked == answered == ["functions_read_0", "functions_read_0_2", "call", "functions_read_0_3"]


def test_arguments_that_could_not_be_read_are_wrapped() -> None:
    """The API takes objects only, and our own marker is nothing the model ever said."""
    call = {"id": "a", "name": "read", "arguments": {RAW_ARGUMENTS: '{"city": '}}
    (turn,) = rendered({"role": "assistant", "content": "", "tool_calls": [call]})
    assert turn["content"][0]["input"] == {"INVALID_JSON": '{"city": '}


def test_what_there_is_none_of_is_not_sent() -> None:
    """An empty system text or list of tools is refused."""
    assert set(request()) == {"model", "max_tokens", "timeout", "messages"}
    sent = request(system="Be brief.", tools=[read])
    assert (sent["system"], sent["tools"]) == ("Be brief.", [read.to_schema()])


def test_the_cache_marks_instructions_and_the_last_tool_and_no_tool_of_ours() -> None:
    """The mark is for one request; a Tool is shared by all of them."""
    mark = {"cache_control": {"type": "ephemeral"}}
    sent = request(system="Be brief.", tools=[read, read], cache=True)
    assert sent["system"] == [{"type": "text", "text": "Be brief.", **mark}]
    assert sent["tools"] == [read.to_schema(), {**read.to_schema(), **mark}]
    assert "cache_control" not in read.to_schema()
    assert set(request(cache=True)) == {"model", "max_tokens", "timeout", "messages"}


def test_further_keywords_go_into_every_request_and_win() -> None:
    """Whatever the API learns that this adapter has never heard of."""
    model = AnthropicModel("claude-x", max_tokens=99, thinking={"type": "adaptive"}, system="Mine.")
    first, second = (model._request("Be brief.", HELLO, []) for _ in range(2))
    assert (first["thinking"], first["system"], first["max_tokens"]) == ({"type": "adaptive"}, "Mine.", 99)
    assert first == second


# Keys and options


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that knows nobody."""
    for name in ("API_KEY", "AUTH_TOKEN", "PROFILE", "IDENTITY_TOKEN", "IDENTITY_TOKEN_FILE", "BASE_URL"):
        monkeypatch.delenv(f"ANTHROPIC_{name}", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"api_key": "k"}, None),
        ({"base_url": "http://localhost:1"}, None),
        ({"client": SimpleNamespace(messages=None)}, None),
        ({}, "ANTHROPIC_API_KEY"),
        ({}, "ANTHROPIC_AUTH_TOKEN"),
        ({}, "ANTHROPIC_PROFILE"),
        ({}, "ANTHROPIC_BASE_URL"),
    ],
)
def test_a_model_that_can_be_called_passes_its_check(
    bare: pytest.MonkeyPatch, given: dict[str, Any], name: str | None
) -> None:
    """Whatever the SDK takes for a credential; a server of one's own asks for none."""
    if name:
        bare.setenv(name, "http://localhost:1")
    AnthropicModel("m", **given).check()


def test_a_model_without_a_key_says_what_to_set(bare: pytest.MonkeyPatch) -> None:
    """Before the first run, and in words of our own."""
    with pytest.raises(NoCredentials, match=r"'m'.*ANTHROPIC_API_KEY.*ANTHROPIC_BASE_URL"):
        AnthropicModel("m").check()


def test_one_client_serves_a_loop_and_no_other() -> None:
    """Connections belong to the loop they were opened on; the SDK's own retries stay off, ours are counted."""
    model = AnthropicModel("m", api_key="k", timeout=3.0)

    async def client() -> Any:
        made = model._client()
        assert model._client() is made
        await model.aclose()
        await model.aclose()
        return made

    first, second = asyncio.run(client()), asyncio.run(client())
    assert first is not second
    assert (first.max_retries, first.timeout, first.api_key, first.is_closed()) == (0, 3.0, "k", True)
