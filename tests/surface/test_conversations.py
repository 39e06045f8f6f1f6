"""Turns: what is said to a run after its answer, told apart by id, counted on their own."""

from __future__ import annotations

import pytest

from drangue_client.errors import InFlightError, TurnExistsError
from drangue_worker.testing import Reply
from tests.kit.fleet import wait_until
from tests.surface.case import Case, calls, contents, of, shape
from tests.surface.effects import open_gate

both_wires = pytest.mark.parametrize("wire", ["openai", "anthropic"])
DONE = Reply("done")
LOOK = calls(("look", {"what": "disk"}))


@both_wires
def test_a_follow_up_sees_the_whole_conversation(case: Case) -> None:
    """A turn goes on where the last one ended; steps are numbered through."""
    case.model(LOOK, Reply("It is fine."), Reply("As I said."))
    case.run("toolbox", "How is the disk?")
    result = case.say("Are you sure?")
    assert (result.status, result.output) == ("completed", "As I said.")
    assert shape(result)[4:] == [
        ("run_finished", 3),
        ("user_message", None),
        ("model_decision", 4),
        ("run_finished", 4),
    ]
    assert [(message["role"], message["content"]) for message in case.calls[-1].messages] == [
        ("user", case.text("How is the disk?")),
        ("assistant", ""),
        ("tool", "disk is fine"),
        ("assistant", "It is fine."),
        ("user", case.text("Are you sure?")),
    ]


def test_a_turn_id_twice_is_one_turn(case: Case) -> None:
    """An application that is not sure whether its message arrived may send it again."""
    case.model(Reply("one"), Reply("two"), Reply("three"))
    case.run("toolbox", "first")
    second = case.say("go on", turn_id="t2")
    assert (second.output, of(second, "user_message")) == ("two", [{"text": case.text("go on"), "turn_id": "t2"}])
    again = case.say("go on", turn_id="t2")
    assert (again.events, len(case.calls)) == (second.events, 2)
    third = case.say("go on", turn_id="t3")
    assert (third.output, len(case.calls)) == ("three", 3)
    assert case.say("go on", turn_id="t2").events == third.events


def test_the_first_turn_may_have_an_id_too(case: Case) -> None:
    """Who numbers turns numbers all of them."""
    first = case.run("toolbox", "hello", turn_id="t1")
    assert of(first, "run_started")[0]["turn_id"] == "t1"
    assert case.say("hello", turn_id="t1").events == first.events
    assert len(of(case.say("hello", turn_id="t2"), "user_message")) == 1


def test_a_turn_id_with_another_text_is_refused(case: Case) -> None:
    """Two different messages under one id are a mistake of the caller's, and one of them would be lost."""
    case.run("toolbox", "first", turn_id="t1")
    before = case.say("second", turn_id="t2").events
    for turn_id in ("t1", "t2"):
        with pytest.raises(TurnExistsError, match=turn_id):
            case.say("something else", turn_id=turn_id)
    assert case.events() == before


def test_a_run_is_begun_once_however_often_it_is_asked_for(case: Case) -> None:
    """Replaying a finished run makes no model call, runs no tool and writes nothing."""
    case.model(LOOK, DONE)
    first = case.run("toolbox")
    again = case.run("toolbox")
    assert (again.output, again.events, len(case.calls), len(case.effects())) == ("done", first.events, 2, 1)


def test_a_message_while_a_turn_goes_on_is_refused(case: Case) -> None:
    """What is in flight must not be mixed with another question."""
    gate = f"{case.run_id}-busy"
    case.model(calls(("hold_async", {"gate": gate})), DONE)
    case.start("toolbox")
    wait_until(lambda: len(case.events()) == 2)
    try:
        with pytest.raises(InFlightError, match="in flight"):
            case.driver.say(case.run_id, case.text("and another thing"))
    finally:
        open_gate(gate)
    result = wait_until(lambda: case.events()[-1].type == "run_finished" and case.result())
    assert (result.output, of(result, "user_message")) == ("done", [])


def test_a_message_while_a_call_waits_for_its_person_is_refused(case: Case) -> None:
    """A pause is not the end of a turn."""
    case.model(calls(("wire", {"amount": 5})), DONE)
    paused = case.run("assisted")
    with pytest.raises(InFlightError, match="in flight"):
        case.say("never mind")
    assert case.events() == paused.events


def test_a_message_to_a_run_that_failed_is_refused(case: Case) -> None:
    """What failed is resumed when the cause is mended; a new message would cover it up."""
    case.model(Reply(status=400, error="no such thing"))
    failed = case.run("toolbox")
    assert failed.status == "failed"
    with pytest.raises(InFlightError, match="in flight"):
        case.say("hello?")
    assert case.events() == failed.events


def test_status_is_that_of_the_latest_turn(case: Case) -> None:
    """A second turn that waits must not read as completed because the first one was."""
    case.model(Reply("hello"), calls(("wire", {"amount": 5})), DONE)
    assert case.run("assisted").status == "completed"
    paused = case.say("pay them")
    assert (paused.status, paused.reason, len(paused.pending_approvals)) == ("paused", None, 1)
    assert paused.output == "(paused: awaiting approval)"
    result = case.approve()
    assert (result.status, result.reason, contents(result)) == ("completed", "answered", ["5 sent"])


def test_the_step_ceiling_is_counted_per_turn(case: Case) -> None:
    """A turn that ran into the ceiling must not silence the conversation for good."""
    case.model(LOOK, LOOK, DONE, LOOK, LOOK)
    first = case.run("short")
    assert (first.reason, first.output, first.steps) == ("max_steps", "(stopped: reached max_steps=2)", 2)
    second = case.say("go on")
    assert (second.reason, second.output, second.steps) == ("answered", "done", 3)
    third = case.say("once more")
    assert (third.reason, third.steps) == ("max_steps", 5)


def test_a_ceiling_stops_thoughts_and_no_calls(case: Case) -> None:
    """What was asked for before the ceiling is still done."""
    case.model(LOOK)
    result = case.run("short")
    assert len(case.effects("look")) == 2
    assert [event.type for event in result.events][-2:] == ["tool_result", "run_finished"]


def test_an_empty_input_is_an_input(case: Case) -> None:
    """A scheduled run may have nothing to say."""
    case.driver.start("toolbox", "", case.run_id)
    result = case.result()
    assert (result.status, of(result, "run_started")[0]["input"]) == ("completed", "")
