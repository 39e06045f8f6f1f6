"""Structured answers: which schemas can be judged by, what a model delivers, and what it is told when that missed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, RootModel

from drangue_client.answer import delivered, feedback, mistakes, parameters, read, schema_of, written
from drangue_client.events import Fact
from tests.unit.made_logs import SCHEMA, by_chance

NUMBERS = {"type": "array", "items": {"type": "integer"}}


class Point(BaseModel):
    x: int
    y: int = 0


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


class Names(RootModel[list[str]]):
    """A list that is an answer by itself."""


# Schemas


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_schema_is_no_schema(nothing: Any) -> None:
    """An empty one asks for nothing, so a text is an answer to it."""
    assert schema_of(nothing) is None


def test_a_schema_is_taken_as_it_is_and_stays_so() -> None:
    """It is recorded with the run: what its author does to the dict afterwards is nothing to it."""
    given = {"type": "object", "properties": {"n": {"enum": (1, 2)}}}
    schema = schema_of(given)
    given["type"] = "array"
    assert schema == {"type": "object", "properties": {"n": {"enum": [1, 2]}}}


def test_a_pydantic_model_is_the_schema_it_describes() -> None:
    """Classes are how most people write a form."""
    assert schema_of(Point) == Point.model_json_schema()
    assert schema_of(Tree) == Tree.model_json_schema()
    assert schema_of(Names) == Names.model_json_schema()


@pytest.mark.parametrize("wrong", [[], "", 5, True, Point.__name__, print], ids=str)
def test_what_is_no_schema_is_refused_by_name(wrong: Any) -> None:
    """Where it is given, not when the first answer comes."""
    with pytest.raises(TypeError, match=r"output_schema is .*; it must be a JSON schema"):
        schema_of(wrong)


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"type": "integr"}, r"\$\.type"),
        ({"type": "object", "properties": {"n": {"minimum": "0"}}}, r"\$\.properties\.n\.minimum"),
        ({"required": "n"}, r"\$\.required"),
        ({"pattern": "("}, r"\$\.pattern"),
    ],
    ids=str,
)
def test_a_schema_that_is_none_says_where(wrong: dict[str, Any], place: str) -> None:
    """A misspelt type would let everything pass."""
    with pytest.raises(ValueError, match=f"output_schema is no JSON schema: at {place}, "):
        schema_of(wrong)


@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
@pytest.mark.parametrize("reference", ["https://example.org/form.json", "form.json", "file:///etc/passwd"])
def test_a_schema_may_not_refer_to_anything_outside_itself(keyword: str, reference: str) -> None:
    """Judging an answer must never reach for the network, nor for a file."""
    with pytest.raises(ValueError, match=f"output_schema refers to '{reference}'"):
        schema_of({"type": "object", "properties": {"n": {"anyOf": [{keyword: reference}]}}})


def test_a_schema_may_refer_to_itself() -> None:
    """Recursive forms are ordinary, and pydantic writes references for every nested class."""
    schema = schema_of(Tree)
    assert schema is not None
    assert mistakes(schema, {"name": "root", "children": [{"name": "leaf"}]}) == []
    assert mistakes(schema, {"name": "root", "children": [{}]}) == ["$.children[0]: missing required name"]


def test_a_schema_may_not_refer_to_what_it_does_not_hold() -> None:
    """No answer could ever match it: every run would be asked three times and end without one."""
    with pytest.raises(ValueError, match=r"output_schema refers to '#/\$defs/missing'"):
        schema_of({"type": "object", "properties": {"n": {"$ref": "#/$defs/missing"}}})


@pytest.mark.parametrize("place", ["const", "default", "examples"])
def test_data_that_looks_like_a_reference_is_none(place: str) -> None:
    """A form for OpenAPI documents has such constants."""
    value: Any = {"$ref": "other.json"}
    schema = {"type": "object", "properties": {"n": {place: [value] if place == "examples" else value}}}
    assert schema_of(schema) == schema


# Delivering


def test_an_object_is_delivered_as_the_arguments_themselves() -> None:
    """The schema is the parameters', untouched."""
    assert parameters(SCHEMA) == SCHEMA
    assert delivered(SCHEMA, {"n": 1}) == {"n": 1}
    assert delivered(SCHEMA, {"value": 1}) == {"value": 1}


