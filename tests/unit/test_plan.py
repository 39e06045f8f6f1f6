"""`plan`: from a run and new facts to everything that is written and opened with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drangue_client.events import Event, Fact
from drangue_client.folding import fold
from drangue_client.run import Run
from drangue_client.store.values import Executor, Look, Open, RunRow
from drangue_client.terms import arguments_hash
from drangue_worker.engine.plan import Plan, plan
from drangue_worker.rules.decide import decide
from drangue_worker.tools.invoke import RAW_ARGUMENTS
from tests.unit.made_logs import (
    QUEUE,
    TOOLS,
    WAITING,
    asked,
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
)


def look(run: Run, executor: Executor = "celery", now: float = 100.0) -> Look:
    row = RunRow("r1", "oncall", run.status, executor, 5, {}, "hello", run.seq, None, 0.0, 0.0, None)
    return Look(row, run, now)


def planned(log: Sequence[Event], *facts: Fact, executor: Executor = "celery", now: float = 100.0) -> Plan:
    run = fold(log)
    return plan(look(run, executor, now), facts, lambda: [event for event in log if event.seq >= run.decision_seq])


def after(*facts: Fact, adding: Sequence[Fact] = ()) -> Plan:
    return planned(log_of(*facts), *adding)


def kinds(decided_on: Plan) -> list[tuple[str, int | None]]:
    return [(fact.type, fact.step) for fact in decided_on.facts]


# A turn, hop by hop


def test_a_start_opens_the_first_thought() -> None:
    """Submit, first tick: one event, one step."""
    first = planned([], started())
    assert (kinds(first), first.opens) == ([("run_started", None)], (Open(1, "model", None, "drangue.model"),))


def test_a_decision_opens_its_calls_in_the_same_move() -> None:
    """No message and no commit between a thought and its calls."""
    fanned = after(started(), adding=[decided(1, "read", "read")])
    assert fanned.opens == (Open(2, "tool", "read", QUEUE), Open(3, "tool", "read", QUEUE))
    assert kinds(fanned) == [("model_decision", 1)]


def test_the_last_result_opens_the_next_thought_and_the_others_nothing_new() -> None:
    """The join is a fact of the fold."""
    log = [started(), decided(1, "read", "read")]
    assert after(*log, adding=[result(2)]).opens == (Open(3, "tool", "read", QUEUE),)
    assert after(*log, result(2), adding=[result(3)]).opens == (Open(4, "model", None, "drangue.model"),)


def test_an_answer_ends_the_turn_in_the_same_move() -> None:
    """A run whose answer is known must not wait for another coordinator."""
    ended = after(started(), adding=[decided(1, text="42")])
    assert ended.facts[1:] == (Fact("run_finished", {"output": "42", "reason": "answered"}, step=1),)
    assert (ended.opens, ended.run.status) == ((), "completed")


def test_the_ending_carries_the_highest_step_given_out() -> None:
    """Numbering goes on after it."""
    log = [started(), decided(1, "read", "read"), result(2), result(3)]
    assert after(*log, adding=[decided(4, text="x")]).facts[-1].step == 4


def test_a_run_in_one_process_opens_steps_on_no_queue() -> None:
    """No sweep may send what no fleet serves."""
    log = log_of(started())
    assert planned(log, executor="inline").opens == (Open(1, "model", None, None),)
    assert planned(log, decided(1, "read"), executor="inline").opens == (Open(2, "tool", "read", None),)


def test_the_run_of_a_plan_is_the_fold_of_what_it_writes() -> None:
    """It becomes the snapshot that every later decision is made from."""
    log = log_of(started(), decided(1, "ghost", "pay", "read"))
    made = planned(log)
    assert made.run == fold([*log, *(fact.at(seq) for seq, fact in enumerate(made.facts, start=len(log)))])


@pytest.mark.parametrize("ending", [finished(), failed(), Fact("run_cancelled", {})])
def test_after_the_end_a_late_result_opens_nothing(ending: Fact) -> None:
    """It is recorded, since it is true; the turn is over all the same."""
    late = after(started(), decided(1, "read", "read"), ending, adding=[result(2)])
    assert (kinds(late), late.opens) == ([("tool_result", 2)], ())


def test_a_resumed_run_opens_what_it_had_left() -> None:
    """And nothing that had settled."""
    again = after(started(), decided(1, "read", "read"), result(2), failed(), adding=[resumed()])
    assert again.opens == (Open(3, "tool", "read", QUEUE),)


# Calls that no worker runs


def test_a_question_shows_the_call_and_what_the_model_said_about_it() -> None:
    """A person decides by it, and the verdict is bound to these very arguments."""
    decision = decided(1, "read", "pay", text="I will pay.", reasoning="It is due.")
    question = after(started(), adding=[decision]).facts[1]
    assert question == Fact(
        "approval_requested",
        {
            "call_id": "call_3",
            "tool": "pay",
            "arguments": {"n": 3},
            "arguments_hash": arguments_hash({"n": 3}),
            "reasoning": "It is due.",
            "text": "I will pay.",
        },
        step=3,
    )


def test_questions_are_asked_while_siblings_are_opened() -> None:
    """Whoever needs nobody runs meanwhile."""
    mixed = after(started(), adding=[decided(1, "pay", "read", "pay")])
    assert kinds(mixed)[1:] == [("approval_requested", 2), ("approval_requested", 4)]
    assert mixed.opens == (Open(3, "tool", "read", QUEUE),)


def test_a_granted_call_is_opened() -> None:
    """The run goes on by itself."""
    assert after(started(), decided(1, "pay"), asked(2), adding=[granted(2)]).opens == (Open(2, "tool", "pay", QUEUE),)


@pytest.mark.parametrize(
    ("reason", "message"), [("too dear", "too dear"), ("", "a person refused this call")], ids=["reason", "none"]
)
def test_a_refusal_is_told_to_the_model_with_its_reason(reason: str, message: str) -> None:
    """It then finds another way, or says so."""
    refused = after(started(), decided(1, "pay"), asked(2), adding=[denied(2, reason)])
    told = refused.facts[1]
    assert (told.type, told.step, told.payload["call_id"], told.payload["name"]) == ("tool_result", 2, "call_2", "pay")
    assert json.loads(told.payload["content"]) == {
        "ok": False,
        "tool": "pay",
        "error": {"category": "denied", "message": message},
    }
    assert refused.opens == (Open(3, "model", None, "drangue.model"),)


@pytest.mark.parametrize("second", [denied(2, "second"), granted(2)], ids=["denied", "granted"])
def test_the_reason_told_is_that_of_the_verdict_that_holds(second: Fact) -> None:
    """The first verdict on a request holds; a later one must not speak for it."""
    told = after(started(), decided(1, "pay"), asked(2), denied(2, "first"), adding=[second]).facts[1]
    assert json.loads(told.payload["content"])["error"]["message"] == "first"


def test_an_expired_question_is_a_refusal() -> None:
    """Silence is no consent."""
    expired = after(started(), decided(1, "pay"), asked(2), adding=[Fact("approval_expired", {}, 2)])
    assert kinds(expired) == [("approval_expired", 2), ("tool_result", 2)]
    assert json.loads(expired.facts[1].payload["content"])["error"]["category"] == "denied"


def test_a_shadow_call_is_recorded_as_proposed() -> None:
    """The run goes on as if; nothing happened in the world."""
    shown = after(started(), adding=[decided(1, "sketch")])
    assert kinds(shown)[1:] == [("tool_result", 2)]
    assert json.loads(shown.facts[1].payload["content"])["proposed"] == {"tool": "sketch", "arguments": {"n": 2}}
    assert shown.opens == (Open(3, "model", None, "drangue.model"),)


def test_an_unknown_tool_is_answered_by_name() -> None:
    """Models invent tools; they correct themselves when told."""
    told = after(started(), adding=[decided(1, "ghost")]).facts[1]
    assert (told.payload["call_id"], told.payload["name"]) == ("call_2", "ghost")
    error = json.loads(told.payload["content"])["error"]
    assert (error["category"], "'ghost'" in error["message"]) == ("unknown_tool", True)


@pytest.mark.parametrize("name", ["pay", "sketch"])
def test_nobody_is_asked_about_arguments_that_could_not_be_read(name: str) -> None:
    """The call will be refused whatever a person says, so it is refused before; and it is no proposal either."""
    decision = decided(1, name)
    decision.payload["tool_calls"][0]["arguments"] = {RAW_ARGUMENTS: '{"sum": '}
    refused = after(started(), adding=[decision])
    assert kinds(refused)[1:] == [("tool_result", 2)]
    assert json.loads(refused.facts[1].payload["content"])["error"]["category"] == "invalid_arguments"


def test_calls_are_found_in_their_own_decision() -> None:
    """The log of a run may hold many, and the new one is not written yet."""
    log = [started(), decided(1, "ghost"), result(2, "ghost")]
    told = after(*log, adding=[decided(3, "read", "ghost")]).facts[1]
    assert (told.step, told.payload["call_id"]) == (5, "call_5")


# What it costs


def counting(*facts: Fact, adding: Sequence[Fact]) -> int:
    """How often a plan asks for the events since the decision, each time a query."""
    log, asked_for = log_of(*facts), []

    def evidence() -> Sequence[Event]:
        asked_for.append(1)
        return log

    plan(look(fold(log)), adding, evidence)
    return len(asked_for)


@pytest.mark.parametrize(
    ("facts", "new"),
    [
        ([], started()),
        ([started()], decided(1, "read", "send")),
        ([started(), decided(1, "read")], result(2)),
        ([started()], decided(1, text="42")),
    ],
    ids=["start", "calls", "join", "answer"],
)
def test_the_common_hops_ask_for_no_evidence(facts: list[Fact], new: Fact) -> None:
    """Each asking is a query on the hot path; a step to open, or an answer, repeats nothing from the log."""
    assert counting(*facts, adding=[new]) == 0


def test_evidence_is_asked_for_once_however_many_calls_need_it() -> None:
    """Thirty shadow calls are not thirty queries."""
    assert counting(started(), adding=[decided(1, "sketch", "ghost", "pay", "sketch")]) == 1


# By chance


@by_chance
@given(logs())
def test_a_plan_leaves_only_steps_and_planning_again_adds_nothing(log: list[Event]) -> None:
    """Two coordinators, or one that is told twice, must come to the same and stop."""
    for seq in range(1, len(log)):
        made = planned(log[:seq])
        whole = [*log[:seq], *(fact.at(place) for place, fact in enumerate(made.facts, start=seq))]
        again = planned(whole)
        assert (again.facts, again.opens, again.run) == ((), made.opens, made.run)
        assert len(decide(made.run, 0.0)) == len(made.opens)


@by_chance
@given(st.lists(st.lists(st.sampled_from(TOOLS), max_size=4), max_size=3), st.data())
def test_every_run_ends_with_each_call_answered_once_whatever_comes_first(
    decisions: list[list[str]], data: st.DataObject
) -> None:
    """Results and verdicts in any order, coordinators in between: the log tells one story, whole."""
    log: list[Event] = []
    verdicts: set[int] = set()

    def move(*facts: Fact) -> tuple[Open, ...]:
        made = planned(log, *facts)
        log.extend(fact.at(seq) for seq, fact in enumerate(made.facts, start=len(log)))
        assert fold(log) == made.run
        return made.opens

    opens = move(started())
    thoughts = iter([*filter(None, decisions), []])
    while (run := fold(log)).ended is None:
        undecided = [call.step for call in run.pending if call.step not in verdicts]
        choice: Any = data.draw(st.sampled_from([*opens, *undecided]))
        if isinstance(choice, int):
            verdicts.add(choice)
            opens = move(data.draw(st.sampled_from([granted(choice), denied(choice, "no")])))
        elif choice.kind == "model":
            opens = move(decided(choice.step, *next(thoughts), text="done"))
        else:
            opens = move(result(choice.step, choice.name))
    calls = [call for event in log if event.type == "model_decision" for call in event.payload["tool_calls"]]
    answered = [event.payload["call_id"] for event in log if event.type == "tool_result"]
    questions = [event.payload["call_id"] for event in log if event.type == "approval_requested"]
    assert sorted(answered) == sorted(call["id"] for call in calls)
    assert sorted(questions) == sorted(call["id"] for call in calls if call["name"] in WAITING)
    assert [event.type for event in log].count("run_finished") == 1
    assert runs_of(log)[-1].status == "completed"
