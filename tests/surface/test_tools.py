"""What a model may call: functions of every kind, told by their schema, called with checked arguments."""

from __future__ import annotations

import json

import pytest

from drangue_worker.testing import Reply
from tests.surface import agents
from tests.surface.case import Case, calls, contents, errors, of, shape

both_wires = pytest.mark.parametrize("wire", ["openai", "anthropic"])
DONE = Reply("done")


@both_wires
def test_one_tool_turn_reads_as_five_events(case: Case) -> None:
    """The whole story of the simplest run, in every shape: scheduling never shows in a log."""
    case.model(calls(("look", {"what": "disk"}), text="I look."), Reply("It is fine."))
    result = case.run("toolbox", "How is the disk?")
    assert (result.status, result.reason, result.output) == ("completed", "answered", "It is fine.")
    assert shape(result) == [
        ("run_started", None),
        ("model_decision", 1),
        ("tool_result", 2),
        ("model_decision", 3),
        ("run_finished", 3),
    ]
    assert case.effects() == [["look", case.key(2), "disk"]]
    assert [call.system for call in case.calls] == [agents.INSTRUCTIONS] * 2
    assert case.calls[1].results() == ["disk is fine"]


@pytest.mark.parametrize(("wire", "keys"), [("openai", [1, 3]), ("anthropic", [None, None])])
def test_a_model_call_carries_the_key_of_its_step_where_the_provider_has_a_place_for_it(
    case: Case, keys: list[int | None]
) -> None:
    """A provider that deduplicates bills a repeated call once. Anthropic's API has no such header."""
    case.model(calls(("look", {"what": "disk"})), DONE)
    case.run("toolbox")
    assert [call.idempotency_key for call in case.calls] == [case.key(step) if step else None for step in keys]


def test_functions_of_every_kind_are_tools(case: Case) -> None:
    """Sync and async functions, bound methods, callable objects: whatever Python can call."""
    kinds = [("look", {"what": "x"}), ("listen", {"what": "x"}), ("weigh", {"grams": 3}), ("say", {"word": "hi"})]
    case.model(calls(*kinds), DONE)
    assert contents(case.run("workshop")) == ["x is fine", "x hums", "6", "said hi"]


def test_a_tool_is_told_to_the_model_by_its_signature_and_docstring(case: Case) -> None:
    """The author writes a function; the model reads a schema. The idempotency key is not the model's business."""
    case.run("workshop")
    told = {one["function"]["name"]: one["function"] for one in case.calls[0].body["tools"]}
    assert tuple(told) == tuple(agents.SERVED["workshop"].tools)
    assert told["look"] == {
        "name": "look",
        "description": "Look at something.\n\nArgs:\n    what: the thing to look at",
        "parameters": {
            "type": "object",
            "properties": {"what": {"type": "string", "description": "the thing to look at"}},
            "required": ["what"],
            "additionalProperties": False,
        },
    }
    parameters = told["order"]["parameters"]
    assert parameters["required"] == ["item", "address"]
    assert {name: parameters["properties"][name] for name in ("count", "size", "speed", "note", "tags")} == {
        "count": {"type": "integer", "default": 1, "description": "how many of them, at least one"},
        "size": {"enum": ["s", "l"], "default": "s"},
        "speed": {"enum": ["slow", "fast"], "default": "slow"},
        "note": {"type": ["string", "null"], "default": None},
        "tags": {"type": "array", "items": {"type": "string"}},
    }


@both_wires
def test_both_wire_formats_tell_the_same_schemas(case: Case, wire: str) -> None:
    """Changing the provider changes nothing about the agent."""
    case.run("workshop")
    told = case.calls[0].body["tools"]
    schemas = [one["function"]["parameters"] if wire == "openai" else one["input_schema"] for one in told]
    assert schemas == [one.parameters for one in agents.SERVED["workshop"].tools.values()]


