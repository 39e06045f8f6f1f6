"""When a run with a deadline is looked at, and what is left of a turn that was ended by it."""

from __future__ import annotations

import pytest

from drangue_client.errors import InFlightError
from drangue_client.events import Fact
from drangue_client.store.log import SqlLog
from drangue_client.store.values import NewRun, Open
from drangue_client.terms import Terms
from drangue_client.turns import cancel, resume, say
from drangue_client.verdicts import record_verdict
from tests.contract.log_scenes import (
    LEASE_S,
    MODEL_QUEUE,
    PATIENCE_S,
    TERMS,
    ask,
    claim,
    decision,
    elapse,
    failed,
    finished,
    move,
    open_rows,
    result,
    set_step,
    tool,
    whole,
    write,
)

TIME_S = 60.0
LIMITED = Terms(**{name: getattr(TERMS, name) for name in TERMS.__slots__} | {"deadline_s": TIME_S})
ASKED = Fact(
    "approval_requested",
    {"call_id": "call_2", "tool": "read_logs", "arguments": {}, "arguments_hash": "h", "reasoning": None, "text": ""},
    2,
)


def limited(log: SqlLog, seconds: float = TIME_S) -> float:
    """A run that has started, with a thought open; when its time is over."""
    log.submit([NewRun("r", "oncall", "disk full")])
    ends_at = log.look("r").now + seconds
    fact = Fact("run_started", {"input": "disk full", "config": LIMITED.to_json(), "deadline_at": ends_at})
    write(log, "r", fact, opens=(Open(1, "model", None, MODEL_QUEUE),))
    return ends_at


def asking(log: SqlLog, seconds: float = TIME_S) -> float:
    """A run with a deadline that waits for leave; when its time is over."""
    ends_at = limited(log, seconds)
    claimed = claim(log)
    write(log, "r", decision(1, "read_logs"), opens=(tool(2),), claim=claimed.ask)
    write(log, "r", ASKED, claim=claim(log, step=2).ask)
    assert log.look("r").row.status == "paused"
    return ends_at


def late() -> Fact:
    return Fact("run_finished", {"output": "", "reason": "deadline", "last_step": 4}, 3)


def wakes_at(log: SqlLog) -> float | None:
    return log.look("r").row.wake_at


def test_a_run_is_looked_at_when_its_time_is_over_whatever_is_settled_before(log: SqlLog) -> None:
    """No step may be under way by then that would: the wake-up is in its row after every move."""
    ends_at = pytest.approx(limited(log), abs=1e-5)
    assert (wakes_at(log), log.look("r").row.deadline_at) == (ends_at, ends_at)
    claimed = claim(log)
    assert wakes_at(log) == ends_at
    write(log, "r", decision(1, "read_logs", "read_logs"), opens=(tool(2), tool(3)), claim=claimed.ask)
    assert wakes_at(log) == ends_at
    write(log, "r", result(2), claim=claim(log, step=2).ask)
    assert (wakes_at(log), log.look("r").row.deadline_at) == (ends_at, ends_at)
    write(log, "r", result(3), finished(3), claim=claim(log, step=3).ask)
    assert wakes_at(log) is None


def test_a_run_without_a_deadline_is_looked_at_by_nobody(log: SqlLog) -> None:
    """A paused one may wait for a year and costs nothing."""
    limited(log)
    write(log, "r", finished(1))
    write(log, "r", Fact("user_message", {"text": "and now?"}))
    assert (wakes_at(log), log.look("r").row.deadline_at) == (None, None)


def test_a_verdict_wakes_the_run_and_its_deadline_still_holds(log: SqlLog) -> None:
    """The coordinator that the verdict sends for moves the wake-up back to where it was."""
    ends_at = asking(log)
    assert wakes_at(log) == pytest.approx(ends_at, abs=1e-5)
    before = log.look("r").now
    record_verdict(log, "r", None, "approval_granted", "ann", "")
    woken = wakes_at(log)
    assert woken is not None
    assert before < woken < before + 10
    log.settle([move(log.look("r"), opens=(tool(2),))])
    assert wakes_at(log) == pytest.approx(ends_at, abs=1e-5)


def test_a_verdict_does_not_put_the_deadline_off(log: SqlLog) -> None:
    """Its message may be lost: the run is looked at when its time is over, and not when the message is doubted."""
    ends_at = asking(log, seconds=0.5)
    record_verdict(log, "r", None, "approval_granted", "ann", "")
    woken = wakes_at(log)
    assert woken is not None
    assert woken <= ends_at + 1e-5


@pytest.mark.parametrize("paused", [False, True], ids=["under way", "paused"])
def test_a_sweep_finds_a_run_whose_time_is_over(log: SqlLog, paused: bool) -> None:
    """Whether anybody works on it or it waits for a person: nobody else would look."""
    (asking if paused else limited)(log)
    elapse(log, TIME_S - 5)
    assert log.wake(PATIENCE_S) == []
    elapse(log, 6)
    assert [row.run_id for row in log.wake(PATIENCE_S)] == ["r"]
    assert log.wake(PATIENCE_S) == []
    elapse(log, PATIENCE_S + 1)
    assert [row.run_id for row in log.wake(PATIENCE_S)] == ["r"]  # the message may have been lost
    write(log, "r", late(), clear=True)
    elapse(log, 1000)
    assert log.wake(PATIENCE_S) == []


def test_what_nobody_holds_of_a_late_turn_is_gone_and_what_somebody_holds_is_waited_for(log: SqlLog) -> None:
    """As after a cancel: nothing new is begun, and the next turn begins when the last of it has ended."""
    limited(log)
    claimed = claim(log)
    write(log, "r", decision(1, "read_logs", "read_logs"), opens=(tool(2), tool(3)), claim=claimed.ask)
    claim(log, step=2)
    write(log, "r", late(), clear=True)
    assert (list(open_rows(log)), log.claim([ask(step=3)], LEASE_S)) == ([2], [None])
    assert not cancel(log, "r")[1]
    with pytest.raises(InFlightError):
        say(log, "r", "well?")
    elapse(log, LEASE_S + 1)
    say(log, "r", "well?")
    assert (open_rows(log), whole(log).turn, whole(log).last_step) == ({}, 2, 4)


@pytest.mark.parametrize("how", ["said", "resumed"])
def test_another_turn_or_another_try_has_its_time_from_now_on(log: SqlLog, how: str) -> None:
    """Not from when the run was submitted, which may be days ago."""
    limited(log)
    elapse(log, 3600)
    if how == "said":
        write(log, "r", late(), clear=True)
        set_step(log, "r", 1, lease_until=None)
        say(log, "r", "well?")
    else:
        write(log, "r", failed(1), claim=claim(log).ask, park=True)
        assert wakes_at(log) is None
        resume(log, "r")
    look = log.look("r")
    assert look.row.deadline_at == pytest.approx(look.now + TIME_S, abs=5)
    assert look.run.deadline_at == pytest.approx(look.row.deadline_at, abs=1e-5)
