"""Events and their payloads: what is written once must be readable by every store, for ever."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drangue_client.errors import FormatError
from drangue_client.events import EVENT_TYPES, FORMAT, Event, Fact, canonical, lift, normalise


class Level(str, Enum):  # noqa: UP042 - what users wrote before StrEnum, and its str() differs
    LOW = "low"


class Colour(StrEnum):
    RED = "red"


many = settings(max_examples=80, deadline=None, derandomize=True)
AWKWARD = st.sampled_from(["\x00", "\ud800", "\udfff", "\\u0000", "\U0001f600", "\u2028"])
TEXT = st.lists(st.characters() | AWKWARD, max_size=6).map("".join)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=6)
VALUES = st.recursive(
    SCALARS | st.sampled_from([Level.LOW, Colour.RED, Decimal("1.50")]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(TEXT | st.none() | st.integers() | st.floats(), inner, max_size=4)
        | st.frozensets(SCALARS, max_size=4)
    ),
    max_leaves=12,
)


@many
@given(VALUES)
def test_what_is_normalised_survives_json_and_utf_8_as_it_is(value: Any) -> None:
    """A payload that a store refuses is refused after the tool has run: the tool would run again."""
    clean = normalise(value)
    text = json.dumps(clean, allow_nan=False, ensure_ascii=False)
    assert json.loads(text.encode("utf-8")) == clean
    assert "\\u0000" not in text.replace("\\\\", "")  # a NUL would stand here as its escape


@many
@given(VALUES)
def test_normalising_twice_changes_nothing(value: Any) -> None:
    """Payloads pass through here on their way out of a step and again into the store."""
    assert normalise(normalise(value)) == normalise(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\x00b", "a\\u0000b"),
        ("\ud800", "\\ud800"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (1.5, 1.5),
        (True, True),
        (None, None),
        ((1, (2,)), [1, [2]]),
        ({"b", "a"}, ["a", "b"]),
        ({1: "x", None: "y"}, {"1": "x", "None": "y"}),
        ({"\x00": 1}, {"\\u0000": 1}),
        (b"ok \xff", "ok \\xff"),
        (Level.LOW, "low"),
        (Colour.RED, "red"),
        ({Level.LOW: Level.LOW}, {"low": "low"}),
        (Decimal("1.50"), "1.50"),
    ],
)
def test_each_kind_of_value_has_one_form(value: Any, expected: Any) -> None:
    """The forms are stored, so they may never change."""
    actual = normalise(value)
    assert actual == expected
    assert type(actual) is type(expected)


def test_a_value_without_an_end_is_refused() -> None:
    """Cut off in the middle it would be recorded as something else."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        normalise(endless)


def test_canonical_text_does_not_depend_on_the_order_of_keys() -> None:
    """Approvals and fingerprints are bound to it, and a model may send the same arguments in another order."""
    assert canonical({"b": 1, "a": {"d": "é", "c": [2, 1]}}) == '{"a":{"c":[2,1],"d":"\\u00e9"},"b":1}'


def test_a_fact_keeps_all_it_says_at_its_place() -> None:
    """What is decided in memory and what is read back must be the same event."""
    fact = Fact("tool_result", {"content": "x"}, step=3, ts=1.5, duration_ms=2.5)
    assert fact.at(7) == Event(7, "tool_result", {"content": "x"}, ts=1.5, duration_ms=2.5, step=3)


def test_a_fact_says_from_the_start_what_will_be_read_back() -> None:
    """Decided from in memory and read from the log, it must lead to the same."""
    assert Fact("tool_result", {"content": ("a\x00", float("nan"))}).payload == {"content": ["a\\u0000", "nan"]}


def test_an_event_as_json_has_its_six_values() -> None:
    """`--json` is read by programs."""
    event = Event(7, "tool_result", {"content": "x"}, ts=1.5, duration_ms=2.5, step=3)
    assert event.to_json() == {
        "seq": 7,
        "type": "tool_result",
        "step": 3,
        "payload": {"content": "x"},
        "ts": 1.5,
        "duration_ms": 2.5,
    }


def test_an_event_cannot_be_changed() -> None:
    """It is a fact."""
    event: Any = Event(0, "run_started", {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.seq = 1


def test_the_types_users_read_keep_their_names() -> None:
    """Stored logs and users' programs hold these words; a renamed type makes every old log unreadable."""
    named = """
        run_started memory_recalled model_decision step_started tool_result approval_requested approval_granted
        approval_denied approval_expired schema_feedback user_message run_failed run_finished run_cancelled
        input_screened run_resumed outcome_requested outcome_given outcome_corrected
    """
    assert set(named.split()) - EVENT_TYPES == set()


def test_every_known_event_of_this_format_is_understood() -> None:
    """A program must read what it writes."""
    assert [lift(name, FORMAT) for name in sorted(EVENT_TYPES)] == sorted(EVENT_TYPES)


@pytest.mark.parametrize(("event_type", "version"), [("run_started", FORMAT + 1), ("run_teleported", FORMAT)])
def test_an_event_from_the_future_is_refused(event_type: str, version: int) -> None:
    """Folding past a fact it does not know, an old worker would decide wrongly in the middle of a deploy."""
    with pytest.raises(FormatError, match=rf"{event_type}.*Upgrade"):
        lift(event_type, version)
