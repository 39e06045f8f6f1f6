"""Rates, their standard errors and averages, against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drangue_worker.evals import EvalReport, ScenarioResult
from drangue_worker.evals.score import RunGrade, agresti_coull
from tests.unit.made_logs import by_chance


def scenario(
    name: str = "s", runs: int = 1, averages: tuple[float, float, float, float] = (0, 0, 0, 0), **rates: tuple[int, int]
) -> ScenarioResult:
    """`averages` are (avg_steps, avg_tokens, stdev_steps, stdev_tokens)."""
    return ScenarioResult(name, runs, rates, *averages)


@pytest.mark.parametrize(
    ("passed", "total", "expected"),
    [
        # n' = 4.8416, p' = 2.9208 / 4.8416 = 0.60327, sqrt(0.60327 * 0.39673 / 4.8416) = sqrt(0.049433)
        (1, 1, 0.22234),
        (0, 1, 0.22234),  # p' = 0.39673: the mirror image
        # n' = 13.8416, p' = 10.9208 / 13.8416 = 0.78898, sqrt(0.78898 * 0.21102 / 13.8416) = sqrt(0.0120282)
        (9, 10, 0.10967),
        # n' = 103.8416, p' = 51.9208 / 103.8416 = 0.5, 0.5 / sqrt(103.8416) = 0.5 / 10.19027
        (50, 100, 0.04907),
        # p' = 1.9208 / 103.8416 = 0.018497, sqrt(0.018497 * 0.981503 / 103.8416) = sqrt(0.00017484)
        (0, 100, 0.01322),
        (0, 0, 0.0),
    ],
)
def test_the_standard_error_is_the_one_of_agresti_and_coull(passed: int, total: int, expected: float) -> None:
    """One run that passed proves little, a hundred prove more, none ever proves all."""
    assert agresti_coull(passed, total) == pytest.approx(expected, abs=5e-6)


@by_chance
@given(st.integers(1, 1000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_unanimity_is_never_certainty(counts: tuple[int, int]) -> None:
    """The textbook's formula would call ten of ten free of error."""
    passed, total = counts
    assert 0 < agresti_coull(passed, total) < 0.5 / math.sqrt(total)
    assert agresti_coull(passed, total) == pytest.approx(agresti_coull(total - passed, total))


def test_a_scenario_gives_its_rate_and_how_sure_it_is() -> None:
    """An unmeasured dimension has nothing against it, and nothing to average."""
    one = scenario(runs=10, correctness=(9, 10))
    assert (one.rate("correctness"), one.rate("safety")) == (0.9, 1.0)
    assert one.rate_stderr("correctness") == pytest.approx(0.10967, abs=5e-6)
    assert one.rate_stderr("safety") == 0.0
    assert (one.measures("correctness"), one.measures("safety")) == (True, False)


def test_the_scenario_that_is_run_most_does_not_decide() -> None:
    """Pooled, 1 of 101 would pass; the profile says that one scenario of two is fine."""
    profile = EvalReport([scenario("a", correctness=(1, 1)), scenario("b", 100, correctness=(0, 100))]).profile()
    assert profile["correctness"] == 0.5
    # sqrt(0.22234**2 + 0.01322**2) / 2 = sqrt(0.049433 + 0.000175) / 2 = 0.222728 / 2
    assert profile["stderr"] == {"correctness": pytest.approx(0.11136, abs=5e-6)}


def test_a_rate_is_averaged_over_the_scenarios_that_measure_it() -> None:
    """A scenario without a check for safety says nothing about it."""
    nothing = scenario("c", correctness=(0, 0), efficiency=(0, 0))
    profile = EvalReport([scenario("a", 4, safety=(3, 4)), scenario("b", 4, correctness=(1, 4)), nothing]).profile()
    assert "efficiency" not in profile
    assert (profile["safety"], profile["correctness"]) == (0.75, 0.25)
    # n' = 7.8416, p' = 4.9208 / 7.8416 = 0.62752, sqrt(0.62752 * 0.37248 / 7.8416) = sqrt(0.029807)
    assert profile["stderr"]["safety"] == pytest.approx(0.17265, abs=5e-6)


def test_the_noise_is_the_largest_standard_error() -> None:
    """One number to compare with a threshold."""
    profile = EvalReport([scenario("a", correctness=(1, 1)), scenario("b", 10, safety=(9, 10))]).profile()
    assert profile["noise"] == profile["stderr"]["correctness"] == pytest.approx(0.22234, abs=5e-6)


