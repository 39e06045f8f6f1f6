"""Limits of one run, from a submission to what its workers did."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from drangue_client import Limits
from drangue_client.errors import RunExistsError
from drangue_worker import Autonomy, Budget
from tests.acceptance.shell import drangue, environment, run
from tests.kit.fleet import ROOT, Fleet, calls_then_answer, wait_until

Make = Callable[..., Fleet]


@pytest.fixture
def fleet(make_fleet: Make) -> Fleet:
    made = make_fleet(calls_then_answer(("wire", {"amount": 5}), ("note", {"text": "tea"})))
    made.start("model-1", "tool-1")
    wait_until(made.client.agents, 20)
    return made


def test_a_run_does_less_than_its_agent_may(fleet: Fleet) -> None:
    """The agent wires by itself; this run may not call one tool, and asks a person before the other."""
    limits = Limits(autonomy=Autonomy(modes={"wire": "assisted"}), deny=["note"])
    free, bound = fleet.client.submit("tester", "go"), fleet.client.submit("tester", "go", run_id="b", limits=limits)
    assert fleet.finish([free.run_id])[0].status == "completed"
    assert fleet.finish([bound.run_id])[0].status == "paused"
    assert [key for key in fleet.effects() if key.startswith("b:")] == []
    fleet.client.approve("b", by="ann")
    wait_until(lambda: fleet.client.get("b").status == "completed", 30)
    assert [key for key in fleet.effects() if key.startswith("b:")] == ["b:2"]
    (denied,) = [e.payload["content"] for e in fleet.client.events("b") if e.type == "tool_result" and e.step == 3]
    assert "deny-list" in denied
    assert fleet.client.submit("tester", "go", run_id="b", limits=limits).created is False
    with pytest.raises(RunExistsError, match="limits"):
        fleet.client.submit("tester", "go", run_id="b")


def test_a_limit_for_a_tool_that_is_not_there_stops_the_run(make_fleet: Make) -> None:
    """Submitted before any worker could say what there is: it must not run as if nothing had been said."""
    fleet = make_fleet(calls_then_answer(("wire", {"amount": 5})))
    limits = Limits(deny=["wrie"])
    early = fleet.client.submit("tester", "go", run_id="e", limits=limits)
    fleet.start("model-1", "tool-1")
    (result,) = fleet.finish([early.run_id])
    assert (result.status, result.reason) == ("failed", "limits")
    assert "'wrie'" in str(result.error)
    assert fleet.effects() == []
    assert fleet.client.submit("tester", "go", run_id="e", limits=limits).created is False  # repeating stays safe
    wait_until(fleet.client.agents, 20)  # a worker says what it has beside its work, not before it
    with pytest.raises(ValueError, match="'wrie'"):
        fleet.client.submit("tester", "go", limits=limits)
    assert fleet.client.submit("tester", "again", run_id="f", limits=Limits()).created
    assert not fleet.client.submit("tester", "again", run_id="f").created  # Limits() limits nothing


def test_limits_can_be_given_at_the_terminal(fleet: Fleet) -> None:
    """The one who is on call tries an agent with its hands bound."""
    env = environment(**fleet.supervisor.env)
    command = ["submit", "tester", "go", "--run-id", "c", "--max-steps", "1", "--deny", "wire", "--deny", "note"]
    done = run(drangue(*command, "--wait", "30"), env, ROOT)
    assert done.code == 0
    assert "max_steps=1" in done.out
    assert fleet.effects() == []
    assert "'nte'" in run(drangue("submit", "tester", "go", "--deny", "nte"), env, ROOT).one_line()


def test_a_budget_of_one_run_ends_it_in_time(fleet: Fleet) -> None:
    """The agent has none; this customer's run may use so many tokens and no more."""
    one = fleet.client.submit("tester", "go", limits=Limits(budget=Budget(max_tokens=1)))
    (result,) = fleet.finish([one.run_id])
    assert (result.reason, result.steps) == ("budget", 1)
