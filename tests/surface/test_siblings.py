"""Calls of one decision: together where they can be undone, one after the other where they cannot."""

from __future__ import annotations

import pytest

from drangue_worker.testing import Reply
from tests.kit.fleet import wait_until
from tests.surface.case import Case, calls, contents
from tests.surface.effects import open_gate

DONE = Reply("done")


def recorded(case: Case) -> list[int | None]:
    """The steps of the calls that have a result, in the order they were recorded."""
    return [event.step for event in case.events() if event.type == "tool_result"]


@pytest.mark.parametrize("tool", ["hold", "hold_async"])
def test_each_result_is_recorded_as_its_call_ends_and_presented_in_call_order(case: Case, tool: str) -> None:
    """A crash loses no finished call, and the model reads a conversation that makes sense."""
    gates = [f"{case.run_id}-{number}" for number in range(3)]
    case.model(calls(*((tool, {"gate": gate}) for gate in gates)), DONE)
    case.start("toolbox")
    for number, last_first in enumerate([2, 0, 1], start=1):  # all of them run, or the last could not end first
        open_gate(gates[last_first])
        wait_until(lambda number=number: len(recorded(case)) == number)
    result = case.result()
    assert [event.step for event in result.events if event.type == "tool_result"] == [4, 2, 3]
    assert contents(result) == [f"{gate} passed" for gate in gates]
    assert case.calls[1].results() == [f"{gate} passed" for gate in gates]


def test_the_model_is_asked_again_when_every_call_has_its_result(case: Case) -> None:
    """Providers refuse a conversation with open calls, and a half-informed thought is a wasted one."""
    gate = f"{case.run_id}-last"
    case.model(calls(("hold_async", {"gate": gate}), ("look", {"what": "disk"})), DONE)
    case.start("toolbox")
    wait_until(lambda: recorded(case) == [3])
    assert len(case.calls) == 1
    open_gate(gate)
    assert (case.result().output, len(case.calls)) == ("done", 2)


@pytest.mark.parametrize("tool", ["wire", "wire_async"])
def test_irreversible_calls_run_one_at_a_time_in_call_order(case: Case, tool: str) -> None:
    """What cannot be undone is done in the order it was decided; other calls do not wait for it."""
    gate = f"{case.run_id}-first"
    first = (tool, {"amount": 1, "gate": gate})
    case.model(calls(first, (tool, {"amount": 2}), ("look", {"what": "disk"}), (tool, {"amount": 3})), DONE)
    case.start("toolbox")
    wait_until(lambda: recorded(case) == [4] and case.effects("wire"))
    assert case.effects("wire", "wired") == [["wire", case.key(2), 1]]
    open_gate(gate)
    result = case.result()
    steps = {1: 2, 2: 3, 3: 5}
    assert case.effects("wire", "wired") == [
        [what, case.key(step), amount] for amount, step in steps.items() for what in ("wire", "wired")
    ]
    irreversible = [event for event in result.events if event.step in steps.values() and event.step]
    assert [(event.type, event.step) for event in irreversible] == [
        (event_type, step) for step in steps.values() for event_type in ("step_started", "tool_result")
    ]
    assert contents(result) == ["1 sent", "2 sent", "disk is fine", "3 sent"]


def test_one_failing_call_harms_no_sibling(case: Case) -> None:
    """A failure is a result like the others."""
    case.model(calls(("look", {"what": "a"}), ("fail", {"kind": "exit"}), ("listen", {"what": "b"})), DONE)
    told = contents(case.run("toolbox"))
    assert (told[0], told[2]) == ("a is fine", "b hums")
    assert '"ok": false' in told[1]


def test_a_wide_decision_is_worked_off_whole(case: Case) -> None:
    """More calls than are open at once: none is lost, none is done twice, all are in order."""
    whats = [str(number) for number in range(34)]
    case.model(calls(*(("listen", {"what": what}) for what in whats)), DONE)
    result = case.run("toolbox")
    assert contents(result) == [f"{what} hums" for what in whats]
    assert sorted(case.effects(), key=lambda line: int(line[2])) == [
        ["listen", case.key(step), what] for step, what in enumerate(whats, start=2)
    ]
