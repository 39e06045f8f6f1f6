"""Limits: what one run may do less than its agent. Nothing they say may loosen anything."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drangue_client.autonomy import MODES, Approval, Autonomy
from drangue_client.budget import Budget
from drangue_client.errors import FormatError
from drangue_client.limits import Limits
from drangue_client.run import Run
from drangue_client.terms import Guards, Terms, ToolTerms
from drangue_worker.rules.budget import stop
from tests.unit.made_logs import by_chance

TOOLS = ("read", "pay")
MODEL_PRICES = {"fake": {"input": 1.0, "output": 2.0}}

modes = st.sampled_from(MODES)
approvals = st.builds(
    Approval,
    people=st.integers(1, 3),
    expires_s=st.sampled_from([None, 5.0, 50.0]),
    on_expiry=st.sampled_from(["reject", "fallback"]),
)
autonomies = st.none() | st.builds(
    Autonomy,
    default=modes,
    modes=st.dictionaries(st.sampled_from(TOOLS), modes),
    approval=approvals,
    approvals=st.dictionaries(st.sampled_from(TOOLS), approvals),
)
terms = st.builds(
    Terms,
    models=st.just(("fake",)),
    max_steps=st.integers(1, 30),
    autonomy=autonomies,
    tools=st.just({name: ToolTerms("q") for name in TOOLS}),
    budget=st.none() | st.builds(Budget, max_tokens=st.integers(0, 1000)),
    guards=st.none() | st.builds(Guards, deny=st.sampled_from([frozenset[str](), frozenset({"read"})])),
)
limits = st.builds(
    Limits,
    max_steps=st.none() | st.integers(1, 30),
    budget=st.none() | st.builds(Budget, max_tokens=st.integers(0, 1000)),
    autonomy=autonomies,
    deny=st.lists(st.sampled_from(TOOLS)),
)


def tokens(budget: Budget | None) -> float:
    return float("inf") if budget is None or budget.max_tokens is None else budget.max_tokens


@by_chance
@given(terms, limits)
def test_what_holds_is_the_stricter_of_both(own: Terms, given_limits: Limits) -> None:
    """Whoever submits a run can take leave from it and give it none."""
    held = given_limits.on(own)
    assert held.max_steps == min(own.max_steps, given_limits.max_steps or own.max_steps)
    assert tokens(held.budget) == min(tokens(own.budget), tokens(given_limits.budget))
    other = given_limits.autonomy or Autonomy()
    for name in TOOLS:
        assert MODES.index(held.mode_for(name)) == min(map(MODES.index, (own.mode_for(name), other.mode_for(name))))
        assert held.approval_of(name).people == max(own.approval_of(name).people, other.approval_of(name).people)
        assert bool(held.refusal(name)) == bool(own.refusal(name) or name in given_limits.deny)


@by_chance
@given(terms, limits)
def test_limits_survive_being_recorded_and_hold_once(own: Terms, given_limits: Limits) -> None:
    """They travel in the run's row; a coordinator that begins the run twice merges the same."""
    read = Limits.from_json(json.loads(json.dumps(given_limits.to_json())))
    assert read == given_limits
    assert read.on(read.on(own)) == read.on(own)
    assert Limits().on(own) == own


def test_the_prices_of_the_agent_come_first() -> None:
    """A price of zero in a submission would be a budget without an end."""
    limits = Limits(budget=Budget(max_usd=1.0, prices={"fake": {"input": 0.0}, "other": {"input": 0.0}}))
    own = Terms(budget=Budget(max_usd=5.0, prices=MODEL_PRICES))
    assert limits.on(own).budget == Budget(max_usd=1.0, prices=MODEL_PRICES)  # no word on `other`: it stops the run
    loose = Terms(budget=Budget(max_tokens=5, prices=MODEL_PRICES))  # which limits no dollars
    assert limits.on(loose).budget == Budget(5, 1.0, {**MODEL_PRICES, "other": {"input": 0.0}})


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (Terms(models=("fake",)), "output ceiling"),
        (Terms(models=("fake", "dear"), output_ceiling=10), "'dear'"),
        (Terms(models=("fake",), output_ceiling=10, budget=Budget(max_usd=9.0, prices=MODEL_PRICES)), None),
    ],
)
def test_a_hard_budget_that_cannot_be_kept_stops_the_run(own: Terms, says: str | None) -> None:
    """An agent's own is checked when the agent is made; this one meets the agent only when the run begins."""
    held = Limits(budget=Budget(max_usd=1.0, prices=MODEL_PRICES, hard=True)).on(own)
    told = stop(Run(terms=held))
    assert told is None if says is None else says in str(told)


def test_a_tool_that_the_agent_has_not_is_named() -> None:
    """A misspelt name would be a limit that is not there."""
    Limits(deny=["pay"], autonomy=Autonomy(modes={"read": "shadow"})).check(TOOLS)
    for wrong in (
        Limits(deny=["pya"]),
        Limits(autonomy=Autonomy(modes={"pya": "shadow"})),
        Limits(autonomy=Autonomy(approvals={"pya": Approval(2)})),
    ):
        with pytest.raises(ValueError, match="'pya'"):
            wrong.check(TOOLS)


@pytest.mark.parametrize(
    "newer",
    [
        {"per_hour": 3},
        {"budget": {"max_tokens": 5, "max_usd": None, "prices": None, "hard": False, "per_day": True}},
        {"autonomy": {"default": "assisted", "modes": {}, "approval": {"people": 2, "quorum": 3}}},
        {"autonomy": {"default": "assisted", "modes": {}, "hours": "9-17"}},
    ],
)
def test_limits_of_a_newer_program_are_not_read_as_looser_ones(newer: dict[str, Any]) -> None:
    """A worker of before would leave out what it does not know; it leaves the run to one that does."""
    with pytest.raises(FormatError):
        Limits.from_json(Limits(max_steps=3).to_json() | newer)


def test_who_is_asked_stays_as_the_agent_says() -> None:
    """A submission may ask for more people, not put the question to other ones."""
    own = Terms(autonomy=Autonomy("assisted", approval=Approval(group="ops")))
    held = Limits(autonomy=Autonomy(approval=Approval(people=2, group="friends"))).on(own)
    assert held.approval_of("pay") == replace(Approval(group="ops"), people=2)
    asked = Approval(people=2, group="ops", escalate_s=5.0, escalate_to="leads")
    held = Limits(autonomy=Autonomy("assisted", approval=asked)).on(Terms(tools={"pay": ToolTerms("q")}))
    assert held.approval_of("pay") == asked  # where the agent names nobody
