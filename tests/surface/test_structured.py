"""Structured answers: delivered by a call or as text, judged against the schema, corrected twice, then taken as is."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest

from drangue_client.answer import DESCRIPTION
from drangue_worker.testing import Reply
from tests.surface import agents
from tests.surface.case import Case, calls, contents, errors, of, shape

both_wires = pytest.mark.parametrize("wire", ["openai", "anthropic"])
GOOD = {"verdict": "good", "score": 3}
WRONG = {"verdict": "so-so"}
ANSWER = calls(("final_answer", GOOD))


class Verdict(pydantic.BaseModel):
    """An answer as a pydantic model says it."""

    verdict: str
    score: int = 0


@both_wires
def test_an_answer_is_delivered_by_a_call(case: Case) -> None:
    """Callers get an object, not prose: recorded, flagged, parsed."""
    case.model(calls(("look", {"what": "disk"})), ANSWER)
    result = case.run("structured")
    assert (result.status, result.reason, result.output_parsed) == ("completed", "answered", GOOD)
    assert json.loads(result.output) == GOOD
    assert shape(result)[-3:] == [("model_decision", 3), ("tool_result", 4), ("run_finished", 4)]
    assert of(result, "run_started")[0]["output_schema"] == agents.SCHEMA
    assert of(result, "run_finished") == [{"output": result.output, "reason": "answered", "structured": True}]
    assert json.loads(contents(result)[-1]) == {"ok": True}


@both_wires
def test_the_pseudo_tool_is_the_last_one_and_its_parameters_are_the_schema(case: Case, wire: str) -> None:
    """Models are good at calling tools; so the answer is one."""
    case.model(ANSWER)
    case.run("structured")
    assert case.calls[0].tools == ("look", "wire", "final_answer")
    told = case.calls[0].body["tools"][-1]
    name, about, schema = (
        (told["function"][key] for key in ("name", "description", "parameters"))
        if wire == "openai"
        else (told[key] for key in ("name", "description", "input_schema"))
    )
    assert (name, about, schema) == ("final_answer", DESCRIPTION, agents.SCHEMA)


def test_siblings_run_before_the_answer_is_judged(case: Case) -> None:
    """What the model asked for beside its answer is done, and nothing is left over for the next turn."""
    case.model(calls(("final_answer", GOOD), ("wire", {"amount": 5}), ("look", {"what": "disk"})), ANSWER)
    result = case.run("structured")
    assert result.output_parsed == GOOD
    assert contents(result) == ['{"ok": true}', "5 sent", "disk is fine"]
    assert [event.step for event in result.events if event.type == "tool_result"][-1] == 2
    again = case.say("and now?")
    assert [message["role"] for message in case.calls[1].messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "tool",
        "user",
    ]
    assert (again.output_parsed, case.effects("wired")) == (GOOD, [["wired", case.key(3), 5]])


def test_an_answer_beside_a_call_that_waits_is_delivered_after_the_verdict(case: Case) -> None:
    """The run must not end with a question open, nor run the call without its person."""
    case.model(calls(("final_answer", GOOD), ("listen", {"what": "fan"})))
    paused = case.run("assisted", output_schema=agents.SCHEMA)
    assert (paused.status, paused.output_parsed, case.effects()) == ("paused", None, [])
    result = case.approve()
    assert (result.output_parsed, len(case.calls)) == (GOOD, 1)
    assert contents(result) == ['{"ok": true}', "fan hums"]


@both_wires
def test_a_wrong_answer_is_sent_back_with_its_mistakes(case: Case) -> None:
    """The model is told what is wrong with it, by path."""
    case.model(calls(("final_answer", {"verdict": "so-so", "score": "3"})), ANSWER)
    result = case.run("structured")
    (error,) = errors(result)
    assert error["category"] == "validation"
    for hint in ("did not match", '$.score: expected integer, got "3"', '$.verdict: expected ["good", "bad"]'):
        assert hint in error["message"]
    assert (result.output_parsed, len(case.calls)) == (GOOD, 2)


def test_a_text_answer_that_matches_is_taken(case: Case) -> None:
    """Not every model calls the tool; JSON as text is JSON."""
    case.model(Reply(json.dumps(GOOD, indent=2)))
    result = case.run("structured")
    assert (result.output_parsed, result.reason, result.output) == (GOOD, "answered", json.dumps(GOOD))
    assert len(case.calls) == 1


@both_wires
def test_a_text_that_is_no_answer_is_answered_with_what_is_missing(case: Case) -> None:
    """The correction is a message of the user's, so that it reads as one in every provider's format."""
    case.model(Reply("It is good."), Reply('{"score": 3}'), ANSWER)
    result = case.run("structured")
    first, second = of(result, "schema_feedback")
    assert ("did not match" in first["text"], "expected JSON" in first["text"]) == (True, True)
    assert "$: missing required verdict" in second["text"]
    assert case.calls[1].last_user() == first["text"]
    assert result.output_parsed == GOOD


@pytest.mark.parametrize("how", ["by call", "by text", "mixed"])
def test_after_two_corrections_the_answer_is_taken_as_it_is(case: Case, how: str) -> None:
    """A model that cannot do it must not be paid for ever; the caller is told that it does not match."""
    text, call = Reply(json.dumps(WRONG)), calls(("final_answer", WRONG))
    answers = {"by call": [call] * 9, "by text": [text] * 9, "mixed": [text, call, text, call, text]}[how]
    case.model(*answers)
    result = case.run("structured")
    assert (result.status, result.reason, result.output_parsed) == ("completed", "schema", None)
    assert json.loads(result.output) == WRONG
    assert len(case.calls) == 3
    assert "structured" not in of(result, "run_finished")[0]


@pytest.mark.parametrize("finish", [None, "length"], ids=["broken", "cut off"])
def test_an_answer_that_cannot_be_read_does_not_become_the_output(case: Case, finish: str | None) -> None:
    """After the last correction too: what the runtime puts in place of broken JSON is nobody's answer."""
    case.model(calls(("final_answer", '{"verdict": "go'), finish_reason=finish))
    result = case.run("structured")
    assert (result.status, result.output_parsed) == ("completed", None)
    assert "__raw_arguments__" not in result.output


