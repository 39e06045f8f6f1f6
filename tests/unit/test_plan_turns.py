"""`plan` and `coordinate`: what is written and opened for a turn's input, its memory and its judged answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from drangue_client.answer import FINAL_ANSWER
from drangue_client.budget import Budget
from drangue_client.events import Event, Fact
from drangue_client.folding import fold
from drangue_client.settings import Settings
from drangue_client.store import InMemoryStore
from drangue_client.store.values import Executor, Look, NewRun, Open, RunRow
from drangue_client.terms import Guards, Terms
from drangue_worker.blueprint import Blueprint
from drangue_worker.engine.coordinate import coordinate
from drangue_worker.engine.plan import Plan, plan
from drangue_worker.engine.runtime import Runtime
from drangue_worker.memory import NullMemory
from drangue_worker.registry import OneAgent
from drangue_worker.rules.decide import decide
from drangue_worker.testing.fake import FakeModel
from drangue_worker.tools.guards import Guardrails
from drangue_worker.tools.invoke import RAW_ARGUMENTS
from tests.unit.made_logs import (
    SCHEMA,
    TERMS,
    accepted,
    by_chance,
    called,
    decided,
    finished,
    log_of,
    missed,
    recalled,
    result,
    said,
    screened,
    started,
    turns,
)

STRUCTURED = replace(TERMS, output_schema=SCHEMA)
NUMBERS = replace(TERMS, output_schema={"type": "array", "items": {"type": "integer"}})
VETTED = replace(TERMS, guards=Guards(input=True), memory=True)
THOUGHT = Open(0, "model", None, "drangue.model")


def planned(log: Sequence[Event], *facts: Fact, executor: Executor = "celery") -> Plan:
    run = fold(log)
    row = RunRow("r1", "oncall", run.status, executor, 5, {}, "hello", run.seq, None, 0.0, 0.0, None)
    return plan(Look(row, run, now=100.0), facts, lambda: [event for event in log if event.seq >= run.decision_seq])


def adding(terms: Terms, *facts: Fact, executor: Executor = "celery") -> Plan:
    """What is planned when the last of these facts comes."""
    return planned(log_of(started(terms), *facts[:-1]), facts[-1], executor=executor)


# Before the first thought


def test_a_turn_is_prepared_step_by_step() -> None:
    """Judged, then recalled, then thought: each a step of its own, which a crash repeats alone."""
    assert planned([], started(VETTED)).opens == (Open(-1, "prepare", "screen", "drangue.model"),)
    assert adding(VETTED, screened(1)).opens == (Open(0, "prepare", "recall", "drangue.model"),)
    assert adding(VETTED, screened(1), recalled()).opens == (replace(THOUGHT, step=1),)
    later = [screened(1), recalled(), decided(1, text="x"), finished("x"), said()]
    assert adding(VETTED, *later).opens == (Open(-2, "prepare", "screen", "drangue.model"),)


def test_in_one_process_preparations_are_opened_on_no_queue() -> None:
    """No sweep may send what no fleet serves."""
    assert planned([], started(VETTED), executor="inline").opens == (Open(-1, "prepare", "screen", None),)
    assert adding(VETTED, screened(1), executor="inline").opens == (Open(0, "prepare", "recall", None),)


def test_a_blocked_input_ends_the_turn_in_the_same_move() -> None:
    """Between the verdict and the end there is no moment in which the text could get through."""
    made = adding(VETTED, screened(1, "secrets"))
    payload = {"output": "(blocked: secrets)", "reason": "blocked", "blocked": True}
    assert made.facts[1:] == (Fact("run_finished", payload, step=0),)
    assert (made.opens, made.run.status) == ((), "completed")


def test_a_turn_without_money_ends_as_it_begins() -> None:
    """The ending carries the highest step given out, and numbering goes on after it."""
    broke = replace(TERMS, budget=Budget(max_tokens=0))
    payload = {"output": "(stopped: budget exhausted)", "reason": "budget"}
    assert planned([], started(broke)).facts[1:] == (Fact("run_finished", payload, step=0),)


# Answers


@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["free", "structured"])
def test_a_text_answer_is_marked_where_it_was_judged(schema: dict[str, Any] | None) -> None:
    """Only then may a reader parse it."""
    made = adding(replace(TERMS, output_schema=schema), decided(1, text='{"n":1}'))
    judged = {"output": '{"n": 1}', "reason": "answered", "structured": True}
    free = {"output": '{"n":1}', "reason": "answered"}
    assert made.facts[1:] == (Fact("run_finished", judged if schema else free, step=1),)


def test_a_text_that_missed_is_sent_back_and_asked_for_again() -> None:
    """The feedback and the next thought are one move."""
    made = adding(STRUCTURED, decided(1, text="prose"))
    assert [(fact.type, fact.step) for fact in made.facts] == [("model_decision", 1), ("schema_feedback", None)]
    assert "did not match" in made.facts[1].payload["text"]
    assert made.opens == (replace(THOUGHT, step=2),)


def test_a_delivered_answer_that_matches_is_accepted_and_ends_the_turn() -> None:
    """Its arguments are the output."""
    made = adding(STRUCTURED, called(1, (FINAL_ANSWER, {"n": 1, "why": "é"})))
    assert made.facts[1:] == (
        accepted(2),
        Fact("run_finished", {"output": '{"n": 1, "why": "é"}', "reason": "answered", "structured": True}, step=2),
    )
    assert (made.opens, made.run.status, made.run.reason) == ((), "completed", "answered")


def test_an_answer_that_is_no_object_is_delivered_out_of_its_wrapping() -> None:
    """The wrapping is between us and the model; its user asked for a list."""
    made = adding(NUMBERS, called(1, (FINAL_ANSWER, {"value": [1, 2]})))
    assert made.facts[-1].payload == {"output": "[1, 2]", "reason": "answered", "structured": True}


def test_a_delivered_answer_that_misses_is_told_why_and_the_model_asked_again() -> None:
    """As a tool's failure is told."""
    made = adding(STRUCTURED, called(1, (FINAL_ANSWER, {"n": "one"})))
    (told,) = made.facts[1:]
    assert (told.type, told.step, sorted(told.payload)) == ("tool_result", 2, ["call_id", "content", "name"])
    content = json.loads(told.payload["content"])
    assert (content["ok"], content["error"]["category"]) == (False, "validation")
    assert '- $.n: expected integer, got "one"' in content["error"]["message"]
    assert made.opens == (replace(THOUGHT, step=3),)


