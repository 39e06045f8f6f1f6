"""The conversation a model is shown, folded from the log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drangue_client.events import Fact
from drangue_client.messages import ModelResponse, ToolCall, conversation
from tests.unit.made_logs import (
    asked,
    begun,
    by_chance,
    decided,
    failed,
    finished,
    granted,
    log_of,
    result,
    resumed,
    started,
)

NAMES = ["read", "pay", "send", "read"]


@by_chance
@given(st.permutations(range(4)), st.booleans())
def test_results_stand_in_the_order_of_their_calls_however_they_came(order: list[int], answered: bool) -> None:
    """Siblings end in any order; a model, and a provider's cache, must see the same conversation every time."""
    stories = [
        [result(2, content="r2")],
        [asked(3), granted(3), result(3, "pay", "r3")],
        [begun(4), result(4, "send", "r4")],
        [result(5, content="r5")],
    ]
    facts = [fact for place in order for fact in stories[place]]
    answer = [decided(6, text="done"), finished()] if answered else []
    messages = conversation(log_of(started(), decided(1, *NAMES), *facts, *answer))
    assert [m["content"] for m in messages if m["role"] == "tool"] == ["r2", "r3", "r4", "r5"]
    assert messages == conversation(
        log_of(started(), decided(1, *NAMES), *(fact for story in stories for fact in story), *answer)
    )


def test_a_tool_turn_reads_as_user_assistant_tool_assistant() -> None:
    """This shape is what every adapter renders."""
    log = log_of(
        started(text="How is Oslo?"),
        decided(1, "read", text="Let me look."),
        result(2, content="cold"),
        decided(3, text="Cold."),
        finished("Cold."),
    )
    assert conversation(log) == [
        {"role": "user", "content": "How is Oslo?"},
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [{"id": "call_2", "name": "read", "arguments": {"n": 2}}],
        },
        {"role": "tool", "call_id": "call_2", "name": "read", "content": "cold"},
        {"role": "assistant", "content": "Cold."},
    ]


def test_a_call_without_a_result_has_no_tool_message() -> None:
    """An invented one would be a lie, and the model is not asked before all have settled."""
    log = log_of(started(), decided(1, "read", "read"), result(3, content="second"))
    assert [m["content"] for m in conversation(log) if m["role"] == "tool"] == ["second"]


def test_results_of_two_calls_with_one_id_are_both_shown() -> None:
    """Providers repeat ids; a result belongs to its step."""
    twins = decided(1, "read", "read")
    for call in twins.payload["tool_calls"]:
        call["id"] = "same"
    log = log_of(started(), twins, result(3, content="b"), result(2, content="a"))
    assert [m["content"] for m in conversation(log) if m["role"] == "tool"] == ["a", "b"]


def test_each_decision_is_followed_by_its_own_results() -> None:
    """A provider refuses a conversation whose results do not follow their calls."""
    log = log_of(started(), decided(1, "read"), result(2, content="a"), decided(3, "read"), result(4, content="b"))
    assert [m["role"] for m in conversation(log)] == ["user", "assistant", "tool", "assistant", "tool"]


@pytest.mark.parametrize("type_", ["user_message", "schema_feedback"])
def test_what_is_said_after_results_stands_after_them(type_: str) -> None:
    """Between a call and its result there is no place for another message."""
    said: Fact = Fact(type_, {"text": "again"})  # type: ignore[arg-type]
    messages = conversation(log_of(started(), decided(1, "read"), result(2), said))
    assert [(m["role"], m["content"]) for m in messages[2:]] == [("tool", "ok"), ("user", "again")]


def test_facts_that_are_nobody_s_words_are_not_shown() -> None:
    """Verdicts, intents and failures are for operators; the model reads results."""
    log = log_of(started(), decided(1, "pay"), asked(2), granted(2), begun(2), failed(), resumed())
    assert [m["role"] for m in conversation(log)] == ["user", "assistant"]


def test_thinking_blocks_are_handed_back() -> None:
    """A provider that signs its thoughts wants them returned unchanged before the results."""
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "s"}]
    log = log_of(started(), decided(1, "read", thinking_blocks=blocks))
    assert conversation(log)[1]["thinking_blocks"] == blocks


def test_an_empty_log_is_an_empty_conversation() -> None:
    """A queued run can be looked at."""
    assert conversation([]) == []


def test_two_answers_share_nothing() -> None:
    """A shared default list would give one run the calls of another."""
    ModelResponse().tool_calls.append(ToolCall("x", "read"))
    ToolCall("x", "read").arguments["n"] = 1
    assert (ModelResponse().tool_calls, ToolCall("x", "read").arguments) == ([], {})
