"""The fold of everything a turn can hold: the verdict on its input, what was remembered, used, sent back, accepted."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from drangue_client.answer import FINAL_ANSWER
from drangue_client.budget import Budget, Spent
from drangue_client.events import Fact
from drangue_client.folding import fold
from drangue_client.run import Call, Run, knows, outlives
from drangue_client.terms import Guards
from tests.unit.made_logs import (
    FULL_TERMS,
    PRICES,
    TERMS,
    accepted,
    asked,
    called,
    decided,
    failed,
    finished,
    granted,
    log_of,
    missed,
    recalled,
    result,
    resumed,
    said,
    screened,
    sent_back,
    started,
)

SOFT = replace(TERMS, budget=Budget(max_tokens=100, prices=PRICES))
HARD = replace(TERMS, budget=Budget(max_tokens=100, hard=True))
ANSWERS = started(FULL_TERMS)


def after(*facts: Fact) -> Run:
    return fold(log_of(*facts))


# Snapshots


def test_every_part_of_a_run_is_in_its_snapshot() -> None:
    """A part that is left out of the snapshot is lost at the next step, and nowhere earlier."""
    run = Run(
        seq=9,
        terms=TERMS,
        turn=2,
        last_step=8,
        decision=7,
        decision_seq=8,
        calls=(Call(8, "read", True, "granted"),),
        answer="a",
        accepted=8,
        turn_model_calls=1,
        model_calls=3,
        ended="failed",
        reason="permanent",
        screened=True,
        blocked="b",
        corrections=1,
        recalled=True,
        spent=Spent(5, 0.1, "gpt"),
        context=77,
        deadline_at=1.5,
        unknown=(8,),
    )
    fresh = Run()
    assert [part.name for part in fields(Run) if getattr(run, part.name) == getattr(fresh, part.name)] == []
    assert Run.from_snapshot(json.loads(json.dumps(run.to_snapshot())), 9, TERMS.to_json()) == run


def test_a_snapshot_of_the_first_version_is_folded_again_from_the_log() -> None:
    """It knows nothing of what was used or judged: to take its word would reset a budget."""
    first = {
        "v": 1,
        "turn": 1,
        "last": 1,
        "decision": 1,
        "decision_seq": 1,
        "calls": [],
        "answer": "x",
        "turn_models": 1,
        "models": 1,
        "ended": None,
        "reason": None,
    }
    log = log_of(started(SOFT), decided(1, text="x", usage={"input_tokens": 60, "output_tokens": 60}))
    assert (knows(first), outlives(first)) == (False, False)
    assert fold(log, onto=Run.from_snapshot(first, 1, SOFT.to_json())) == fold(log)
    assert fold(log).spent.tokens == 120


# Turns


def test_a_new_turn_forgets_the_turn_before_and_keeps_the_run() -> None:
    """Ceilings, corrections and the verdict on the input are a turn's; numbers, memory and money are the run's."""
    used = {"usage": {"input_tokens": 2, "output_tokens": 3}}
    first = [ANSWERS, screened(1), recalled("tea"), called(1, (FINAL_ANSWER, {}), **used), missed(2), sent_back()]
    before = after(*first, decided(3, FINAL_ANSWER, **used), accepted(4), finished("{}", structured=True))
    assert (before.corrections, before.accepted, before.ended) == (2, 4, "completed")
    second = fold([said().at(before.seq + 1)], onto=before)
    assert second == Run(
        seq=before.seq + 1,
        terms=FULL_TERMS,
        turn=2,
        last_step=4,
        decision_seq=before.decision_seq,
        model_calls=2,
        recalled=True,
        spent=Spent(10, (4 * 3.0 + 6 * 15.0) / 1e6),
    )


def test_a_new_turn_leaves_no_call_of_the_old_one_open() -> None:
    """A call that was skipped must not be run at the beginning of the next turn."""
    run = after(started(), decided(1, "pay", "read"), asked(2), Fact("run_cancelled", {}), said())
    assert (run.calls, run.pending, run.status, run.turn) == ((), (), "running", 2)


def test_a_result_that_comes_after_the_next_turn_began_changes_nothing_in_it() -> None:
    """A worker may hand in a result of the cancelled turn while the new one is at its first thought."""
    before = after(started(), decided(1, "read"), Fact("run_cancelled", {}), said())
    late = fold([result(2).at(before.seq + 1)], onto=before)
    assert late == replace(before, seq=before.seq + 1)


def test_a_screened_input_says_whether_it_was_blocked_and_why() -> None:
    """No verdict, a pass and a refusal are three states; only the first may be judged again."""
    runs = [after(ANSWERS, *verdict) for verdict in ([], [screened(1)], [screened(1, "secrets")])]
    assert [(run.screened, run.blocked) for run in runs] == [(False, None), (True, None), (True, "secrets")]


def test_a_blocked_turn_blocks_no_later_one() -> None:
    """One refused input must not silence the conversation for good."""
    run = after(ANSWERS, screened(1, "secrets"), finished("(blocked: secrets)", "blocked"), said())
    assert (run.screened, run.blocked, run.ended, run.reason, run.turn) == (False, None, None, None, 2)


def test_a_run_recalls_once() -> None:
    """What was recalled stands in the log; a memory is not told everything that is said after it."""
    log = [ANSWERS, screened(1), recalled(), decided(1, text="x"), finished("x"), said()]
    assert [after(*log[:upto]).recalled for upto in (2, 3, 6)] == [False, True, True]


@pytest.mark.parametrize("late", [screened(1, "secrets"), screened(1)], ids=["refused", "passed"])
def test_a_verdict_on_another_turns_input_is_none_on_this_ones(late: Fact) -> None:
    """A slow guard of the cancelled turn must neither block the next one nor let it pass unseen."""
    run = after(ANSWERS, Fact("run_cancelled", {}), said(), late)
    assert (run.turn, run.screened, run.blocked) == (2, False, None)


def test_a_question_is_asked_once() -> None:
    """Whoever records it again, late, must not take back the verdict."""
    run = after(started(), decided(1, "pay"), asked(2), granted(2), asked(2))
    assert run.calls[0].verdict == "granted"


def test_an_irreversible_call_that_is_yet_to_be_asked_about_need_not_wait_to_be_asked() -> None:
    """Its step only guards it and puts the question; nothing is done before the verdict, and then in its order."""
    guarded = started(replace(TERMS, guards=Guards(output=True)))
    log = [guarded, decided(1, "send", "wire")]
    assert [[call.step for call in after(*facts).free] for facts in (log, [*log, asked(3, "wire"), granted(3)])] == [
        [2, 3],
        [2],
    ]


# Structured answers


def test_the_accepted_answer_is_the_call_that_delivered_it() -> None:
    """The answer's text is not in the control state; where to read it is."""
    run = after(ANSWERS, decided(1, FINAL_ANSWER, FINAL_ANSWER), missed(2), accepted(3))
    assert (run.accepted, run.corrections, run.unsettled) == (3, 1, ())


