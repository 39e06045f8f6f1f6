"""How a model's answer is recorded, and which of two modes is the stricter: the pure parts of performing a step."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drangue_client.autonomy import Mode, stricter
from drangue_client.messages import ModelResponse, ToolCall
from drangue_worker.engine.decision import decision_payload, refused_calls
from tests.unit.made_logs import by_chance


def ids_of(*ids: str | None, step: int = 1) -> list[str]:
    calls = [ToolCall(one, "read") for one in ids]  # type: ignore[arg-type]
    return [call["id"] for call in decision_payload(ModelResponse(tool_calls=calls), "fake", step)["tool_calls"]]


def test_a_decision_records_all_the_model_said() -> None:
    """Users and every later decision read it from here."""
    response = ModelResponse("Hm.", [ToolCall("a", "read", {"n": (1,)})], {"input_tokens": 3}, "because", "stop")
    assert decision_payload(response, "fake", 1) == {
        "text": "Hm.",
        "tool_calls": [{"id": "a", "name": "read", "arguments": {"n": [1]}}],
        "usage": {"input_tokens": 3},
        "reasoning": "because",
        "model": "fake",
        "stop_reason": "stop",
    }


def test_thinking_is_recorded_only_where_there_is_some() -> None:
    """Most models have none, and every event is stored for good."""
    blocks = [{"type": "thinking", "thinking": "hm"}]
    assert decision_payload(ModelResponse(thinking_blocks=blocks), None, 1)["thinking_blocks"] == blocks
    assert "thinking_blocks" not in decision_payload(ModelResponse(), None, 1)


def test_a_decision_can_be_stored_whatever_the_model_sent() -> None:
    """A NUL in an argument must not lose the thought that was paid for."""
    response = ModelResponse("a\x00", [ToolCall("b\ud800", "read", {"x": float("nan")})])
    json.dumps(decision_payload(response, "fake", 1), allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("given_ids", "recorded"),
    [
        (("a", "b"), ["a", "b"]),
        (("", "b"), ["call_2", "b"]),
        ((None, None), ["call_2", "call_3"]),
        (("a", "a"), ["a", "call_3"]),
    ],
)
def test_a_missing_or_repeated_id_is_replaced(given_ids: tuple[str | None, ...], recorded: list[str]) -> None:
    """Verdicts are given by id, and a provider refuses two results for one."""
    assert ids_of(*given_ids) == recorded


def test_an_id_that_an_earlier_call_of_the_run_has_is_replaced() -> None:
    """Some providers count from one with every answer: a word about the first call_0 must not meet the second one."""
    asked = [ToolCall("call_0", "pay"), ToolCall("call_1", "pay")]
    calls = decision_payload(ModelResponse(tool_calls=asked), "fake", 4, taken=["call_0", "call_5"])["tool_calls"]
    assert [call["id"] for call in calls] == ["call_5_2", "call_1"]


@by_chance
@given(st.lists(st.sampled_from(["", "a", "call_2", "call_3", "call_4", "call_5"]), max_size=4))
def test_no_two_calls_of_a_decision_share_an_id(given_ids: list[str]) -> None:
    """Also where a provider numbers its calls the way we do."""
    recorded = ids_of(*given_ids)
    assert len(set(recorded)) == len(given_ids)
    assert "" not in recorded


@pytest.mark.parametrize(
    ("one", "other", "held"),
    [
        ("autonomous", "autonomous", "autonomous"),
        ("autonomous", "assisted", "assisted"),
        ("assisted", "shadow", "shadow"),
        ("shadow", "autonomous", "shadow"),
    ],
)
def test_the_mode_that_gives_less_leave_holds(one: Mode, other: Mode, held: Mode) -> None:
    """Of the recorded and today's: a gate can be added while a run is under way, but not taken away."""
    assert (stricter(one, other), stricter(other, one)) == (held, held)


@pytest.mark.parametrize("stop_reason", ["length", "max_tokens"])
def test_the_calls_of_a_cut_off_answer_are_refused(stop_reason: str) -> None:
    """Half of what was meant may be the opposite of it; the model is told to ask again."""
    response = ModelResponse(
        tool_calls=[ToolCall("a", "pay", {"sum": 1}), ToolCall("b", "pay")], stop_reason=stop_reason
    )
    refused = refused_calls(decision_payload(response, "fake", 4), 4)
    assert [(fact.type, fact.step, fact.payload["call_id"]) for fact in refused] == [
        ("tool_result", 5, "a"),
        ("tool_result", 6, "b"),
    ]
    assert {json.loads(fact.payload["content"])["error"]["category"] for fact in refused} == {"truncated"}


@pytest.mark.parametrize("stop_reason", ["stop", "tool_calls", "end_turn", None])
def test_the_calls_of_a_whole_answer_are_not(stop_reason: str | None) -> None:
    """However the provider says that it is whole."""
    response = ModelResponse(tool_calls=[ToolCall("a", "pay")], stop_reason=stop_reason)
    assert refused_calls(decision_payload(response, "fake", 4), 4) == []
