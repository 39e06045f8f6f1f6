"""From a signature to what a model is shown and what its arguments must pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from pydantic import AfterValidator, BaseModel, Field

from drangue_client.errors import ValidationError
from drangue_worker.tools.schema import Signature, signature_of


class Level(Enum):
    LOW = "low"
    HIGH = "high"


class When(Enum):
    EASTER = date(2024, 3, 31)


class Street(BaseModel):
    name: str


class Address(BaseModel):
    street: Street


@dataclass
class Tree:
    children: list[Tree]


def broken(value: int) -> int:
    raise KeyError(value)


def mute(value: int) -> int:
    raise LookupError


def taking(annotation: Any, *default: Any) -> Signature:
    """The signature of a function with one parameter `x` of this annotation."""

    def function(x: Any) -> None: ...

    function.__annotations__ = {"x": annotation}
    function.__defaults__ = default or None
    return signature_of(function, "act")


def described(annotation: Any, *default: Any) -> Any:
    return taking(annotation, *default).schema["properties"]["x"]


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (list, {"type": "array"}),
        (dict, {"type": "object"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (list[list[str]], {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (Level, {"enum": ["low", "high"]}),
        (Literal["a", 1, None], {"enum": ["a", 1, None]}),
        (int | None, {"type": ["integer", "null"]}),
        (Optional[int], {"type": ["integer", "null"]}),  # noqa: UP045 - the older spelling has another origin
        (Union[int, str, int], {"type": ["integer", "string"]}),  # noqa: UP007
        (Annotated[int, "a note"], {"type": "integer"}),
        (Union[int, Annotated[int, "a note"]], {"type": "integer"}),  # noqa: UP007
        (Annotated[int, Field(gt=0)], {"type": "integer", "exclusiveMinimum": 0}),
        (list[int] | None, {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}),
        (Level | None, {"anyOf": [{"enum": ["low", "high"]}, {"type": "null"}]}),
        (list[Level], {"type": "array", "items": {"enum": ["low", "high"]}}),
        (date, {"type": "string", "format": "date"}),
        (Any, {}),
    ],
    ids=str,
)
def test_an_annotation_is_described_as_a_reader_would_write_it(annotation: Any, schema: dict[str, Any]) -> None:
    """The schema is recorded with every run and priced with every call, so it stays short and stays the same."""
    assert described(annotation) == schema


def test_the_root_names_every_parameter_and_forbids_others() -> None:
    """A model that invents an argument shall learn of it."""

    def book(city: str, *, nights: int = 1, **rest: Any) -> None: ...

    assert signature_of(book, "book").schema == {
        "type": "object",
        "properties": {"city": {"type": "string"}, "nights": {"type": "integer", "default": 1}},
        "additionalProperties": False,
        "required": ["city"],
    }


def test_a_tool_without_parameters_requires_none() -> None:
    """Some providers refuse an empty `required`."""

    def now() -> None: ...

    assert signature_of(now, "now").schema == {"type": "object", "properties": {}, "additionalProperties": False}


def test_a_parameter_without_annotation_is_text() -> None:
    """Quick scripts have none."""

    def greet(name): ...  # type: ignore[no-untyped-def]

    assert signature_of(greet, "greet").schema["properties"] == {"name": {"type": "string"}}


def test_an_optional_parameter_without_a_default_is_required() -> None:
    """None is a value; leaving it out would be a TypeError in the function."""
    assert taking(int | None).schema["required"] == ["x"]


def test_the_idempotency_key_is_hidden_from_the_model() -> None:
    """It is the runtime's to give; a model that chose it could make two payments of one key, or one of two."""

    def pay(sum: int, idempotency_key: str) -> None:
        """Pay.

        Args:
            sum: in cents
            idempotency_key: the key
        """

    signature = signature_of(pay, "pay")
    assert signature.wants_idempotency_key
    assert list(signature.schema["properties"]) == ["sum"]
    assert signature.schema["required"] == ["sum"]
    with pytest.raises(ValidationError, match="idempotency_key: unknown argument"):
        signature.check({"sum": 1, "idempotency_key": "mine"})


def test_a_function_without_the_key_does_not_want_one() -> None:
    """It would be a TypeError at every call."""
    assert not taking(int).wants_idempotency_key


def test_a_method_does_not_show_its_object() -> None:
    """Tools are often methods of a client."""

    class Shop:
        def buy(self, item: str) -> None: ...

    assert list(signature_of(Shop().buy, "buy").schema["properties"]) == ["item"]
    assert list(signature_of(Shop.buy, "buy").schema["properties"]) == ["item"]