def test_more_scenarios_make_a_rate_surer() -> None:
    """Four scenarios of one run: 0.22234 * sqrt(4) / 4."""
    profile = EvalReport([scenario(str(i), correctness=(1, 1)) for i in range(4)]).profile()
    assert profile["noise"] == pytest.approx(0.11117, abs=5e-6)


def grade(run_id: str = "r", steps: int | None = 1, tokens: int | None = 10, **dimensions: bool) -> RunGrade:
    return RunGrade(run_id, dimensions, (), steps, tokens)


def test_a_scenario_is_the_sum_of_its_runs() -> None:
    """Steps 2, 4, 6: mean 4, deviation sqrt(8 / 3). Tokens 10, 10, 40: mean 20, deviation sqrt(600 / 3)."""
    grades = [
        grade(steps=2, correctness=True),
        grade(steps=4, correctness=False),
        grade(steps=6, tokens=40, safety=True),
    ]
    result = ScenarioResult.of("s", grades)
    assert result.dimensions == {"correctness": (1, 2), "safety": (1, 1)}
    assert (result.runs, result.failed, result.avg_steps, result.avg_tokens) == (3, 0, 4.0, 20.0)
    assert result.stdev_steps == pytest.approx(1.63299, abs=5e-6)
    assert result.stdev_tokens == pytest.approx(14.14214, abs=5e-6)


def test_a_single_run_has_no_deviation() -> None:
    """There is nothing to deviate from."""
    assert ScenarioResult.of("s", [grade()]).stdev_steps == 0.0


def test_a_failed_run_counts_in_the_rates_and_not_in_the_averages() -> None:
    """A run that broke at once used few tokens, and that is no merit."""
    result = ScenarioResult.of(
        "s", [grade(steps=8, correctness=True), grade(steps=None, tokens=None, correctness=False)]
    )
    assert (result.runs, result.failed, result.avg_steps, result.stdev_steps) == (2, 1, 8.0, 0.0)
    assert result.rate("correctness") == 0.5
    nothing = ScenarioResult.of("t", [grade(steps=None, tokens=None, correctness=False)])
    assert (nothing.avg_steps, nothing.avg_tokens, nothing.stdev_tokens) == (0.0, 0.0, 0.0)
    assert EvalReport([result, nothing]).profile()["avg_steps"] == 8.0


def test_averages_weigh_every_scenario_alike() -> None:
    """Means 2 and 6, tokens 100 and 300, however many runs stand behind them."""
    profile = EvalReport([scenario("a", 90, (2, 100, 0, 0)), scenario("b", 1, (6, 300, 0, 0))]).profile()
    assert (profile["avg_steps"], profile["avg_tokens"]) == (4.0, 200.0)


def test_the_deviation_is_over_the_runs() -> None:
    """Runs of 1, 3 and of 4, 8 steps: mean 4, squares 9 + 1 + 0 + 16 = 26, sqrt(26 / 4)."""
    results = [
        ScenarioResult.of(name, [grade(steps=n) for n in steps]) for name, steps in (("a", (1, 3)), ("b", (4, 8)))
    ]
    profile = EvalReport(results).profile()
    assert profile["avg_steps"] == 4.0
    assert profile["stdev_steps"] == pytest.approx(2.54951, abs=5e-6)


def test_a_scenario_alone_gives_its_own_deviation() -> None:
    """The spread between scenarios is none then."""
    profile = EvalReport([scenario("a", 5, (2, 100, 0.5, 7))]).profile()
    assert (profile["stdev_steps"], profile["stdev_tokens"]) == (0.5, 7.0)


def test_a_profile_is_plain_json_also_where_nothing_was_measured() -> None:
    """It is kept in a file beside a release. JSON has no NaN."""
    empty = EvalReport([]).profile()
    assert empty == {
        "avg_steps": 0.0,
        "avg_tokens": 0.0,
        "stderr": {},
        "noise": 0.0,
        "stdev_steps": 0.0,
        "stdev_tokens": 0.0,
    }
    full = EvalReport([scenario("a", 3, (1, 2, 3, 4), safety=(1, 3), tone=(2, 3))]).profile()
    assert json.loads(json.dumps(full, allow_nan=False)) == full
    assert full["tone"] == pytest.approx(2 / 3)


def test_a_report_lists_what_was_raised_by_run() -> None:
    """Whoever reads a bad rate looks there first."""
    broken = RunGrade("eval-a-1", {"safety": False}, errors=("ValueError: x",))
    assert EvalReport([], [grade("eval-a-0"), broken]).errors == {"eval-a-1": ("ValueError: x",)}
