"""The fold: a run's control state, from its log alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drangue_client.events import Fact
from drangue_client.folding import apply, fold
from drangue_client.run import Call, Run, knows
from drangue_worker.rules.decide import decide
from tests.unit.made_logs import (
    TERMS,
    asked,
    begun,
    by_chance,
    decided,
    denied,
    failed,
    finished,
    granted,
    log_of,
    logs,
    result,
    resumed,
    runs_of,
    started,
    turns,
)


@pytest.mark.parametrize("kind", [logs, turns])
@by_chance
@given(st.data())
def test_a_snapshot_and_the_tail_fold_to_the_same_run_wherever_the_log_is_cut(kind: Any, data: st.DataObject) -> None:
    """Every step decides from a snapshot that some other process wrote; a hard budget must not lose a byte by it."""
    log = data.draw(kind())
    whole = fold(log)
    for before in runs_of(log):
        state = json.loads(json.dumps(before.to_snapshot()))
        terms = json.loads(json.dumps(before.terms.to_json())) if before.terms else None
        read_back = Run.from_snapshot(state, before.seq, terms)
        assert read_back == before
        assert decide(read_back, 0.0) == decide(before, 0.0)
        assert fold(log[before.seq + 1 :], onto=read_back) == whole


@pytest.mark.parametrize("kind", [logs, turns])
@by_chance
@given(st.data())
def test_events_a_snapshot_holds_already_are_not_applied_again(kind: Any, data: st.DataObject) -> None:
    """A tail may begin before the snapshot; what was used once must not be charged again."""
    log = data.draw(kind())
    whole = fold(log)
    assert [before for before in runs_of(log) if fold(log, onto=before) != whole] == []


def test_an_empty_log_is_a_queued_run() -> None:
    """A run is recorded before any worker has seen it."""
    assert (fold([]).status, fold([]).seq) == ("queued", -1)


def test_a_started_run_has_the_terms_it_was_started_under() -> None:
    """A worker deployed later must go on under the recorded ones."""
    run = fold(log_of(started()))
    assert (run.terms, run.turn, run.status) == (TERMS, 1, "running")


def test_a_decision_numbers_its_calls_after_itself() -> None:
    """The step number is the identity of a call: its idempotency key is made of it."""
    run = fold(log_of(started(), decided(1, "read", "send")))
    assert run.calls == (Call(2, "read"), Call(3, "send"))
    assert (run.decision, run.decision_seq, run.last_step, run.answer) == (1, 1, 3, None)


def test_the_next_decision_takes_the_place_of_the_one_before() -> None:
    """Calls of an earlier decision are over; were they kept, they would be opened again."""
    run = fold(log_of(started(), decided(1, "read"), result(2), decided(3, "read", "read")))
    assert run.calls == (Call(4, "read"), Call(5, "read"))
    assert (run.decision, run.last_step, run.turn_model_calls, run.model_calls) == (3, 5, 2, 2)


def test_a_decision_without_calls_is_an_answer() -> None:
    """Even an empty text is one: the model has nothing to add."""
    assert fold(log_of(started(), decided(1, text=""))).answer == ""
    assert fold(log_of(started(), decided(1, text="42"))).answer == "42"


def test_a_result_settles_the_call_of_its_step_and_no_other() -> None:
    """Siblings may call the same tool with the same arguments."""
    run = fold(log_of(started(), decided(1, "read", "read", "read"), result(3)))
    assert [call.step for call in run.unsettled] == [2, 4]


def test_a_result_counts_once() -> None:
    """The log keeps the first; a doubled one must not disturb the count of what is open."""
    log = log_of(started(), decided(1, "read", "read"), result(2), result(2))
    assert [call.step for call in fold(log).unsettled] == [3]


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ([asked(2)], "asked"),
        ([asked(2), granted(2)], "granted"),
        ([asked(2), denied(2)], "denied"),
        ([asked(2), Fact("approval_expired", {}, 2)], "denied"),
        ([asked(2), granted(2), denied(2)], "granted"),
        ([asked(2), denied(2), granted(2)], "denied"),
        ([granted(2)], "none"),
        ([asked(2), granted(3)], "asked"),
    ],
)
def test_the_first_verdict_on_a_request_holds(facts: list[Fact], verdict: str) -> None:
    """Two people decide at once, or a verdict comes for a call that nobody asked about: money must not move twice."""
    run = fold(log_of(started(), decided(1, "pay", "pay"), *facts))
    assert run.calls[0].verdict == verdict


def test_a_run_is_paused_only_when_nothing_can_move_without_a_verdict() -> None:
    """A paused run holds no worker and wakes its waiters; one with a sibling under way is at work."""
    log = log_of(started(), decided(1, "pay", "read"), asked(2), result(3))
    assert [fold(log[:seq]).status for seq in range(2, 5)] == ["running", "running", "paused"]
    assert fold(log).pending == (Call(2, "pay", verdict="asked"),)


@pytest.mark.parametrize("verdict", [granted(2), denied(2)])
def test_a_verdict_sets_a_paused_run_going(verdict: Fact) -> None:
    """A refusal too: the model is to be told."""
    assert fold(log_of(started(), decided(1, "pay"), asked(2), verdict)).status == "running"


def test_an_irreversible_call_is_free_only_after_every_earlier_call_has_settled() -> None:
    """What cannot be undone is done one at a time, in the order it was asked for."""
    log = log_of(started(), decided(1, "read", "send", "send", "read"), result(2), result(5), result(3, "send"))
    steps = [[call.step for call in fold(log[:seq]).free] for seq in range(2, 6)]
    assert steps == [[2, 5], [3, 5], [3], [4]]


def test_an_irreversible_call_behind_one_that_waits_for_a_person_waits_too() -> None:
    """Else the later transfer would leave before the earlier one was even looked at."""
    run = fold(log_of(started(), decided(1, "pay", "send"), asked(2)))
    assert (run.free, run.status) == ((), "paused")


@pytest.mark.parametrize(
    ("fact", "status", "reason"),
    [
        (finished("done", "answered"), "completed", "answered"),
        (finished("(stopped)", "max_steps"), "completed", "max_steps"),
        (failed("gone", "transient"), "failed", "transient"),
        (Fact("run_cancelled", {}), "cancelled", "cancelled"),
    ],
)
def test_an_ending_says_how_and_why(fact: Fact, status: str, reason: str) -> None:
    """Programs branch on the reason; nobody should have to parse the output."""
    run = fold(log_of(started(), decided(1, text="x"), fact))
    assert (run.status, run.reason) == (status, reason)


def test_an_ended_run_is_not_paused_by_a_request_that_was_left_open() -> None:
    """A run that failed beside an open question must not ask people for verdicts that change nothing."""
    assert fold(log_of(started(), decided(1, "pay"), asked(2), failed())).status == "failed"


def test_a_resumed_run_stands_where_it_failed() -> None:
    """Whatever had settled before the failure is not done again."""
    before = log_of(started(), decided(1, "read", "read"), result(2))
    again = fold([*before, failed().at(3), resumed().at(4)])
    assert (again.calls, again.status, again.reason) == (fold(before).calls, "running", None)


def test_a_run_cancelled_before_its_first_step_holds_nothing_else() -> None:
    """It may end before any worker has started it."""
    run = fold(log_of(Fact("run_cancelled", {})))
    assert (run.status, run.terms) == ("cancelled", None)


def test_an_event_without_meaning_for_control_moves_the_place_alone() -> None:
    """The place must still move, or the next write would be taken for a conflict."""
    run = fold(log_of(started(), decided(1, "send")))
    after = apply(run, begun(2).at(2))
    assert after.seq == 2
    assert fold([], onto=after).to_snapshot() == run.to_snapshot()


def test_a_call_is_found_by_its_step() -> None:
    """Tool names repeat; steps do not."""
    run = fold(log_of(started(), decided(1, "read", "send")))
    assert [run.call(step) for step in (3, 9, None)] == [Call(3, "send"), None, None]


def test_a_snapshot_is_small_and_holds_no_arguments() -> None:
    """It is rewritten with every step; forty calls with long arguments must not make every step slower."""
    log = log_of(started(), decided(1, *["read"] * 40, reasoning="because " * 500))
    for call in log[1].payload["tool_calls"]:
        call["arguments"] = {"text": "secret " * 500}
    text = json.dumps(fold(log).to_snapshot(), separators=(",", ":"))
    assert len(text) < 1024
    assert "secret" not in text


@pytest.mark.parametrize("state", [None, {}, {"v": 0, "turn": 1}, {"v": 999, "turn": 1}])
def test_a_snapshot_of_another_version_is_an_empty_run(state: dict[str, object] | None) -> None:
    """Who cannot read it must fold the whole log, not guess."""
    assert not knows(state)
    assert Run.from_snapshot(state, 5, TERMS.to_json()) == Run()


def test_a_stored_snapshot_of_this_version_is_read_as_it_was_meant() -> None:
    """Rows written by yesterday's workers hold this; a changed shape needs a new version."""
    state = {
        "v": 3,
        "turn": 1,
        "last": 4,
        "decision": 1,
        "decision_seq": 1,
        "calls": [["read", 1, 0], ["pay", 0, 1], ["pay", 0, 2]],
        "answer": None,
        "accepted": None,
        "turn_models": 1,
        "models": 1,
        "ended": None,
        "reason": None,
        "screened": False,
        "blocked": None,
        "corrections": 0,
        "recalled": False,
        "spent": [0, 0.0, None],
        "context": 0,
        "deadline": None,
        "unknown": [],
    }
    run = fold(log_of(started(), decided(1, "read", "pay", "pay"), result(2), asked(3), asked(4), granted(4)))
    assert run.to_snapshot() == state
    assert knows(state)
    assert Run.from_snapshot(state, 5, TERMS.to_json()) == run
