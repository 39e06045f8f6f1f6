"""The rules of a whole turn: its input, its memory, what it may call and spend, and how its answer is judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from drangue_client.answer import FINAL_ANSWER
from drangue_client.budget import Budget
from drangue_client.events import Event, Fact
from drangue_client.folding import fold
from drangue_client.run import Call
from drangue_client.terms import Guards, Terms
from drangue_worker.rules.commands import (
    AskApproval,
    CallModel,
    CallTool,
    Command,
    Correct,
    Deliver,
    Deny,
    Finish,
    Judge,
    Propose,
    Recall,
    Refuse,
    Screen,
)
from drangue_worker.rules.decide import decide
from tests.unit.made_logs import (
    PRICES,
    QUEUE,
    SCHEMA,
    TERMS,
    accepted,
    asked,
    by_chance,
    decided,
    denied,
    failed,
    finished,
    granted,
    log_of,
    recalled,
    result,
    resumed,
    runs_of,
    said,
    screened,
    sent_back,
    started,
    turns,
)


def due(terms: Terms, *facts: Fact) -> tuple[Command, ...]:
    return decide(fold(log_of(started(terms), *facts)), now=0.0)


def guarded(**guards: Any) -> Terms:
    return replace(TERMS, guards=Guards(**guards))


def limited(tokens: int, **more: Any) -> Terms:
    return replace(TERMS, budget=Budget(max_tokens=tokens, **more))


STRUCTURED = replace(TERMS, output_schema=SCHEMA)
USED = {"usage": {"input_tokens": 60, "output_tokens": 40}}
EXHAUSTED = Finish("(stopped: budget exhausted)", "budget")


# Input and memory

VETTED = replace(TERMS, guards=Guards(input=True), memory=True)


@pytest.mark.parametrize(
    ("facts", "commands"),
    [
        ([], (Screen(-1),)),
        ([failed(), resumed()], (Screen(-1),)),
        ([screened(1)], (Recall(0),)),
        ([screened(1), recalled()], (CallModel(1),)),
        ([screened(1, "secrets")], (Finish("(blocked: secrets)", "blocked"),)),
        ([screened(1, "")], (Finish("(blocked: )", "blocked"),)),
        ([screened(1, "secrets"), finished("(blocked: secrets)", "blocked")], ()),
        ([screened(1), recalled(), decided(1, text="x"), finished("x"), said()], (Screen(-2),)),
        ([screened(1), recalled(), decided(1, text="x"), finished("x"), said(), screened(2)], (CallModel(2),)),
        ([screened(1, "no"), finished("(blocked: no)", "blocked"), said(), screened(2)], (Recall(0),)),
        (
            [screened(1, "no"), finished("(blocked: no)", "blocked"), said(), screened(2, "n")],
            (Finish("(blocked: n)", "blocked"),),
        ),
    ],
)
def test_an_input_is_judged_before_anything_is_done_with_it(facts: list[Fact], commands: tuple[Command, ...]) -> None:
    """A text that is refused reaches neither the memory's backend nor the model; each turn's is judged by itself."""
    assert due(VETTED, *facts) == commands


def test_only_an_input_guard_needs_the_input_judged() -> None:
    """The other guards look at calls and results."""
    assert due(guarded(output=True, result=True, approver=True)) == (CallModel(1),)


def test_memory_alone_is_recalled_at_once() -> None:
    """Nobody asked for the input to be judged."""
    assert due(replace(TERMS, memory=True)) == (Recall(0),)


# Permissions


@pytest.mark.parametrize(
    "guards", [{"deny": frozenset({"pay"})}, {"allow": frozenset({"read"})}], ids=["deny", "allow"]
)
def test_nobody_is_asked_about_a_call_that_is_forbidden(guards: dict[str, Any]) -> None:
    """A person's yes could not make it run."""
    (refusal,) = due(guarded(**guards), decided(1, "pay"))
    assert isinstance(refusal, Refuse)
    assert (refusal.step, refusal.name, refusal.category) == (2, "pay", "blocked")
    assert "pay is " in refusal.message


def test_a_tool_that_does_not_exist_is_unknown_whatever_the_lists_say() -> None:
    """`not on the allow-list` would send its author looking in the wrong place."""
    (refusal,) = due(guarded(allow=frozenset({"ghost"}), deny=frozenset({"ghost"})), decided(1, "ghost"))
    assert isinstance(refusal, Refuse)
    assert refusal.category == "unknown_tool"


def test_what_is_forbidden_is_not_even_proposed() -> None:
    """A shadow run shows what would have happened, and this would not have."""
    (refusal,) = due(replace(guarded(deny=frozenset({"sketch"}))), decided(1, "sketch"))
    assert isinstance(refusal, Refuse)


# Gates


@pytest.mark.parametrize(
    ("guards", "name", "command"),
    [
        ({"gate_irreversible": True}, "send", AskApproval(2, "send")),
        ({"gate_irreversible": True}, "read", CallTool(2, "read", QUEUE)),
        ({"gate_irreversible": True, "approver": True}, "send", CallTool(2, "send", QUEUE)),
        ({"approver": True}, "pay", CallTool(2, "pay", QUEUE)),
        ({"output": True, "approver": True}, "pay", CallTool(2, "pay", QUEUE)),
        ({"output": True}, "pay", CallTool(2, "pay", QUEUE)),
        ({}, "pay", AskApproval(2, "pay")),
    ],
    ids=str,
)
def test_a_gated_call_asks_a_person_unless_something_else_comes_first(
    guards: dict[str, Any], name: str, command: Command
) -> None:
    """An approver decides in its stead; an output guard may still refuse what nobody should have been asked about."""
    assert due(guarded(**guards), decided(1, name)) == (command,)


