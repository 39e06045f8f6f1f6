"""A turn whose time is over: what is decided then, what is written of it, and what the next turn finds of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drangue_client.budget import Budget
from drangue_client.events import Event, Fact
from drangue_client.folding import fold
from drangue_client.messages import conversation
from drangue_client.outcomes import failed_as
from drangue_client.run import Run
from drangue_client.terms import Guards, OnCancel, Terms
from drangue_worker.rules.commands import CallModel, CallTool, Command, Finish
from drangue_worker.rules.decide import decide
from tests.unit.made_logs import (
    QUEUE,
    SCHEMA,
    TERMS,
    accepted,
    asked,
    begun,
    by_chance,
    cancelled,
    decided,
    denied,
    failed,
    finished,
    granted,
    late,
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
    wondered,
)
from tests.unit.test_plan import planned

ENDS_AT = 100.0  # which is also the time at which `planned` decides
LIMITED = replace(TERMS, deadline_s=60.0)
VETTED = replace(LIMITED, guards=Guards(input=True), memory=True)
STRUCTURED = replace(LIMITED, output_schema=SCHEMA)
OVER = Finish("(stopped: its time was over)", "deadline")


def after(*facts: Fact, terms: Terms = LIMITED) -> Run:
    return fold(log_of(started(terms, deadline_at=ENDS_AT), *facts))


def due(now: float, *facts: Fact, terms: Terms = LIMITED) -> tuple[Command, ...]:
    return decide(after(*facts, terms=terms), now)


@pytest.mark.parametrize(
    ("now", "commands"),
    [(0.0, (CallModel(1),)), (99.999, (CallModel(1),)), (100.0, (OVER,)), (100.001, (OVER,)), (9e9, (OVER,))],
)
def test_a_turn_ends_at_its_deadline_and_not_before(now: float, commands: tuple[Command, ...]) -> None:
    """Whoever said 60 seconds gets 60 seconds, and the wake-up at the very moment finds the turn over."""
    assert due(now) == commands


def test_a_turn_without_a_deadline_never_ends_by_the_clock() -> None:
    """Runs of an older program, and of agents without one, may wait for a person for a year."""
    assert decide(fold(log_of(started())), 9e12) == (CallModel(1),)


@pytest.mark.parametrize(
    ("terms", "facts"),
    [
        (VETTED, []),
        (VETTED, [screened(1)]),
        (VETTED, [screened(1, "secrets")]),
        (VETTED, [screened(1), recalled()]),
        (LIMITED, [decided(1, "read", "send")]),
        (LIMITED, [decided(1, "send"), begun(2)]),
        (LIMITED, [decided(1, "send"), begun(2), wondered(2)]),
        (LIMITED, [decided(1, "ghost")]),
        (LIMITED, [decided(1, "pay")]),
        (LIMITED, [decided(1, "pay"), asked(2)]),
        (LIMITED, [decided(1, "pay"), asked(2), granted(2)]),
        (LIMITED, [decided(1, "pay"), asked(2), denied(2)]),
        (LIMITED, [decided(1, "read"), result(2)]),
        (LIMITED, [decided(1, text="an answer")]),
        (STRUCTURED, [decided(1, text="prose")]),
        (STRUCTURED, [decided(1, text="prose"), sent_back()]),
        (STRUCTURED, [decided(1, "final_answer"), accepted(2)]),
    ],
)
def test_nothing_else_is_decided_once_the_time_is_over(terms: Terms, facts: list[Fact]) -> None:
    """Not a guard, a memory, a person, a call, nor an answer comes before the end; and without it each would."""
    assert due(ENDS_AT, *facts, terms=terms) == (OVER,)
    assert due(ENDS_AT - 1, *facts, terms=terms) != (OVER,)


@pytest.mark.parametrize("end", [finished("x"), failed(), cancelled(), late()], ids=lambda end: end.type)
def test_a_turn_that_has_ended_does_not_end_again(end: Fact) -> None:
    """A second end would stand in the log beside the first, and the answer be gone."""
    assert due(ENDS_AT + 1, decided(1, text="x"), end) == ()


def test_a_run_that_was_taken_up_again_has_its_time_anew() -> None:
    """It failed in the night, and whoever mended the cause in the morning must not find it over."""
    mended = [decided(1, "read"), failed(), resumed(deadline_at=500.0)]
    assert due(499.0, *mended) == (CallTool(2, "read", QUEUE),)
    assert due(500.0, *mended) == (OVER,)


def test_every_turn_has_its_own_time() -> None:
    """The second question of a long conversation is not late because the first was asked an hour ago."""
    first = [decided(1, text="x"), finished("x")]
    assert due(399.0, *first, said(deadline_at=400.0)) == (CallModel(2),)
    assert due(400.0, *first, said(deadline_at=400.0)) == (OVER,)
    assert due(9e9, *first, said()) == (CallModel(2),)


def test_the_end_is_written_with_every_number_that_was_given_out() -> None:
    """The next thought may be under way: the key of its call must never stand for another conversation."""
    log = log_of(started(LIMITED, deadline_at=ENDS_AT), decided(1, "read", "read"), result(2))
    written = planned(log, result(3))
    assert written.opens == ()
    assert [(fact.type, fact.step) for fact in written.facts] == [("tool_result", 3), ("run_finished", 3)]
    assert written.facts[1].payload == {"output": OVER.output, "reason": "deadline", "last_step": 4}
    assert decide(fold([said().at(5)], onto=written.run), 0.0) == (CallModel(5),)


def test_a_run_whose_time_was_over_before_it_began_ends_with_its_first_tick() -> None:
    """It waited in a queue for longer than its caller would wait for the answer."""
    first = planned([], started(LIMITED, deadline_at=ENDS_AT))
    assert ([fact.type for fact in first.facts], first.opens) == (["run_started", "run_finished"], ())
    assert (first.run.status, first.run.reason, first.run.cut_short) == ("completed", "deadline", True)


def test_nobody_is_waited_for_after_the_end() -> None:
    """What was asked is asked no more: neither leave nor word of an outcome."""
    run = after(decided(1, "pay", "send"), asked(2), begun(3), wondered(3), late())
    assert (run.status, run.pending, run.uncertain, run.free[:0]) == ("completed", (), (), ())
    assert run.unknown == (3,)


@pytest.mark.parametrize("end", [late(5), cancelled(5)], ids=lambda end: end.type)
def test_calls_that_were_left_open_are_answered_in_their_places(end: Fact) -> None:
    """A provider refuses a conversation in which a call has no result; of one that had begun nothing is claimed."""
    facts = [decided(1, "read", "send", "read", "pay"), asked(5), begun(3), result(4, content="seen"), end]
    shown = conversation(log_of(started(LIMITED, deadline_at=ENDS_AT), *facts, said("well?")))
    assert [message["role"] for message in shown] == ["user", "assistant", "tool", "tool", "tool", "tool", "user"]
    results = [message for message in shown if message["role"] == "tool"]
    assert [message["call_id"] for message in results] == ["call_2", "call_3", "call_4", "call_5"]
    told = [failed_as(message["content"]) for message in results]
    assert told == ["cancelled", "unknown_outcome", None, "cancelled"]


def test_calls_of_a_turn_that_ended_otherwise_are_not_answered_in_their_places() -> None:
    """They have their results, or their turn has not ended: two results of one call are refused as well."""
    log = log_of(started(LIMITED, deadline_at=ENDS_AT), decided(1, "read", "read"), result(2), failed())
    assert [message["role"] for message in conversation(log)] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("end", [late(6), cancelled(6)], ids=lambda end: end.type)
def test_a_hard_budget_counts_what_stands_in_their_places(end: Fact) -> None:
    """Its worst case must not be surpassed by texts that nobody has recorded."""
    terms = replace(LIMITED, budget=Budget(max_tokens=10**6, hard=True), output_ceiling=10)
    log = log_of(started(terms, deadline_at=ENDS_AT), decided(1, *["send"] * 5), begun(2), end, said("well?"))
    shown = sum(len(json.dumps(message, ensure_ascii=False).encode()) for message in conversation(log))
    assert fold(log).context >= shown


def test_a_deadline_is_counted_from_when_a_turn_was_asked_for() -> None:
    """Its first event has the moment itself; one without a limit has nothing, as an older program wrote it."""
    assert (LIMITED.deadline(40.0), TERMS.deadline(40.0)) == ({"deadline_at": 100.0}, {})
    assert Terms.from_json(json.loads(json.dumps(LIMITED.to_json()))).deadline_s == 60.0
    older = {name: value for name, value in TERMS.to_json().items() if name != "deadline_s"}
    assert Terms.from_json(older) == TERMS


@pytest.mark.parametrize("says", [None, "stop", "finish"])
def test_a_call_takes_along_what_is_to_be_done_about_it_when_its_turn_ends(says: OnCancel | None) -> None:
    """The worker that stops it may know nothing of its agent: it finds the word in the step's row."""
    terms = replace(LIMITED, tools={**TERMS.tools, "read": replace(TERMS.tools["read"], on_cancel=says)})
    assert due(0.0, decided(1, "read"), terms=terms) == (CallTool(2, "read", QUEUE, says),)
    (opened,) = planned(log_of(started(terms)), decided(1, "read")).opens
    assert opened.on_cancel == says


@by_chance
@given(turns(), st.floats(0, 1000))
def test_whatever_has_happened_the_deadline_ends_it(log: list[Event], now: float) -> None:
    """At every place of every log: one end where the turn goes on, and nothing where it has ended."""
    for run in runs_of(log):
        if run.terms is None:
            continue
        limited = replace(run, deadline_at=now)
        assert decide(limited, now) == (() if run.ended else (OVER,))
        assert decide(limited, now - 1) == decide(run, now - 1)
        state = json.loads(json.dumps(limited.to_snapshot()))
        assert Run.from_snapshot(state, run.seq, run.terms.to_json()) == limited
