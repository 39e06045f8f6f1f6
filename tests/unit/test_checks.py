"""The checks of arguments: what they refuse, that they change nothing, and that a refusal can always be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from drangue_client import checks
from tests.unit.wrong_arguments import HUGE, INF, NAN, nested


class Silent:
    """Something without a repr."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Closing:
    """Something with one method."""

    def close(self) -> None: ...


CLOSING = Closing()


def told(value: Any) -> str:
    """What names a value in a test's id."""
    return ascii(getattr(value, "__name__", None) or checks.shown(value))[1:-1][:40]


PASSES: list[tuple[Callable[..., Any], Any, dict[str, Any]]] = [
    (checks.text, "", {}),
    (checks.text, " \x00", {}),
    (checks.text, "x" * 5, {"most": 5}),
    (checks.text, "x", {"blank": False}),
    (checks.name, "größe 2", {}),
    (checks.name, "x" * 200, {}),
    (checks.name, "", {"empty": True}),
    (checks.printable, "order-17:refund", {}),
    (checks.flag, False, {}),
    (checks.count, 0, {}),
    (checks.count, -1, {"least": -1}),
    (checks.count, 9, {"most": 9}),
    (checks.count, HUGE, {}),
    (checks.number, -1.5, {}),
    (checks.number, 1, {"least": 1, "most": 1}),
    (checks.seconds, 5e-324 * 2**52, {}),
    (checks.seconds, 1, {}),
    (checks.seconds, 0, {"zero": True}),
    (checks.kind, 5, {"kinds": (int, str), "what": "a number or a text"}),
    (checks.has, CLOSING, {"method": "close", "what": "a file"}),
    (checks.function, len, {}),
    (checks.one_of, "b", {"words": ["a", "b"]}),
]
OPTIONAL: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (checks.text, {}),
    (checks.name, {}),
    (checks.count, {}),
    (checks.number, {}),
    (checks.seconds, {}),
    (checks.kind, {"kinds": int, "what": "a number"}),
    (checks.has, {"method": "close", "what": "a file"}),
    (checks.function, {}),
    (checks.one_of, {"words": ["a", "b"]}),
]
NAMED = "(1 to 200 characters, not blank, without NUL or lone surrogates)"
IS_A = "1 to 200 printable characters without spaces"
REFUSED: list[tuple[Callable[..., Any], Any, dict[str, Any], type[Exception], str]] = [
    (checks.text, 5, {}, TypeError, "it is 5; it must be text."),
    (checks.text, b"x", {"then": "Decode it."}, TypeError, "it is b'x'; it must be text. Decode it."),
    (checks.text, {"password": 1}, {"hidden": True}, TypeError, "it is dict; it must be text."),
    (checks.text, "", {"most": 5}, ValueError, "it is ''; it must be text of 1 to 5 characters."),
    (checks.text, "123456", {"most": 5}, ValueError, "it is '123456'; it must be text of 1 to 5 characters."),
    (checks.text, " \n", {"blank": False}, ValueError, r"it is ' \n'; it must be text that is not blank."),
    (checks.name, 5, {}, TypeError, f"it is 5; it must be a name {NAMED}."),
    (checks.name, "", {"what": "a tool's name"}, ValueError, f"it is ''; it must be a tool's name {NAMED}."),
    (checks.name, " ", {"empty": True}, ValueError, f"it is ' '; it must be a name {NAMED}."),
    (checks.name, "a\x00", {}, ValueError, rf"it is 'a\x00'; it must be a name {NAMED}."),
    (checks.name, "\ud800", {}, ValueError, rf"it is '\ud800'; it must be a name {NAMED}."),
    (checks.printable, None, {}, TypeError, f"it is None; it must be {IS_A}."),
    (checks.printable, "a b", {"then": "Leave it out."}, ValueError, f"it is 'a b'; it must be {IS_A}. Leave it out."),
    (checks.flag, 1, {}, TypeError, "it is 1; it must be True or False."),
    (checks.count, True, {}, TypeError, "it is True; it must be a whole number of at least 0."),
    (checks.count, 2.0, {"most": 9}, TypeError, "it is 2.0; it must be a whole number from 0 to 9."),
    (checks.count, -1, {}, ValueError, "it is -1; it must be at least 0."),
    (checks.count, 10, {"most": 9}, ValueError, "it is 10; it must be from 0 to 9."),
    (checks.number, "1", {}, TypeError, "it is '1'; it must be a number."),
    (checks.number, True, {}, TypeError, "it is True; it must be a number."),
    (checks.number, NAN, {"what": "a rate"}, ValueError, "it is nan; it must be a rate."),
    (checks.number, INF, {}, ValueError, "it is inf; it must be a number."),
    (checks.number, HUGE, {}, ValueError, "it is <int without a repr>; it must be a number."),
    (checks.seconds, 0, {}, ValueError, "it is 0; it must be a positive number of seconds and at most 100 years."),
    (
        checks.seconds,
        -1,
        {"zero": True},
        ValueError,
        "it is -1; it must be a number of seconds, at least 0 and at most 100 years.",
    ),
    (checks.kind, "x", {"kinds": int, "what": "a number"}, TypeError, "it is 'x'; it must be a number."),
    (checks.has, "x", {"method": "close", "what": "a file"}, TypeError, "it is 'x'; it must be a file."),
    (checks.function, "len", {}, TypeError, "it is 'len'; it must be a function."),
    (checks.one_of, 5, {"words": ["a", "b"]}, TypeError, "it is 5; it must be one of a, b."),
    (checks.one_of, "c", {"words": ["a", "b"]}, ValueError, "it is 'c'; it must be one of a, b."),
    (checks.many, "abc", {"what": "a list"}, TypeError, "it is 'abc'; it must be a list."),
    (checks.many, 5, {"what": "a list"}, TypeError, "it is 5; it must be a list."),
    (checks.tool_names, "pay", {}, TypeError, "it is 'pay'; it must be a set of tool names."),
    (checks.tool_names, ["pay", 5], {}, TypeError, "it holds 5; it must hold names of tools."),
]


