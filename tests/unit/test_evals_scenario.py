"""What can be written down as a scenario, and what is read off a result."""

from __future__ import annotations

from typing import Any

import pytest

from drangue_client.events import Fact
from drangue_client.result import Result
from drangue_worker.evals import Check, Scenario, output_contains, scenario_from_result, tools_called
from drangue_worker.evals.scenario import PROFILE_KEYS, tokens_used
from drangue_worker.evals.score import EvalReport
from tests.unit.made_logs import decided, finished, log_of, result, started


def read(*facts: Fact) -> Result:
    return Result.from_events("r1", log_of(*facts))


def test_a_scenario_runs_once_and_checks_nothing_unless_told() -> None:
    """Steps and tokens are worth measuring by themselves."""
    scenario = Scenario("refund", "Refund order 7")
    assert (scenario.checks, scenario.runs) == ((), 1)


def test_a_scenario_keeps_its_own_checks() -> None:
    """A list that is changed afterwards must not change what is graded."""
    checks = [output_contains("a")]
    scenario = Scenario("refund", "Refund order 7", checks)
    checks.clear()
    assert [check.name for check in scenario.checks] == ["output contains 'a'"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"name": ""}, ValueError, "name is ''"),
        ({"name": " \n"}, ValueError, "name is"),
        ({"name": 7}, TypeError, "name is 7"),
        ({"input": None}, TypeError, "input is NoneType"),
        ({"input": {"order": 7}}, TypeError, "input is dict"),
        ({"checks": output_contains("a")}, TypeError, "checks is"),
        ({"checks": [lambda result: True]}, TypeError, "checks holds"),
        ({"checks": 3}, TypeError, "checks is 3"),
        ({"runs": 0}, ValueError, "runs is 0; it must be at least 1"),
        ({"runs": True}, TypeError, "runs is True"),
        ({"runs": 2.0}, TypeError, r"runs is 2\.0"),
    ],
)
def test_a_scenario_that_cannot_be_run_is_refused_by_name(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Before the first of a hundred runs is paid for."""
    with pytest.raises(error, match=message):
        Scenario(**{"name": "refund", "input": "go", **given})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"dimension": ""}, ValueError, "dimension is ''"),
        ({"name": None}, TypeError, "name is None"),
        ({"fn": "output"}, TypeError, "fn is 'output'"),
        *[({"dimension": key}, ValueError, f"dimension is '{key}'") for key in PROFILE_KEYS],
    ],
)
def test_a_check_that_cannot_be_made_is_refused_by_name(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A dimension called `noise` would overwrite the noise."""
    with pytest.raises(error, match=message):
        Check(**{"dimension": "correctness", "name": "x", "fn": bool, **given})


def test_every_key_of_a_profile_is_closed_to_dimensions() -> None:
    """A new key must be added to the list."""
    assert set(EvalReport([]).profile()) == set(PROFILE_KEYS)


def test_a_run_of_production_becomes_a_scenario() -> None:
    """The incident of today is the check of tomorrow. A run with several turns begins with its first input."""
    run = read(
        started(text="Refund order 7"),
        decided(1, text="ok"),
        finished("ok"),
        Fact("user_message", {"text": "And order 8"}),
    )
    assert scenario_from_result(run, "order-7") == Scenario("order-7", "Refund order 7", (), 1)
    checks = [output_contains("refunded")]
    assert scenario_from_result(run, "order-7", checks).checks == tuple(checks)


def test_a_run_that_has_not_begun_makes_no_scenario() -> None:
    """Its input is not in its log."""
    with pytest.raises(ValueError, match="result is of run 'r1', which has not started"):
        scenario_from_result(read(), "x")


def test_the_tools_called_are_those_proposed() -> None:
    """In order, with repeats, executed or not."""
    run = read(started(), decided(1, "read", "send"), result(2), result(3), decided(4, "read", "ghost"))
    assert tools_called(run) == ["read", "send", "read", "ghost"]


def test_cached_tokens_are_used_tokens() -> None:
    """They are billed; counts a provider adds for information are not."""
    usage = {"input_tokens": 10, "output_tokens": 2, "cache_read_input_tokens": 400, "total_tokens": 412}
    writing = {"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 30}
    run = read(started(), decided(1, "read", usage=usage), result(2), decided(3, usage=writing), finished())
    assert tokens_used(run) == (10 + 2 + 400) + (1 + 1 + 30)
