"""An outcome that nobody knows: what a run remembers of it, what goes on meanwhile, and what a model reads of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from drangue_client.answer import FINAL_ANSWER
from drangue_client.events import Fact
from drangue_client.folding import fold
from drangue_client.messages import Message, conversation
from drangue_client.outcomes import failed_as, found_out, is_unknown
from drangue_client.result import PAUSED, UNCERTAIN, Result, unknown_outcomes
from drangue_client.run import Run
from drangue_worker.rules.commands import AskApproval, CallModel, CallTool, Command, Judge
from drangue_worker.rules.decide import decide
from tests.unit.made_logs import (
    QUEUE,
    SCHEMA,
    TERMS,
    asked,
    begun,
    cancelled,
    corrected,
    decided,
    denied,
    failed,
    finished,
    found,
    granted,
    late,
    log_of,
    result,
    resumed,
    said,
    started,
    unknown,
    wondered,
)

SENT = result(2, "send", "sent")


def after(*facts: Fact) -> Run:
    return fold(log_of(started(), *facts))


def due(*facts: Fact) -> tuple[Command, ...]:
    return decide(after(*facts), 0.0)


def shown(*facts: Fact) -> list[Message]:
    return conversation(log_of(started(), *facts))


# What a run remembers


@pytest.mark.parametrize(
    ("facts", "of_nobody", "asks", "status"),
    [
        ([begun(2)], (), [], "running"),
        ([begun(2), SENT], (), [], "running"),
        ([begun(2), unknown(2)], (2,), [], "running"),
        ([begun(2), unknown(2), found(2), corrected(2)], (), [], "running"),
        ([begun(2), unknown(2), corrected(2)], (), [], "running"),
        ([begun(2), wondered(2)], (2,), [2], "paused"),
        ([begun(2), wondered(2), found(2), SENT], (), [], "running"),
        ([begun(2), wondered(2), SENT], (), [], "running"),
        ([begun(2), wondered(2), failed()], (2,), [2], "failed"),
        ([begun(2), wondered(2), failed(), resumed()], (2,), [2], "paused"),
        ([begun(2), wondered(2), failed(), found(2), SENT, resumed()], (), [], "running"),
        ([begun(2), wondered(2), cancelled()], (2,), [], "cancelled"),
        ([begun(2), wondered(2), late()], (2,), [], "completed"),
        ([begun(2), wondered(2), cancelled(), found(2), corrected(2)], (), [], "cancelled"),
        ([begun(2), wondered(2), late(), said()], (2,), [], "running"),
        ([begun(2), wondered(2), late(), said(), found(2), corrected(2)], (), [], "running"),
        ([begun(2), unknown(2), decided(3, text="x"), finished("x"), said()], (2,), [], "running"),
    ],
)
def test_a_run_knows_which_outcomes_nobody_knows(
    facts: list[Fact], of_nobody: tuple[int, ...], asks: list[int], status: str
) -> None:
    """The list that operators work through, and what a paused run waits for, whatever became of its turn meanwhile."""
    run = after(decided(1, "send"), *facts)
    assert (run.unknown, [call.step for call in run.uncertain], run.status) == (of_nobody, asks, status)
    state = json.loads(json.dumps(run.to_snapshot()))
    assert Run.from_snapshot(state, run.seq, TERMS.to_json()) == run


def test_what_was_corrected_before_it_was_told_as_unknown_is_known() -> None:
    """The true outcome may come while `reconcile` is still being asked: no person needs to look for it any more."""
    assert after(decided(1, "send"), begun(2), corrected(2), unknown(2)).unknown == ()


def test_several_unknown_outcomes_are_remembered_apart() -> None:
    """To know one must not hide the other, in whatever order they come."""
    both = [decided(1, "send", "send", "read"), begun(2), unknown(2), begun(3), wondered(3)]
    assert after(*both).unknown == (2, 3)
    assert after(*both, found(2), corrected(2)).unknown == (3,)
    assert after(*both, found(3), result(3, "send")).unknown == (2,)
    assert sorted(after(decided(1, "send", "send"), unknown(3), unknown(2)).unknown) == [2, 3]


# What goes on meanwhile


def test_its_siblings_go_on_and_what_cannot_be_undone_waits() -> None:
    """A person may take a day to answer: the reads beside it need not, and no money follows money that is in doubt."""
    facts = [decided(1, "send", "read", "send", "read"), begun(2), wondered(2)]
    assert due(*facts) == (CallTool(3, "read", QUEUE), CallTool(5, "read", QUEUE))
    assert after(*facts).status == "running"
    assert (due(*facts, result(3)), after(*facts, result(3)).status) == ((CallTool(5, "read", QUEUE),), "running")
    idle = [*facts, result(3), result(5)]
    assert (due(*idle), after(*idle).status) == ((), "paused")
    assert due(*idle, found(2), SENT) == (CallTool(4, "send", QUEUE),)
    assert due(*idle, found(2), SENT, result(4, "send")) == (CallModel(6),)


def test_a_call_before_it_that_is_still_open_keeps_the_run_moving() -> None:
    """Its status says whether anybody works on it."""
    facts = [decided(1, "read", "send"), begun(3), wondered(3)]
    assert (due(*facts), after(*facts).status) == ((CallTool(2, "read", QUEUE),), "running")


@pytest.mark.parametrize(
    "facts",
    [
        [decided(1, "send"), begun(2), wondered(2)],
        [decided(1, "wire"), asked(2, "wire"), granted(2), begun(2, "wire"), wondered(2, "wire")],
        [decided(1, "wire"), asked(2, "wire"), granted(2), begun(2, "wire"), wondered(2, "wire"), denied(2)],
        [decided(1, "wire"), asked(2, "wire"), granted(2), begun(2, "wire"), wondered(2, "wire"), asked(2, "wire")],
        [decided(1, "send"), begun(2), wondered(2), failed(), resumed()],
        [decided(1, "send"), begun(2), wondered(2), wondered(2)],
    ],
)
def test_a_call_that_is_in_doubt_is_neither_made_nor_asked_about_again(facts: list[Fact]) -> None:
    """It may have taken effect: no late verdict, no second question and no resumption makes a call of it again."""
    run = after(*facts)
    assert (decide(run, 0.0), run.status, run.pending) == ((), "paused", ())


def test_leave_is_asked_for_beside_it() -> None:
    """Both questions may be answered by one person in one go."""
    facts = [decided(1, "send", "pay"), begun(2), wondered(2)]
    assert due(*facts) == (AskApproval(3, "pay"),)
    run = after(*facts, asked(3))
    assert (run.status, [call.step for call in run.pending], [call.step for call in run.uncertain]) == (
        "paused",
        [3],
        [2],
    )


def test_an_answer_beside_it_is_judged_when_it_is_settled() -> None:
    """The run must not end while somebody still looks for what it did."""
    log = [started(replace(TERMS, output_schema=SCHEMA)), decided(1, FINAL_ANSWER, "send"), begun(3), wondered(3)]
    assert decide(fold(log_of(*log)), 0.0) == ()
    settled = [*log, found(3), result(3, "send")]
    assert decide(fold(log_of(*settled)), 0.0) == (Judge(2),)


# What a model reads


def test_the_answer_of_a_person_is_the_result_of_the_call() -> None:
    """The model never hears that it was unknown."""
    messages = shown(decided(1, "send", "read"), begun(2), wondered(2), result(3), found(2), SENT)
    assert [message.get("content") for message in messages if message["role"] == "tool"] == ["sent", "ok"]


def test_what_a_model_has_not_read_yet_stands_in_place_and_what_it_has_is_told_as_a_note() -> None:
    """A conversation that a model has answered to is not changed behind its back."""
    told = [decided(1, "send", "read"), begun(2), unknown(2)]
    unread = shown(*told, found(2), corrected(2), result(3))
    assert [message["content"] for message in unread if message["role"] == "tool"] == ["sent", "ok"]
    read = shown(*told, result(3), decided(4, "read"), found(2), corrected(2), result(5))
    assert [message["role"] for message in read] == ["user", "assistant", "tool", "tool", "assistant", "tool", "user"]
    assert failed_as(read[2]["content"]) == "unknown_outcome"
    assert "call_2" in read[-1]["content"]
    assert "sent" in read[-1]["content"]


@pytest.mark.parametrize("end", [cancelled(3), late(3)], ids=lambda end: end.type)
def test_an_outcome_that_nobody_waits_for_any_more_is_told_all_the_same(end: Fact) -> None:
    """In the place of the call where the next turn has not begun, and else as a note: never as a second result."""
    ended = [decided(1, "send"), begun(2), wondered(2), end]
    before = shown(*ended, found(2), corrected(2), said("well?"))
    assert [message["content"] for message in before[2:]] == ["sent", "well?"]
    afterwards = shown(*ended, said("well?"), found(2), corrected(2))
    assert [message["role"] for message in afterwards] == ["user", "assistant", "tool", "user", "user"]
    assert failed_as(afterwards[2]["content"]) == "unknown_outcome"
    assert "sent" in afterwards[-1]["content"]


def test_what_a_person_found_is_told_in_words_a_model_understands() -> None:
    """A note is the result; without one it is said that it took effect. One that did not is a failure like others."""
    assert found_out("wire", True, "ledger entry 4711") == "ledger entry 4711"
    assert json.loads(found_out("wire", True, ""))["ok"] is True
    told = json.loads(found_out("wire", False, "the bank has nothing"))
    assert (told["tool"], told["error"]["category"], told["error"]["note"]) == (
        "wire",
        "not_done",
        "the bank has nothing",
    )
    assert "note" not in json.loads(found_out("wire", False, ""))["error"]


def test_what_a_tool_says_of_itself_is_no_unknown_outcome() -> None:
    """A result bears the mark where the runtime has set it, and in a log of an older program its words."""
    assert is_unknown(unknown(2).payload)
    assert is_unknown({name: value for name, value in unknown(2).payload.items() if name != "unknown"})
    assert not is_unknown(SENT.payload)
    assert after(decided(1, "send"), result(2, "send", unknown(2).payload["content"])).unknown == ()


# What a user reads


def test_unknown_outcomes_are_listed_with_what_a_person_needs_to_look_for_them() -> None:
    """Which call, with which arguments, since when, and whether anybody waits; over all turns, in step order."""
    events = log_of(
        started(),
        decided(1, "read", "send"),
        begun(3, ts=50.0),
        begun(3, attempt=2, ts=60.0),
        unknown(3),
        result(2),
        decided(4, text="x"),
        finished("x"),
        said(),
        decided(5, "send", "send"),
        begun(6, ts=70.0),
        wondered(6),
    )
    listed = unknown_outcomes(fold(events), events)
    first = {"step": 3, "call_id": "call_3", "tool": "send", "arguments": {"n": 3}, "asked": False, "since": 60.0}
    second = {"step": 6, "call_id": "call_6", "tool": "send", "arguments": {"n": 6}, "asked": True, "since": 70.0}
    assert listed == [first, second]
    assert Result.from_events("r", events).unknown_outcomes == listed
    assert [one["asked"] for one in unknown_outcomes(fold(events[:-1]), events[:-1])] == [False]
    over = [*events, cancelled().at(len(events))]
    assert [one["asked"] for one in unknown_outcomes(fold(over), over)] == [False, False]


def test_a_paused_run_says_what_it_waits_for() -> None:
    """Leave first: it is what most runs wait for, and both are listed."""
    doubt = [started(), decided(1, "send", "pay"), begun(2), wondered(2)]
    assert Result.from_events("r", log_of(*doubt, asked(3))).output == PAUSED
    assert Result.from_events("r", log_of(*doubt, asked(3), denied(3), result(3, "pay"))).output == UNCERTAIN