def test_the_last_result_of_a_sibling_has_the_answer_judged_at_once() -> None:
    """No message and no coordinator between the join and the end."""
    made = adding(STRUCTURED, called(1, ("read", {}), (FINAL_ANSWER, {"n": 1}), ("read", {})), result(2), result(4))
    assert [(fact.type, fact.step) for fact in made.facts] == [
        ("tool_result", 4),
        ("tool_result", 3),
        ("run_finished", 4),
    ]


def test_of_several_answers_the_first_that_matches_counts_and_each_gets_a_result() -> None:
    """A call without a result would break the conversation of the next turn."""
    made = adding(STRUCTURED, called(1, *[(FINAL_ANSWER, {"n": n}) for n in ("a", 2, 3)]))
    assert [fact.step for fact in made.facts] == [1, 2, 3, 4, 4]
    assert [fact.payload.get("accepted") for fact in made.facts[1:4]] == [None, True, None]
    assert json.loads(made.facts[3].payload["content"])["error"]["category"] == "skipped"
    assert made.facts[-1].payload["output"] == '{"n": 2}'


@pytest.mark.timeout(10)  # `plan` once went on for ever here
def test_equal_answers_are_told_apart_by_their_steps() -> None:
    """A model that repeats itself must not have one call answered twice and the other never."""
    twins = called(1, (FINAL_ANSWER, {"n": "x"}), (FINAL_ANSWER, {"n": "x"}))
    for call in twins.payload["tool_calls"]:
        call["id"] = "same"
    assert [fact.step for fact in adding(STRUCTURED, twins).facts if fact.type == "tool_result"] == [2, 3]


TWICE = [called(1, (FINAL_ANSWER, {})), missed(2), called(3, (FINAL_ANSWER, {})), missed(4)]


def test_a_third_answer_that_misses_is_delivered_as_it_is() -> None:
    """Marked by its reason, and by no `structured`."""
    made = adding(STRUCTURED, *TWICE, called(5, (FINAL_ANSWER, {"n": "three"})))
    assert made.facts[-1] == Fact("run_finished", {"output": '{"n": "three"}', "reason": "schema"}, step=6)
    assert (made.opens, made.run.status, made.run.reason) == ((), "completed", "schema")