def test_arguments_are_converted_to_what_the_function_declares(case: Case) -> None:
    """A function that asks for an Enum, a date or a dataclass gets one, though models only speak JSON."""
    address = {"street": "Long Lane", "number": "7"}
    given = {"item": "tea", "address": address, "count": "5", "size": "l", "speed": "fast", "on": "2031-05-06"}
    case.model(calls(("order", given)), DONE)
    (told,) = contents(case.run("workshop"))
    assert json.loads(told) == {
        "item": "'tea'",
        "address": "Address(street='Long Lane', number=7)",
        "count": "5",
        "size": "<Size.LARGE: 'l'>",
        "speed": "'fast'",
        "note": "None",
        "on": "datetime.date(2031, 5, 6)",
        "tags": "[]",
    }


WRONG = {
    "missing": ({}, "what"),
    "wrong kind": ({"what": {"nested": 1}}, "what"),
    "unknown": ({"what": "x", "who": "y"}, "who"),
    "the hidden key": ({"what": "x", "idempotency_key": "mine"}, "idempotency_key"),
    "no object": ("[1, 2]", "[1, 2]"),
    "broken JSON": ('{"what": "x', '{"what": "x'),
}


def test_wrong_arguments_go_back_to_the_model_and_nothing_runs(case: Case) -> None:
    """What the model got wrong is for the model to mend; it is told which argument, and the run goes on."""
    case.model(calls(*(("look", arguments) for arguments, _ in WRONG.values())), DONE)
    result = case.run("workshop")
    told = errors(result)
    assert [error["category"] for error in told] == ["invalid_arguments"] * len(WRONG)
    for (_, named), error in zip(WRONG.values(), told, strict=True):
        assert named in error["message"]
    assert case.effects() == []
    assert (result.status, result.output) == ("completed", "done")


def test_every_wrong_argument_is_named_at_once(case: Case) -> None:
    """One correction instead of one per mistake."""
    case.model(calls(("order", {"count": "many", "size": "xl", "speed": 1, "extra": 0})), DONE)
    (error,) = errors(case.run("workshop"))
    for name in ("item", "address", "count", "size", "speed", "extra"):
        assert name in error["message"]


def test_a_tool_that_does_not_exist_is_an_answer_to_the_model(case: Case) -> None:
    """Models invent tools; that must not end a run."""
    case.model(calls(("teleport", {"to": "Mars"})), DONE)
    result = case.run("toolbox")
    assert errors(result) == [{"category": "unknown_tool", "message": "there is no tool named 'teleport'"}]
    assert result.output == "done"


RESULTS = {
    "text": "plain text",
    "none": "null",
    "number": "7",
    "list": '[1, "zwei", null]',
    "object": '{"a": [1, 2], "när": 1.5}',
    "nul": "a\\u0000b",
    "nan": '{"x": "nan", "y": "inf"}',
    "surrogate": "\\ud800",
    "unknown": "\"<class 'object'>\"",
}


def test_any_result_can_be_recorded_and_told(case: Case) -> None:
    """Text stays as it is, everything else becomes JSON, and nothing a tool returns can break the log."""
    case.model(calls(*(("give", {"how": how}) for how in RESULTS)), DONE)
    result = case.run("workshop")
    assert dict(zip(RESULTS, contents(result), strict=True)) == RESULTS
    assert case.calls[1].results() == contents(result)


@both_wires
def test_calls_are_told_apart_whatever_ids_the_provider_gives(case: Case) -> None:
    """Our own identity is the step; the provider's ids are data: repeated, missing, or like those we would give."""
    strange = [("same", "same"), ("", ""), ("same", "call_8"), ("call_12", "")]
    asked = [Reply(tool_calls=tuple(("look", {"what": one}, one) for one in ids)) for ids in strange]
    case.model(*asked, DONE)
    result = case.run("toolbox")
    assert contents(result) == [f"{one} is fine" for ids in strange for one in ids]
    keys = [case.key(step) for step in (2, 3, 5, 6, 8, 9, 11, 12)]
    assert sorted(key for _, key, _ in case.effects("look")) == sorted(keys)
    for decision in of(result, "model_decision")[:-1]:
        first, second = (call["id"] for call in decision["tool_calls"])
        assert first != second
        assert first
        assert second