@pytest.mark.parametrize(
    ("annotation", "default", "advertised"),
    [
        (str, "a", "a"),
        (int, 3, 3),
        (float, 0.5, 0.5),
        (bool, False, False),
        (int | None, None, None),
        (Level, Level.LOW, "low"),
    ],
)
def test_a_default_is_advertised_as_json(annotation: Any, default: Any, advertised: Any) -> None:
    """The model then knows what leaving it out means."""
    assert described(annotation, default)["default"] == advertised


@pytest.mark.parametrize(("annotation", "default"), [(list[int], []), (dict, {}), (date, date(2024, 1, 1)), (Any, len)])
def test_a_default_that_is_no_plain_value_is_left_out(annotation: Any, default: Any) -> None:
    """It is still not required."""
    assert "default" not in described(annotation, default)
    assert "required" not in taking(annotation, default).schema


@pytest.mark.parametrize("default", [float("inf"), float("nan")])
def test_a_schema_is_strict_json(default: float) -> None:
    """`def wait(at_most: float = inf)` must not make every request, and the recorded terms, unreadable."""
    json.dumps(taking(float, default).schema, allow_nan=False)


def test_a_default_is_advertised_only_where_the_call_accepts_it() -> None:
    """`def find(city: str = None)` is common; the model must not be promised a null that is then refused."""
    signature = taking(str, None)
    for default in [p["default"] for p in signature.schema["properties"].values() if "default" in p]:
        assert signature.check({"x": default}) == {"x": default}


def test_a_default_that_its_own_validator_breaks_on_is_left_out() -> None:
    """Making the tool must not run into what calling it would have told the model."""
    assert "default" not in described(Annotated[int, AfterValidator(broken)], 1)


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for item in schema.values():
            yield from references(item)
    elif isinstance(schema, list):
        for item in schema:
            yield from references(item)


@pytest.mark.parametrize("annotation", [Address, list[Address], Address | None, Tree, dict[str, Address]], ids=str)
def test_every_reference_in_a_schema_leads_somewhere(annotation: Any) -> None:
    """Providers refuse the whole request otherwise; a reference counts from the root of the tool's parameters."""
    schema = taking(annotation).schema
    for reference in references(schema):
        place: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            assert part in place, f"{reference} leads nowhere"
            place = place[part]


ABOUT = """Book a room.

A line: of prose.

Args:
    city: Where to stay,
        by name.
    nights (int): How long.

    (ask about the rest)
    guests (list[str]): Who.
Returns:
    room: its number
"""


def test_arguments_are_described_by_the_docstring() -> None:
    """It is the only place where people write what an argument means."""

    def book(city: str, nights: int, guests: list[str], room: str, A: str) -> None: ...

    book.__doc__ = ABOUT
    properties = signature_of(book, "book").schema["properties"]
    assert {name: schema.get("description") for name, schema in properties.items()} == {
        "city": "Where to stay, by name.",
        "nights": "How long.",
        "guests": "Who.",
        "room": None,
        "A": None,
    }


@pytest.mark.parametrize("header", ["Args:", "Arguments:", "PARAMETERS:"])
def test_the_section_goes_by_its_usual_names(header: str) -> None:
    """Styles differ."""

    def function(x: int) -> None: ...

    function.__doc__ = f"Do.\n\n{header}\n    x: the number\n"
    assert signature_of(function, "act").schema["properties"]["x"]["description"] == "the number"


def test_other_docstring_styles_describe_nothing() -> None:
    """Half a description would be worse."""

    def function(x: int) -> None:
        """Do.

        :param x: the number
        """

    assert signature_of(function, "act").schema["properties"]["x"] == {"type": "integer"}


@pytest.mark.parametrize(
    ("annotation", "given", "value"),
    [
        (int, "5", 5),
        (int, 5, 5),
        (float, 5, 5.0),
        (bool, "true", True),
        (Level, "low", Level.LOW),
        (Level | None, None, None),
        (date, "2024-03-31", date(2024, 3, 31)),
        (tuple[int, ...], [1, "2"], (1, 2)),
        (list[Level], ["low"], [Level.LOW]),
        (Address, {"street": {"name": "Elm"}}, Address(street=Street(name="Elm"))),
        (Any, {"k": [1]}, {"k": [1]}),
    ],
    ids=str,
)
def test_arguments_arrive_as_their_annotations_say(annotation: Any, given: Any, value: Any) -> None:
    """A function that declares an Enum must not be handed a string."""
    checked = taking(annotation).check({"x": given})
    assert checked == {"x": value}
    assert type(checked["x"]) is type(value)