@pytest.mark.parametrize(
    "schema",
    [NUMBERS, {"type": "string"}, {"enum": ["a", "b"]}, {"type": ["object", "null"]}, {"anyOf": [{}]}, {"minimum": 1}],
    ids=str,
)
def test_anything_else_is_delivered_as_one_value(schema: dict[str, Any]) -> None:
    """A tool's arguments are an object, at every provider."""
    assert parameters(schema) == {
        "type": "object",
        "properties": {"value": schema},
        "required": ["value"],
        "additionalProperties": False,
    }
    assert delivered(schema, {"value": [1]}) == [1]


def test_definitions_stay_at_the_root_where_references_look_for_them() -> None:
    """A provider refuses a tool whose schema does not resolve."""
    inner = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}
    assert parameters(inner)["$defs"] == {"n": {"type": "integer"}}
    assert parameters(inner)["properties"] == {"value": {"$ref": "#/$defs/n"}}
    assert parameters({**NUMBERS, "definitions": {"a": {}}})["definitions"] == {"a": {}}


@pytest.mark.parametrize("arguments", [{}, {"numbers": [1]}, {"value": [1], "more": 2}], ids=str)
def test_a_value_under_another_name_is_judged_as_it_came(arguments: dict[str, Any]) -> None:
    """Models forget the wrapping; guessing which of several arguments was meant would be worse."""
    assert delivered(NUMBERS, arguments) == arguments
    assert mistakes(NUMBERS, delivered(NUMBERS, arguments)) != []


RECURSIVE = {"type": "array", "items": {"$ref": "#"}}