def test_every_answer_that_missed_is_counted_however_it_came() -> None:
    """By text or by call: a model gets as many chances in one way as in the other."""
    facts = [ANSWERS, decided(1, text="prose"), sent_back(), decided(2, FINAL_ANSWER), missed(3)]
    assert [after(*facts[:upto]).corrections for upto in range(1, 6)] == [0, 0, 1, 1, 2]


def test_an_answer_refused_because_another_was_accepted_is_no_correction() -> None:
    """It was never judged."""
    run = after(ANSWERS, decided(1, FINAL_ANSWER, FINAL_ANSWER), accepted(2), result(3, FINAL_ANSWER, "late"))
    assert (run.accepted, run.corrections) == (2, 0)


@pytest.mark.parametrize("schema", [None, {"type": "object"}], ids=["free", "structured"])
def test_a_call_delivers_only_where_an_answer_of_a_form_was_asked_for(schema: dict[str, Any] | None) -> None:
    """Without a schema `final_answer` is the name of a tool that does not exist, and its failure no correction."""
    run = after(started(replace(TERMS, output_schema=schema)), decided(1, FINAL_ANSWER), missed(2))
    assert (run.delivers(run.calls[0]), run.corrections) == (schema is not None, int(schema is not None))


def test_a_text_that_was_sent_back_is_no_answer_any_more() -> None:
    """The model is asked again; the turn must not end with what was just refused."""
    run = after(ANSWERS, decided(1, text="prose"), sent_back())
    assert (run.answer, run.decision, run.calls, run.last_step) == (None, 0, (), 1)


