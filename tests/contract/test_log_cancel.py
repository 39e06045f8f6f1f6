"""What is left of a turn that was ended from outside: rows, claims, outcomes, and what a next turn finds of them."""

from __future__ import annotations

import json

import pytest

from drangue_client.errors import InFlightError
from drangue_client.store.log import SqlLog
from drangue_client.store.values import Release
from drangue_client.turns import cancel, close, say
from tests.contract.log_scenes import LEASE_S, ask, begun, claim, elapse, fan_out, open_rows, start, whole

OUTCOME = {"content": "paid", "ts": 12.5, "duration_ms": 3.25}


def categories(log: SqlLog) -> dict[int, str]:
    """How the calls that have a result failed, by step; "" where they did not."""
    found = {}
    for event in log.events("r"):
        if event.type == "tool_result" and event.step is not None:
            content = event.payload["content"]
            found[event.step] = json.loads(content)["error"]["category"] if content.startswith("{") else ""
    return found


def test_what_is_given_back_after_a_cancel_is_no_part_of_the_next_turn(log: SqlLog) -> None:
    """A thought of the old turn would be paid for beside the new one's, and its calls be nobody's."""
    start(log)
    claimed = claim(log, step=1)
    assert cancel(log, "r")[1]
    log.release([Release(claimed.ask, failed=True, category="transient")])
    say(log, "r", "well?")
    assert open_rows(log) == {}
    assert log.claim([ask(step=1)], LEASE_S) == [None]


def test_an_irreversible_call_does_not_begin_after_a_cancel(log: SqlLog) -> None:
    """Whoever cancelled was told that nothing new is begun."""
    fan_out(log)
    claimed = claim(log, step=2)
    cancel(log, "r")
    assert not log.begin(claimed.ask, begun(2))
    assert "step_started" not in [event.type for event in log.events("r")]


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_outcome_that_was_kept_is_recorded_although_the_run_was_cancelled(log: SqlLog, when: str) -> None:
    """The call is over and known; only its record was put off, by a guard out of reach."""
    fan_out(log)
    claimed = claim(log, step=2)
    log.begin(claimed.ask, begun(2))
    log.keep(claimed.ask, OUTCOME)
    if when == "before":
        log.release([Release(claimed.ask, delay_s=5.0)])
    cancel(log, "r")
    if when == "after":
        log.release([Release(claimed.ask, delay_s=5.0)])
    for held in log.left_behind():
        close(log, held)
        close(log, held)  # two sweepers at once
    assert (categories(log), open_rows(log), log.left_behind()) == ({2: ""}, {}, [])


def test_what_had_begun_and_was_given_back_is_told_as_unknown(log: SqlLog) -> None:
    """Also by whoever speaks next, where nobody sweeps."""
    fan_out(log)
    claimed = claim(log, step=2)
    log.begin(claimed.ask, begun(2))
    log.release([Release(claimed.ask)])
    cancel(log, "r")
    assert list(open_rows(log)) == [2]
    say(log, "r", "well?")
    assert (categories(log), open_rows(log)) == ({2: "unknown_outcome"}, {})


def test_a_holder_that_lives_is_waited_for(log: SqlLog) -> None:
    """It may still record what its call came to."""
    fan_out(log)
    claim(log, step=2)
    cancel(log, "r")
    with pytest.raises(InFlightError):
        say(log, "r", "well?")
    elapse(log, LEASE_S + 1)
    say(log, "r", "well?")
    assert (categories(log), whole(log).turn) == ({2: "cancelled"}, 2)


def test_a_limit_is_of_the_attempt_it_was_set_for(log: SqlLog) -> None:
    """Another child that takes the step up must not be killed for the one that died."""
    fan_out(log)
    first = claim(log, step=2, worker="w/1.10")
    assert log.arm(first.ask, 1.0)
    elapse(log, LEASE_S + 1)
    assert [held.ask.token for held in log.overdue("w/1", 3.0)] == [first.ask.token]
    second = claim(log, step=2, worker="w/1.11")
    assert (log.overdue("w/1", 3.0), log.arm(first.ask, 1.0)) == ([], False)
    assert log.arm(second.ask, 1.0)
    assert log.arm(second.ask, None)
    elapse(log, 2)
    assert log.overdue("w/1", 3.0) == []


def test_the_children_of_a_cancelled_run_are_overdue_unless_they_have_begun(log: SqlLog) -> None:
    """What cannot be undone and has begun is let finish."""
    fan_out(log, tools=3)
    held = [claim(log, step=step, worker="w/1.10") for step in (2, 3, 4)]
    log.begin(held[0].ask, begun(2))
    log.release([Release(held[2].ask)])
    cancel(log, "r")
    assert log.overdue("w/1", 3.0) == []
    elapse(log, 4)
    assert [one.ask.step for one in log.overdue("w/1", 3.0)] == [3]
    assert log.overdue("w/2", 3.0) == []