@pytest.mark.parametrize(("check", "value", "options"), PASSES, ids=told)
def test_what_may_be_given_comes_back_as_it_was(check: Callable[..., Any], value: Any, options: dict[str, Any]) -> None:
    """Nothing is converted: what a program passed is what it has."""
    assert check("it", value, **options) is value


@pytest.mark.parametrize(("check", "options"), OPTIONAL, ids=told)
def test_none_passes_where_it_is_optional_and_nowhere_else(check: Callable[..., Any], options: dict[str, Any]) -> None:
    """And whoever gives something wrong is told so."""
    assert check("it", None, optional=True, **options) is None
    with pytest.raises(TypeError, match=r"^it is None; it must be "):
        check("it", None, **options)
    with pytest.raises(TypeError, match=", or None"):
        check("it", b"?", optional=True, **options)


@pytest.mark.parametrize(("check", "value", "options", "error", "message"), REFUSED, ids=told)
def test_a_refusal_names_the_argument_the_value_and_what_it_must_be(
    check: Callable[..., Any], value: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A wrong kind is a TypeError, a wrong value a ValueError."""
    with pytest.raises(error) as caught:
        check("it", value, **options)
    assert (type(caught.value), str(caught.value)) == (error, message)


@pytest.mark.parametrize("check", [checks.kind, checks.has])
def test_a_class_is_not_taken_for_an_instance(check: Callable[..., Any]) -> None:
    """`Agent(FakeModel)` is the usual slip, and a class has all the methods."""
    wanted = {"kinds": Closing} if check is checks.kind else {"method": "close"}
    with pytest.raises(TypeError, match=r"must be a file\. Make one: Closing\(\.\.\.\)\.$"):
        check("it", Closing, what="a file", **wanted)


def test_what_can_be_gone_through_once_is_gone_through_once() -> None:
    """A generator that is used up would leave a list that forbids nothing."""
    assert checks.tool_names("deny", (name for name in ("pay", "send"))) == {"pay", "send"}
    assert checks.many("rules", iter([1, 2]), "a list") == [1, 2]


@pytest.mark.parametrize("value", [HUGE, nested(50_000), Silent(), "x" * 10**6], ids=told)
def test_a_refusal_can_be_told_whatever_was_given(value: Any) -> None:
    """An error about an error says nothing, and a whole document is no message."""
    with pytest.raises(TypeError, match=r"^it is .*; it must be True or False") as caught:
        checks.flag("it", value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("value", "number", "count"),
    [
        *[(1, True, True), (1.5, True, False), (HUGE, False, True), (True, False, False)],
        *[(NAN, False, False), (INF, False, False), ("1", False, False), (None, False, False)],
    ],
    ids=["int", "float", "huge", "flag", "nan", "inf", "text", "none"],
)
def test_what_counts_as_a_number(value: Any, number: bool, count: bool) -> None:
    """Prices are multiplied and limits compared as floats."""
    assert (checks.is_number(value), checks.is_count(value)) == (number, count)