@pytest.mark.parametrize(
    "schema",
    [
        NUMBERS,
        {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array"}}},
        RECURSIVE,
        {"$id": "urn:x", "$ref": "#/$defs/n", "$defs": {"n": {"type": "array"}}},
    ],
    ids=["plain", "defined", "recursive", "identified"],
)
def test_what_matches_the_schema_matches_the_parameters_a_model_is_shown(schema: dict[str, Any]) -> None:
    """A provider that holds a model to its tool's schema would otherwise let no right answer through."""
    answer: list[Any] = []
    assert mistakes(schema, answer) == []
    nested = [[], [[]]] if schema is RECURSIVE else answer
    assert mistakes(schema, nested) == []
    assert list(Draft202012Validator(parameters(schema)).iter_errors({"value": nested})) == []


# Judging


@pytest.mark.parametrize(
    ("schema", "answer", "told"),
    [
        (SCHEMA, {"n": 1}, []),
        (SCHEMA, {"n": 1, "more": None}, []),
        (SCHEMA, {}, ["$: missing required n"]),
        (SCHEMA, {"n": "1"}, ['$.n: expected integer, got "1"']),
        (SCHEMA, {"n": True}, ["$.n: expected integer, got true"]),
        (SCHEMA, [], ["$: expected object, got []"]),
        (NUMBERS, [1, "a", None], ['$[1]: expected integer, got "a"', "$[2]: expected integer, got null"]),
        ({"type": ["integer", "null"]}, "x", ['$: expected integer or null, got "x"']),
        ({"enum": ["a", 1]}, "b", ['$: expected ["a", 1], got "b"']),
        ({"const": None}, 0, ["$: expected null, got 0"]),
        ({"minimum": 3}, 2, ["$: 2 is less than the minimum of 3"]),
        ({"anyOf": [{"type": "string"}, SCHEMA]}, {}, ["$: missing required n"]),
        ({**SCHEMA, "additionalProperties": False}, {"n": 1, "m": 2}, ["$: Additional properties are not allowed"]),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_mistake_says_where_and_what_was_expected(schema: dict[str, Any], answer: Any, told: list[str]) -> None:
    """The model mends what it is told of, and nothing else."""
    assert [one[: len(expected)] for one, expected in zip(mistakes(schema, answer), told, strict=True)] == told


def test_what_is_missing_is_told_once() -> None:
    """Seven missing names filled the five lines there are, and hid the mistakes beside them."""
    schema = {"type": "object", "required": ["a", "b"], "properties": {"c": {"type": "integer"}}}
    assert mistakes(schema, {"c": "x"}) == ["$: missing required a, b", '$.c: expected integer, got "x"']


def test_mistakes_are_told_in_the_order_of_the_answer() -> None:
    """And no more than five of them: the first ones, not the first by alphabet."""
    told = mistakes(NUMBERS, ["a"] * 12)
    assert told == [f'$[{place}]: expected integer, got "a"' for place in range(5)]


@pytest.mark.parametrize(("schema", "answer"), [(NUMBERS, ["a"] * 12), ({"maximum": 1}, 10**999)], ids=["many", "long"])
def test_mistakes_are_few_and_short(schema: dict[str, Any], answer: Any) -> None:
    """They are sent with every later prompt of the run."""
    told = mistakes(schema, answer)
    assert 0 < len(told) <= 5
    assert max(map(len, told)) <= 300


@pytest.mark.parametrize(
    ("schema", "answer", "word"),
    [
        ({"$ref": "#"}, 1, "nested too deeply"),
        ({"$ref": "#/$defs/missing"}, 1, "'/$defs/missing', which it does not hold"),
        ({"multipleOf": 0.5}, 10**400, "cannot be judged"),
    ],
    ids=["endless", "dangling", "beyond all floats"],
)
def test_what_cannot_be_judged_has_not_matched(schema: dict[str, Any], answer: Any, word: str) -> None:
    """It is judged where the rules decide: an exception there would stop the run, and a worker after the other."""
    (told,) = mistakes(schema, answer)
    assert word in told


# Text


@pytest.mark.parametrize("answer", [{"n": 1}, [], "é", "", 0, None, 1.5, "a\x00b", "\ud800"], ids=repr)
def test_an_answer_is_read_back_from_what_was_written(answer: Any) -> None:
    """The output is text in a log; whoever asked for a form parses it again."""
    recorded = Fact("run_finished", {"output": written(answer)}).payload["output"]
    assert json.loads(recorded) == answer
    assert read(written(answer)) == (answer, None)


@pytest.mark.parametrize(
    "text",
    ["", "prose", '{"n": 1', "```json\n1\n```", "1 2", "[" * 100_000, "9" * 5000],
    ids=["nothing", "prose", "cut off", "fenced", "two", "nested too deeply", "too long a number"],
)
def test_what_is_no_json_says_so(text: str) -> None:
    """A model that writes a sentence around its object has missed; however it missed, somebody must be told."""
    value, problem = read(text)
    assert value is None
    assert problem is not None
    assert problem.startswith("$: expected JSON (")


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"n": -Infinity}', "1e999", "[-1e999]"])
def test_a_number_that_json_has_not_is_no_answer(text: str) -> None:
    """It would be recorded as a structured output that its reader, in another language, cannot read."""
    value, problem = read(text)
    assert (value, problem is not None) == (None, True)


def test_the_feedback_lists_the_mistakes_and_asks_for_another_call() -> None:
    """Log alerts match on `did not match`."""
    assert feedback(["$.n: expected integer, got null", "$: missing required m"]) == (
        "The answer did not match the required schema:\n"
        "- $.n: expected integer, got null\n"
        "- $: missing required m\n"
        "Call final_answer with a corrected answer."
    )


@by_chance
@given(st.integers() | st.lists(st.integers(), max_size=4) | st.dictionaries(st.text(max_size=3), st.integers()))
def test_an_answer_of_any_form_survives_being_wrapped_and_delivered(answer: Any) -> None:
    """What the model put in must be what the caller gets out, whether the form is an object or not."""
    schema = {"type": "object"} if isinstance(answer, dict) else {"type": ["integer", "array"]}
    arguments = answer if isinstance(answer, dict) else {"value": answer}
    assert delivered(schema, arguments) == answer
    assert mistakes(schema, delivered(schema, arguments)) == []