@pytest.mark.parametrize(
    ("annotation", "offered"),
    [
        (Level, ["low", "high"]),
        (Literal["a", 1], ["a", 1]),
        (Literal[Level.LOW], ["low"]),
        (Literal[Level.LOW, "b"], ["low", "b"]),
        (Literal[Level.LOW] | None, ["low", None]),
        (list[Literal[Level.LOW]], [["low"]]),
    ],
    ids=str,
)
def test_every_value_that_is_offered_is_accepted(annotation: Any, offered: list[Any]) -> None:
    """A model that picks from the list it was shown must not be told that it is wrong."""
    signature = taking(annotation)
    for value in offered:
        assert list(signature.check({"x": value})) == ["x"]


def test_an_argument_that_is_left_out_is_left_to_the_function() -> None:
    """Its default may be an object that no JSON can stand for."""
    assert taking(list[int], []).check({}) == {}


def test_a_refusal_names_every_problem_at_once() -> None:
    """A model that learns of one mistake per round needs a round per mistake."""

    def book(city: str, nights: int, level: Level, address: Address | None = None) -> None: ...

    arguments = {"nights": "many", "level": "mid", "pool": True, "address": {"street": {"name": 5}}}
    with pytest.raises(ValidationError) as caught:
        signature_of(book, "book").check(arguments)
    problems = str(caught.value).split("; ")
    assert [problem.split(": ")[0] for problem in problems[:4]] == ["pool", "city", "nights", "level"]
    assert problems[0] == "pool: unknown argument"
    assert problems[1] == "city: missing required argument"
    assert any(problem.startswith("address") and "street.name" in problem for problem in problems)


@pytest.mark.parametrize(("annotation", "given"), [(int, "x"), (str, 5), (Level, "mid"), (int, None), (int, 1.5)])
def test_a_value_of_the_wrong_kind_is_refused(annotation: Any, given: Any) -> None:
    """What would only fail inside the tool may have done half of its work by then."""
    with pytest.raises(ValidationError, match=r"^x: "):
        taking(annotation).check({"x": given})


def test_a_validator_that_breaks_is_a_refusal_too() -> None:
    """Checking happens outside of the tool's own care; another exception from here would take the step down."""
    with pytest.raises(ValidationError, match=r"^x: 1$"):
        taking(Annotated[int, AfterValidator(broken)]).check({"x": 1})
    with pytest.raises(ValidationError, match=r"^x: LookupError$"):
        taking(Annotated[int, AfterValidator(mute)]).check({"x": 1})


@pytest.mark.parametrize(
    "annotation",
    [
        Callable[[], None],
        Iterator,
        type("Custom", (), {}),
        When,
        Literal[b"raw"],
        Annotated[int, Field(discriminator="kind")],
    ],
    ids=str,
)
def test_what_no_json_can_stand_for_is_refused_when_the_tool_is_made(annotation: Any) -> None:
    """Shown at the import of the module, by tool and parameter; later it would fail every request of every run."""
    with pytest.raises(TypeError, match=r"tool 'act': parameter 'x'"):
        json.dumps(taking(annotation).schema)


def test_notes_in_an_annotation_may_be_any_object() -> None:
    """Annotated carries what other libraries put there, lists and dicts included."""
    assert described(Annotated[int, ["any", "thing"]]) == {"type": "integer"}


def test_an_annotation_that_cannot_be_resolved_is_refused() -> None:
    """Taken for text in silence, every argument would reach the function as a string."""

    def act(x: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TypeError, match=r"tool 'act': its annotations cannot be read .*Nowhere.*module level"):
        signature_of(act, "act")


def test_a_positional_only_parameter_is_refused() -> None:
    """A model names its arguments."""

    def act(x: int, /) -> None: ...

    with pytest.raises(TypeError, match=r"tool 'act': parameter 'x' is positional-only"):
        signature_of(act, "act")


def test_a_decorated_function_is_read_through() -> None:
    """A timer or a cache around a tool must not hide its parameters."""
    import functools

    def act(x: Level) -> None: ...

    @functools.wraps(act)
    def timed(*args: Any, **kwargs: Any) -> None: ...

    assert signature_of(timed, "act").check({"x": "low"}) == {"x": Level.LOW}
