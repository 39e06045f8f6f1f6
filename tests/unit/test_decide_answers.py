"""The rules of an answer that must have a form: what is run before it, how it is judged, when enough is enough."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drangue_client.answer import FINAL_ANSWER, MAX_CORRECTIONS
from drangue_client.autonomy import Autonomy
from drangue_client.events import Fact
from drangue_client.folding import fold
from drangue_client.terms import Guards, Terms
from drangue_worker.rules.commands import (
    AskApproval,
    CallModel,
    CallTool,
    Command,
    Correct,
    Deliver,
    Finish,
    Judge,
    Propose,
    Refuse,
)
from drangue_worker.rules.decide import decide
from tests.unit.made_logs import (
    QUEUE,
    SCHEMA,
    TERMS,
    accepted,
    asked,
    decided,
    denied,
    finished,
    log_of,
    missed,
    result,
    said,
    sent_back,
    started,
)

STRUCTURED = replace(TERMS, output_schema=SCHEMA)


def due(terms: Terms, *facts: Fact) -> tuple[Command, ...]:
    return decide(fold(log_of(started(terms), *facts)), now=0.0)


@pytest.mark.parametrize(
    ("facts", "commands"),
    [
        ([decided(1, FINAL_ANSWER)], (Judge(2),)),
        ([decided(1, "read", FINAL_ANSWER)], (CallTool(2, "read", QUEUE),)),
        ([decided(1, FINAL_ANSWER, "read")], (CallTool(3, "read", QUEUE),)),
        ([decided(1, FINAL_ANSWER, "read"), result(3)], (Judge(2),)),
        ([decided(1, FINAL_ANSWER, "pay")], (AskApproval(3, "pay"),)),
        ([decided(1, FINAL_ANSWER, "pay"), asked(3)], ()),
        ([decided(1, FINAL_ANSWER, "pay"), asked(3), denied(3), result(3)], (Judge(2),)),
        ([decided(1, FINAL_ANSWER, "sketch")], (Propose(3, "sketch"),)),
        ([decided(1, FINAL_ANSWER, FINAL_ANSWER)], (Judge(2),)),
        ([decided(1, FINAL_ANSWER, FINAL_ANSWER), missed(2)], (Judge(3),)),
        (
            [decided(1, FINAL_ANSWER, FINAL_ANSWER), accepted(2)],
            (Refuse(3, FINAL_ANSWER, "skipped", "an answer was accepted already"),),
        ),
        ([decided(1, FINAL_ANSWER, FINAL_ANSWER), missed(2), accepted(3)], (Deliver(3, matches=True),)),
        ([decided(1, FINAL_ANSWER), accepted(2)], (Deliver(2, matches=True),)),
        ([decided(1, FINAL_ANSWER), missed(2)], (CallModel(3),)),
        ([decided(1, FINAL_ANSWER), accepted(2), finished("{}", structured=True)], ()),
    ],
)
def test_siblings_run_first_and_then_the_first_answer_that_matches_is_taken(
    facts: list[Fact], commands: tuple[Command, ...]
) -> None:
    """A sibling that was asked for is not dropped because an answer stands beside it, nor run in the next turn."""
    assert due(STRUCTURED, *facts) == commands


@pytest.mark.parametrize(
    ("text", "output"),
    [('{"n": 1}', '{"n": 1}'), (' {"n":1}\n', '{"n": 1}'), ('{"n": 1, "é": "é"}', '{"n": 1, "é": "é"}')],
)
def test_a_text_that_matches_is_an_answer(text: str, output: str) -> None:
    """Models that were asked for a form often just write it."""
    assert due(STRUCTURED, decided(1, text=text)) == (Finish(output, "answered", structured=True),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("prose", "$: expected JSON"), ("{}", "$: missing required n"), ('{"n": "1"}', "$.n: expected integer")],
)
def test_a_text_that_misses_is_sent_back_with_the_reason(text: str, problem: str) -> None:
    """The model mends what it is told of."""
    (correction,) = due(STRUCTURED, decided(1, text=text))
    assert isinstance(correction, Correct)
    assert "did not match" in correction.text
    assert problem in correction.text


def test_after_two_corrections_an_answer_is_taken_as_it_is() -> None:
    """Three answers for the price of three; what came is marked as not being what was asked for."""
    two = [decided(1, text="a"), sent_back(), decided(2, text="b"), sent_back()]
    assert due(STRUCTURED, *two) == (CallModel(3),)
    assert due(STRUCTURED, *two, decided(3, text="c")) == (Finish("c", "schema"),)
    assert due(STRUCTURED, *two, decided(3, text='{"n": 1}')) == (Finish('{"n": 1}', "answered", structured=True),)
    by_call = [decided(1, FINAL_ANSWER), missed(2), decided(3, FINAL_ANSWER), missed(4)]
    assert due(STRUCTURED, *by_call) == (CallModel(5),)
    assert due(STRUCTURED, *by_call, decided(5, FINAL_ANSWER)) == (Judge(6),)
    assert due(STRUCTURED, *by_call, decided(5, FINAL_ANSWER), missed(6)) == (Deliver(6, matches=False),)


def test_corrections_of_both_ways_are_counted_together() -> None:
    """Else a model that alternates is never done."""
    mixed = [decided(1, text="a"), sent_back(), decided(2, FINAL_ANSWER), missed(3)]
    assert due(STRUCTURED, *mixed, decided(4, text="c")) == (Finish("c", "schema"),)
    assert due(STRUCTURED, *mixed, decided(4, FINAL_ANSWER), missed(5)) == (Deliver(5, matches=False),)


def test_answers_given_at_once_are_sent_back_once() -> None:
    """The model has seen no reason yet, so it has not been corrected even once."""
    assert MAX_CORRECTIONS == 2
    facts = [decided(1, *[FINAL_ANSWER] * 3), missed(2), missed(3), missed(4)]
    assert due(STRUCTURED, *facts) == (CallModel(5),)


def test_calls_between_two_answers_are_no_correction_and_no_answer() -> None:
    """A model that goes on working after a refusal is not done."""
    two = [decided(1, FINAL_ANSWER), missed(2), decided(3, FINAL_ANSWER), missed(4)]
    assert due(STRUCTURED, *two, decided(5, "read"), result(6)) == (CallModel(7),)


def test_every_turn_has_its_own_corrections() -> None:
    """A turn that used them up must not leave the next one with none."""
    first = [decided(1, text="a"), sent_back(), decided(2, text="b"), sent_back(), decided(3, text="c")]
    (again,) = due(STRUCTURED, *first, finished("c", "schema"), said(), decided(4, text="d"))
    assert isinstance(again, Correct)


def test_an_answer_of_a_form_is_no_tool_to_allow_or_to_ask_about() -> None:
    """No list names it and no mode holds it: an agent that may call nothing may still answer."""
    terms = replace(STRUCTURED, guards=Guards(allow=frozenset()), autonomy=Autonomy("assisted"))
    assert due(terms, decided(1, FINAL_ANSWER)) == (Judge(2),)
    assert due(replace(terms, autonomy=Autonomy("shadow")), decided(1, FINAL_ANSWER)) == (Judge(2),)


def test_without_a_form_there_is_no_such_tool() -> None:
    """A model may have seen it in another conversation."""
    assert due(TERMS, decided(1, FINAL_ANSWER)) == (
        Refuse(2, FINAL_ANSWER, "unknown_tool", "there is no tool named 'final_answer'"),
    )