def test_a_call_that_delivers_is_not_free_to_run_and_holds_nothing_up() -> None:
    """It is judged, by the rules, once the others have settled; an irreversible sibling need not wait for that."""
    run = after(ANSWERS, decided(1, FINAL_ANSWER, "send", "send"))
    assert [call.step for call in run.free] == [3]
    settled = after(ANSWERS, decided(1, FINAL_ANSWER, "send"), result(3, "send"))
    assert (settled.free, settled.status) == ((), "running")


# What was used


def test_usage_adds_up_over_turns_and_is_priced_by_who_answered() -> None:
    """The budget is the run's; a router may have asked another model each time."""
    usage = {"input_tokens": 10, "output_tokens": 1}
    run = after(
        started(SOFT),
        decided(1, text="x", usage=usage),
        finished("x"),
        said(),
        decided(2, text="y", usage=usage, model="other"),
        decided(3, text="z", usage=None, model="third"),
    )
    assert run.spent == Spent(22, (10 * 3.0 + 15.0) / 1e6, unpriced="other")


def test_what_was_lost_is_counted_with_whatever_event_tells_of_it() -> None:
    """A decision tells it after its failed attempts; so does the ending that the last of them led to."""
    lost = {"lost": {"tokens": 40, "usd": 0.25}}
    assert after(started(HARD), decided(1, text="x", **lost)).spent == Spent(40, 0.25)
    assert after(started(HARD), finished("(stopped)", "budget", **lost)).spent == Spent(40, 0.25)
    assert after(started(HARD), failed(), resumed(), decided(1, text="x", **lost), decided(2, **lost)).spent == Spent(
        80, 0.5
    )


def test_the_size_of_the_conversation_is_kept_for_hard_budgets_only() -> None:
    """It is summed in every fold of every step; who does not need it does not pay for it."""
    log = [decided(1, "read"), result(2), said("more")]
    assert after(started(SOFT), *log).context == 0
    assert after(started(TERMS), *log).context == 0
    assert after(started(HARD), *log).context > 0


@pytest.mark.parametrize(
    ("fact", "size"),
    [
        (said("é"), len(b'{"role": "user", "content": "\xc3\xa9"}') + 16),
        (sent_back("no"), len(b'{"role": "user", "content": "no"}') + 16),
        (
            result(2, content="a\n"),
            len(rb'{"role": "tool", "call_id": "call_2", "name": "read", "content": "a\n"}') + 16,
        ),
        (screened(1), 0),
        (recalled(), 0),
        (finished("x"), 0),
        (asked(2), 0),
    ],
    ids=lambda value: value.type if isinstance(value, Fact) else "",
)
def test_each_event_adds_its_own_message_to_the_size(fact: Fact, size: int) -> None:
    """Bytes as they are sent, escapes included, and an allowance for what a provider wraps around a message."""
    before = after(started(HARD), decided(1, "read"))
    assert fold([fact.at(before.seq + 1)], onto=before).context - before.context == size


def test_the_first_input_is_counted_once() -> None:
    """It comes with the very event that says the budget is hard."""
    assert after(started(HARD, "hello")).context == len(b'{"role": "user", "content": "hello"}') + 16