def test_arguments_that_could_not_be_read_are_no_answer() -> None:
    """Where a schema requires nothing, the marker in their place would match it."""
    lenient = replace(TERMS, output_schema={"type": "object"})
    (told,) = adding(lenient, called(1, (FINAL_ANSWER, {RAW_ARGUMENTS: '{"n": '}))).facts[1:]
    error = json.loads(told.payload["content"])["error"]
    assert error["category"] == "validation"
    assert "not a JSON object: '{\"n\": '" in error["message"]


def test_an_answer_that_could_not_be_read_is_delivered_as_the_model_wrote_it() -> None:
    """The marker is drangue's own, and means nothing to whoever reads the output."""
    made = adding(STRUCTURED, *TWICE, called(5, (FINAL_ANSWER, {RAW_ARGUMENTS: '{"n": '})))
    assert made.facts[-1].payload == {"output": '{"n": ', "reason": "schema"}


def test_a_judged_answer_costs_one_look_at_the_log() -> None:
    """Of a decision written before, as when a sibling's result comes in; each look is a query on the hot path."""
    log = log_of(started(STRUCTURED), called(1, ("read", {}), (FINAL_ANSWER, {"n": 1})))
    looks: list[int] = []
    run = fold(log)
    row = RunRow("r1", "oncall", run.status, "celery", 5, {}, "hello", run.seq, None, 0.0, 0.0, None)

    def evidence() -> Sequence[Event]:
        looks.append(1)
        return log[1:]

    made = plan(Look(row, run, now=100.0), [result(2)], evidence)
    assert (len(made.facts), len(looks)) == (3, 1)
    looks.clear()
    plan(Look(row, fold(log_of(started(STRUCTURED))), now=100.0), [decided(1, text="prose")], evidence)
    assert looks == []


# By chance


@by_chance
@given(turns())
def test_a_plan_of_any_moment_leaves_only_steps_and_planning_again_adds_nothing(log: list[Event]) -> None:
    """Two coordinators, or one that is told twice, must come to the same and stop, whatever the turn is at."""
    for seq in range(1, len(log)):
        made = planned(log[:seq])
        whole = [*log[:seq], *(fact.at(place) for place, fact in enumerate(made.facts, start=seq))]
        again = planned(whole)
        assert (again.facts, again.opens, again.run) == ((), made.opens, made.run)
        assert fold(whole) == made.run
        assert len(decide(made.run, 0.0)) == len(made.opens)


# Starting


def first_event(overrides: dict[str, Any], **agent: Any) -> dict[str, Any]:
    """The payload of the first event of a run with these overrides, of an agent made of these arguments."""
    blueprint = Blueprint.of(name="oncall", model=FakeModel(), **agent)
    with closing(InMemoryStore()) as log:
        log.submit([NewRun("r", "oncall", "hello", executor="inline", overrides=overrides)])
        runtime = Runtime(log=log, registry=OneAgent([blueprint]), settings=Settings(), worker="w")
        coordinate(runtime, "r")
        runtime.close()
        return log.events("r")[0].payload


def test_a_run_starts_under_its_agents_terms() -> None:
    """All the rules will ever read."""
    assert first_event({}) == {"input": "hello", "config": Terms(models=("fake",)).to_json()}
    agent = {"budget": Budget(max_tokens=5), "guardrails": Guardrails(deny={"pay"}), "memory": NullMemory()}
    terms = Terms(models=("fake",), budget=Budget(max_tokens=5), guards=Guards(deny=frozenset({"pay"})), memory=True)
    assert Terms.from_json(first_event({}, **agent)["config"]) == terms


@pytest.mark.parametrize(
    ("overrides", "own", "recorded"),
    [
        ({}, None, None),
        ({}, SCHEMA, SCHEMA),
        ({"output_schema": {"type": "array"}}, None, {"type": "array"}),
        ({"output_schema": {"type": "array"}}, SCHEMA, {"type": "array"}),
    ],
    ids=["none", "the agent's", "the run's", "both"],
)
def test_the_form_asked_for_with_a_run_takes_the_place_of_the_agents(
    overrides: dict[str, Any], own: Any, recorded: Any
) -> None:
    """It is merged in before it is recorded: the rules read the terms and nothing beside them."""
    payload = first_event(overrides, output_schema=own)
    assert payload.get("output_schema") == recorded
    assert payload["config"]["output_schema"] == recorded


def test_what_is_no_term_of_a_run_is_not_recorded_as_one() -> None:
    """A turn's id is a fact of its own; whether somebody watches is none of the rules' business."""
    payload = first_event({"turn_id": "t1", "tokens": True})
    assert payload == {"input": "hello", "config": Terms(models=("fake",)).to_json(), "turn_id": "t1"}