def test_a_call_whose_guard_let_it_pass_waits_for_its_verdict() -> None:
    """The guarding step put the question; from then on it is a question like any other."""
    terms = guarded(output=True)
    assert due(terms, decided(1, "pay", "read"), asked(2)) == (CallTool(3, "read", QUEUE),)
    assert due(terms, decided(1, "pay"), asked(2)) == ()
    assert due(terms, decided(1, "pay"), asked(2), granted(2)) == (CallTool(2, "pay", QUEUE),)
    assert due(terms, decided(1, "pay"), asked(2), denied(2)) == (Deny(2, "pay"),)


# Ceilings


def test_every_turn_has_its_own_ceiling() -> None:
    """A conversation that went on for long must not end at its twentieth question."""
    terms = replace(TERMS, max_steps=2)
    first = [decided(1, "read"), result(2), decided(3, "read"), result(4)]
    stopped = Finish("(stopped: reached max_steps=2)", "max_steps")
    assert due(terms, *first) == (stopped,)
    ended = [*first, finished(stopped.output, "max_steps"), said()]
    assert due(terms, *ended) == (CallModel(5),)
    assert due(terms, *ended, decided(5, "read"), result(6)) == (CallModel(7),)
    assert due(terms, *ended, decided(5, "read"), result(6), decided(7, "read"), result(8)) == (stopped,)


def test_the_ceiling_ends_a_turn_whose_answer_was_sent_back() -> None:
    """Corrections are model calls too; and a judgement on the last permitted one still counts."""
    terms = replace(STRUCTURED, max_steps=1)
    assert due(terms, decided(1, text="a"), sent_back()) == (Finish("(stopped: reached max_steps=1)", "max_steps"),)
    assert due(terms, decided(1, FINAL_ANSWER)) == (Judge(2),)
    assert due(terms, decided(1, FINAL_ANSWER), accepted(2)) == (Deliver(2, matches=True),)


@pytest.mark.parametrize(
    ("terms", "facts", "commands"),
    [
        (limited(100), [], (CallModel(1),)),
        (limited(0), [], (EXHAUSTED,)),
        (limited(101), [decided(1, "read", **USED), result(2)], (CallModel(3),)),
        (limited(100), [decided(1, "read", **USED), result(2)], (EXHAUSTED,)),
        (limited(100), [decided(1, "read", **USED)], (CallTool(2, "read", QUEUE),)),
        (limited(100), [decided(1, "pay", **USED)], (AskApproval(2, "pay"),)),
        (limited(100), [decided(1, text="x", **USED)], (Finish("x", "answered"),)),
        (limited(100), [decided(1, text="x", **USED), finished("x"), said()], (EXHAUSTED,)),
        (limited(101), [decided(1, text="x", **USED), finished("x"), said()], (CallModel(2),)),
        (replace(limited(100), output_schema=SCHEMA), [decided(1, text="x", **USED), sent_back()], (EXHAUSTED,)),
        (
            replace(limited(0), max_steps=1),
            [decided(1, "read"), result(2)],
            (Finish("(stopped: reached max_steps=1)", "max_steps"),),
        ),
        (replace(limited(0), guards=Guards(input=True)), [], (Screen(-1),)),
        (replace(limited(900, hard=True), output_ceiling=10), [], (EXHAUSTED,)),
        (
            replace(TERMS, budget=Budget(max_usd=9.0, prices=PRICES)),
            [decided(1, "read", model="mystery", **USED), result(2)],
            (Finish("(stopped: budget unenforceable: no price for model 'mystery'. Add it to prices.)", "budget"),),
        ),
    ],
)
def test_a_budget_stops_the_next_thought_and_nothing_else(
    terms: Terms, facts: list[Fact], commands: tuple[Command, ...]
) -> None:
    """What was asked for is done, an answer that was paid for is given; the run's next turn has no money either."""
    assert due(terms, *facts) == commands


# By chance


@by_chance
@given(turns())
def test_no_command_is_given_for_a_call_that_is_settled(log: list[Event]) -> None:
    """A second fact about it could not be written, or the effect would take place twice."""
    for run in runs_of(log):
        unsettled = {(call.step, call.name) for call in run.unsettled}
        for command in decide(run, now=0.0):
            if isinstance(command, CallTool | AskApproval | Propose | Deny | Refuse):
                assert (command.step, command.name) in unsettled
            elif isinstance(command, Judge):
                assert Call(command.step, FINAL_ANSWER) in run.unsettled


@by_chance
@given(turns())
def test_nothing_runs_before_the_input_has_passed_nor_after_the_end(log: list[Event]) -> None:
    """The order of authority holds at every moment of every turn."""
    for run in runs_of(log):
        commands = decide(run, now=0.0)
        if run.ended or run.seq < 0:
            assert commands == ()
        elif not run.screened:
            assert commands == (Screen(-run.turn),)
        elif run.blocked is not None:
            assert commands == (Finish(f"(blocked: {run.blocked})", "blocked"),)
        elif not run.recalled:
            assert commands == (Recall(0),)


@by_chance
@given(turns())
def test_a_turn_that_waits_for_nobody_always_has_something_due(log: list[Event]) -> None:
    """A run with nothing due would be stuck for ever, and no sweep could tell; one due thing at a time ends it."""
    for run in runs_of(log):
        commands = decide(run, now=0.0)
        assert bool(commands) == (run.status == "running")
        if [one for one in commands if isinstance(one, Judge | Correct | Deliver | Finish | CallModel)]:
            assert len(commands) == 1
