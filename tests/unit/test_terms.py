"""Terms: what a run is started under, as data, and the leave its tools have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from drangue_client.terms import Autonomy, Terms, ToolTerms, arguments_hash
from tests.unit.made_logs import QUEUE, TERMS


@pytest.mark.parametrize(
    "terms",
    [
        Terms(),
        TERMS,
        Terms(
            models=("a", None),
            instructions="é",
            max_steps=3,
            autonomy=Autonomy("assisted", {"read": "autonomous"}),
            tools={"read": ToolTerms("browser", False, True, 2.5, {"type": "object"})},
            window=4,
        ),
    ],
)
def test_terms_survive_being_recorded(terms: Terms) -> None:
    """Every later decision is made under what was read back, perhaps years and versions later."""
    assert Terms.from_json(json.loads(json.dumps(terms.to_json()))) == terms


def test_a_tool_is_by_default_reversible_and_ungated() -> None:
    """The loosest terms there are; whoever needs stricter ones says so."""
    assert ToolTerms("q") == ToolTerms("q", reversible=True, requires_approval=False, timeout_s=None, schema={})


def test_the_order_in_which_tools_were_given_is_kept() -> None:
    """A model is shown them so for the whole run; another order would empty the provider's prompt cache."""
    recorded = json.loads(json.dumps(Terms(tools={"y": ToolTerms("a"), "x": ToolTerms("b")}).to_json()))
    assert [one["name"] for one in Terms.from_json(recorded).offered()] == ["y", "x"]


@pytest.mark.parametrize(
    "wrong", [{"default": "asisted"}, {"modes": {"pay": "asisted"}}, {"default": None}, {"modes": {"pay": ""}}]
)
def test_a_mode_that_does_not_exist_is_refused(wrong: dict[str, Any]) -> None:
    """A typo in `assisted` once let a tool run by itself."""
    with pytest.raises(ValueError, match="shadow, assisted, autonomous"):
        Autonomy(**wrong)


def test_the_refusal_names_the_place_of_the_wrong_mode() -> None:
    """Among thirty tools, which one?"""
    with pytest.raises(ValueError, match=r"modes\['pay'\] is 'asisted'"):
        Autonomy(modes={"read": "shadow", "pay": "asisted"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"default is 'asisted'"):
        Autonomy("asisted")  # type: ignore[arg-type]


def test_autonomy_does_not_change_with_the_dict_it_was_made_from() -> None:
    """What was checked must be what holds."""
    modes: dict[str, Any] = {"pay": "assisted"}
    autonomy = Autonomy(modes=modes)
    modes["pay"] = "anything"
    assert autonomy.mode_for("pay") == "assisted"


def test_a_tool_that_is_not_named_has_the_default_mode() -> None:
    """An operator turns everything to shadow with one word."""
    autonomy = Autonomy("shadow", {"read": "autonomous"})
    assert [autonomy.mode_for(name) for name in ("read", "pay")] == ["autonomous", "shadow"]


@pytest.mark.parametrize(
    ("autonomy", "requires_approval", "expected"),
    [
        (None, False, "autonomous"),
        (None, True, "assisted"),
        (Autonomy("autonomous"), True, "assisted"),
        (Autonomy("assisted"), False, "assisted"),
        (Autonomy("shadow"), True, "shadow"),
        (Autonomy("shadow"), False, "shadow"),
    ],
)
def test_a_tool_that_requires_approval_never_runs_by_itself(
    autonomy: Autonomy | None, requires_approval: bool, expected: str
) -> None:
    """The gate holds with or without an Autonomy, and does not loosen a stricter one."""
    terms = Terms(autonomy=autonomy, tools={"pay": ToolTerms(QUEUE, requires_approval=requires_approval)})
    assert terms.mode_for("pay") == expected


def test_equal_arguments_have_one_hash_whatever_their_order() -> None:
    """An approval is bound to it, and JSON keeps no order of keys."""
    one = arguments_hash({"to": {"name": "Ann", "iban": "X"}, "sum": 1})
    assert one == arguments_hash({"sum": 1, "to": {"iban": "X", "name": "Ann"}})
    assert len(one) == 16


@pytest.mark.parametrize("other", [{"sum": 10}, {"sum": "1"}, {"sum": True}, {"sum": 1, "to": None}, {}, {"Sum": 1}])
def test_other_arguments_have_another_hash(other: dict[str, Any]) -> None:
    """The approval of one transfer must not release another."""
    assert arguments_hash(other) != arguments_hash({"sum": 1})


def test_the_hash_of_arguments_never_changes() -> None:
    """It is stored with a request and compared with a verdict by another version of the program."""
    assert arguments_hash({"to": "Ann", "sum": 1.5}) == "5f3d1ea5fbd5959a"
