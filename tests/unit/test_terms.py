"""Terms: what a run is started under, as data, and the leave its tools have."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from drangue_client.autonomy import Autonomy
from drangue_client.budget import Budget
from drangue_client.events import Event
from drangue_client.folding import fold
from drangue_client.terms import Guards, Terms, ToolTerms, arguments_hash
from drangue_worker.rules.commands import CallModel, Recall, Screen
from drangue_worker.rules.decide import decide
from tests.unit.made_logs import FULL_TERMS, PRICES, QUEUE, SCHEMA, TERMS, recalled, screened, started


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
            tools={"read": ToolTerms("browser", False, True, 2.5, {"type": "object"}, "Reads.")},
            window=4,
            asked_per_step=2,
            prompt_overhead=7,
            output_ceiling=100,
            budget=Budget(10, 0.5, PRICES, hard=True),
            guards=Guards(frozenset({"read"}), frozenset({"pay"}), True, True, True, True, True),
            memory=True,
            output_schema=SCHEMA,
        ),
        Terms(guards=Guards(allow=frozenset()), budget=Budget()),
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
    with pytest.raises((TypeError, ValueError), match="shadow, assisted, autonomous"):
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


# Older records

# What the first release recorded, word for word.
FIRST = {
    "models": ["gpt-4o"],
    "instructions": "Be brief.",
    "max_steps": 20,
    "autonomy": {"default": "autonomous", "modes": {"pay": "assisted"}},
    "tools": {
        "pay": {"queue": "q", "reversible": False, "requires_approval": True, "timeout_s": None, "schema": {}},
    },
    "window": 32,
}


def test_terms_of_the_first_release_are_read_with_todays_defaults() -> None:
    """Runs that are paused for a person outlive a deploy; they must go on as they began."""
    assert Terms.from_json(FIRST) == Terms(
        models=("gpt-4o",),
        instructions="Be brief.",
        autonomy=Autonomy(modes={"pay": "assisted"}),
        tools={"pay": ToolTerms("q", reversible=False, requires_approval=True)},
    )


@pytest.mark.parametrize(
    "place", [[], ["tools", "read"], ["guards"], ["budget"]], ids=["terms", "tool", "guards", "budget"]
)
def test_what_a_newer_program_records_beside_is_left_out(place: list[str]) -> None:
    """In a deploy the old workers meet it; a fold that raises would stop the run for all of them. Whatever must be
    obeyed comes with a new format of the event."""
    recorded = json.loads(json.dumps(FULL_TERMS.to_json()))
    part = recorded
    for key in place:
        part = part[key]
    part["of_a_later_release"] = True
    assert Terms.from_json(recorded) == FULL_TERMS


def test_all_that_decides_is_in_the_first_event() -> None:
    """No worker's settings, no live agent: what a run may do next follows from its log alone."""
    first = json.loads(json.dumps(started(FULL_TERMS).payload))
    run = fold([Event(0, "run_started", first)])
    assert decide(run, now=0.0) == (Screen(-1),)
    assert decide(fold([screened(1).at(1)], onto=run), now=0.0) == (Recall(),)
    later = fold([screened(1).at(1), recalled().at(2)], onto=run)
    assert decide(later, now=0.0) == (CallModel(1),)


# Guards


@pytest.mark.parametrize(
    ("guards", "refused"),
    [
        (Guards(), []),
        (Guards(allow=frozenset({"read"})), ["pay", "send"]),
        (Guards(allow=frozenset()), ["pay", "read", "send"]),
        (Guards(deny=frozenset({"pay"})), ["pay"]),
        (Guards(allow=frozenset({"read", "pay"}), deny=frozenset({"pay"})), ["pay", "send"]),
    ],
    ids=["none", "allow", "allow nothing", "deny", "both"],
)
def test_names_are_allowed_and_denied(guards: Guards, refused: list[str]) -> None:
    """An empty allow-list allows nothing, which is not the same as having none."""
    terms = replace(TERMS, guards=guards)
    assert [name for name in ("pay", "read", "send") if terms.refusal(name)] == refused


def test_a_refusal_says_which_list_it_is_about() -> None:
    """The model is told, and so is whoever asks why a tool is never called."""
    guards = Guards(allow=frozenset({"read", "pay"}), deny=frozenset({"pay"}))
    assert guards.refusal("send") == "send is not on the allow-list of this agent"
    assert guards.refusal("pay") == "pay is on the deny-list of this agent"


def test_terms_without_guards_refuse_nothing() -> None:
    """Most agents have none."""
    assert [name for name in (*TERMS.tools, "ghost") if TERMS.refusal(name) or Terms().gated(name)] == []


@pytest.mark.parametrize(
    ("guards", "gated"),
    [
        (None, ["pay", "wire"]),
        (Guards(), ["pay", "wire"]),
        (Guards(approver=True), ["pay", "wire"]),
        (Guards(gate_irreversible=True), ["pay", "send", "wire"]),
    ],
    ids=["none", "guards", "approver", "irreversible"],
)
def test_a_gate_is_the_tools_own_or_that_of_all_irreversible_ones(guards: Guards | None, gated: list[str]) -> None:
    """A tool's own gate holds without any guardrails, and an unknown tool has none to pass."""
    terms = replace(TERMS, guards=guards)
    assert [name for name in (*sorted(TERMS.tools), "ghost") if terms.gated(name)] == gated


@pytest.mark.parametrize(
    ("mode", "approver", "leave"),
    [
        ("autonomous", False, "assisted"),
        ("autonomous", True, "autonomous"),
        ("assisted", True, "assisted"),
        ("assisted", False, "assisted"),
        ("shadow", True, "shadow"),
        ("shadow", False, "shadow"),
    ],
)
def test_a_gated_call_waits_for_a_person_unless_code_decides(mode: Any, approver: bool, leave: str) -> None:
    """An approver stands in for a person at the gate, and never loosens what autonomy asks for besides."""
    guards = Guards(gate_irreversible=True, approver=approver)
    terms = replace(TERMS, autonomy=Autonomy(mode), guards=guards)
    assert [terms.mode_for(name) for name in ("send", "pay")] == [leave, leave]
    assert terms.mode_for("read") == mode


# What a model is told


def test_the_tools_are_offered_as_they_were_recorded() -> None:
    """A model must not be shown a tool as today's code has it, in a run that knows it otherwise."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    terms = Terms(tools={"read": ToolTerms(QUEUE, schema=schema, description="Reads.")})
    assert terms.offered() == [{"name": "read", "description": "Reads.", "input_schema": schema}]
    assert Terms().offered() == []


def test_where_an_answer_of_a_form_is_wanted_the_way_to_deliver_it_is_offered_last() -> None:
    """Last, so that the tools before it stay in the provider's prompt cache."""
    told = FULL_TERMS.offered()
    assert [one["name"] for one in told] == [*TERMS.tools, "final_answer"]
    assert told[-1]["input_schema"] == SCHEMA
    assert "Deliver the final answer" in told[-1]["description"]