def test_corrections_are_counted_per_turn(case: Case) -> None:
    """A turn does not pay for the clumsiness of an earlier one."""
    bad = Reply(json.dumps(WRONG))
    case.model(bad, bad, ANSWER, bad, bad, ANSWER)
    assert case.run("structured").output_parsed == GOOD
    again = case.say("once more")
    assert (again.output_parsed, again.reason, len(case.calls)) == (GOOD, "answered", 6)


def test_of_several_answers_the_first_that_matches_counts(case: Case) -> None:
    """And the others are closed, so that the next turn begins clean."""
    case.model(calls(("final_answer", WRONG), ("final_answer", GOOD), ("final_answer", {"verdict": "bad"})))
    result = case.run("structured")
    assert result.output_parsed == GOOD
    assert [error["category"] for error in errors(result)] == ["validation", "skipped"]
    assert len(case.calls) == 1


@pytest.mark.parametrize("arguments", ["{broken", "[1]"])
def test_an_unreadable_answer_is_a_wrong_answer(case: Case, arguments: str) -> None:
    """What cannot be read must never be accepted, even where the schema requires nothing."""
    case.model(calls(("final_answer", arguments)), ANSWER)
    result = case.run("structured", output_schema=None)
    assert [error["category"] for error in errors(result)] == ["validation"]
    assert result.output_parsed == GOOD


def test_nothing_unreadable_matches_a_schema_without_requirements(case: Case) -> None:
    """The marker that stands for broken arguments is no answer."""
    case.model(calls(("final_answer", "{broken")), calls(("final_answer", {})))
    result = case.run("toolbox", output_schema={"type": "object"})
    assert (result.output_parsed, len(case.calls)) == ({}, 2)


@pytest.mark.parametrize(("wire", "delivery"), [("openai", "call"), ("anthropic", "call"), ("openai", "text")])
def test_a_schema_may_ask_for_something_else_than_an_object(case: Case, wire: str, delivery: str) -> None:
    """Tool arguments are always objects; so the value is wrapped for the model and unwrapped for the caller."""
    case.model(calls(("final_answer", {"value": [1, 2]})) if delivery == "call" else Reply("[1, 2]"))
    result = case.run("toolbox", output_schema={"type": "array", "items": {"type": "integer"}})
    assert (result.output_parsed, result.output) == ([1, 2], "[1, 2]")
    told = case.calls[0].body["tools"][-1]
    assert (told["function"]["parameters"] if wire == "openai" else told["input_schema"])["required"] == ["value"]


SCHEMAS: dict[str, Any] = {"a dict": agents.SCHEMA, "a pydantic model": Verdict}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_a_run_may_bring_its_own_schema(case: Case, schema: Any) -> None:
    """In place of the agent's, for all turns of the run."""
    case.model(calls(("final_answer", {"verdict": 5})), ANSWER)
    result = case.run("toolbox", output_schema=schema)
    assert (result.output_parsed, len(errors(result))) == (GOOD, 1)
    assert case.say("again").output_parsed == GOOD
    assert all(call.tools[-1] == "final_answer" for call in case.calls)


def test_a_ceiling_ends_a_structured_turn_unstructured(case: Case) -> None:
    """A stop is no answer, and must not be parsed as one."""
    case.model(calls(("look", {"what": "disk"})))
    result = case.run("short", output_schema=agents.SCHEMA)
    assert (result.reason, result.output_parsed) == ("max_steps", None)
    assert result.output == "(stopped: reached max_steps=2)"


def test_another_schema_for_a_run_that_exists_is_refused(case: Case) -> None:
    """The one it began with holds for all turns; silently ignoring the new one would be a surprise."""
    case.model(ANSWER)
    log = case.run("toolbox", output_schema=agents.SCHEMA).events
    with pytest.raises(ValueError, match="output_schema"):
        case.run("toolbox", output_schema={"type": "object"})
    assert case.events() == log
    assert case.run("toolbox", output_schema=agents.SCHEMA).events == log


def test_what_is_no_schema_is_refused_before_anything_runs(case: Case) -> None:
    """With the argument's name, where it can still be mended."""
    wrong = [
        ({"type": "thing"}, ValueError),
        ({"$ref": "http://127.0.0.1/schema"}, ValueError),
        ("object", TypeError),
    ]
    for schema, error in wrong:
        with pytest.raises(error, match="output_schema"):
            case.run("toolbox", output_schema=schema)
    assert (case.events(), case.calls) == ([], [])
