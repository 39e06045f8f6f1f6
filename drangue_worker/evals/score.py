"""Scores: from the grades of single runs to the rates of a scenario and the profile of an agent.

Every scenario weighs alike in a profile, however often it was run. All rates are 0 to 1; steps are model calls. Which
profile is good enough is the gate's business.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev, pvariance
from typing import Any

Z = 1.96  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, slots=True)
class RunGrade:
    """How one run did: for every measured dimension whether all its checks passed, and which checks did not.

    `steps` and `tokens` are None for a run that failed: it was cut short, and would make its agent look thrifty.
    `errors` says what was raised, by the run itself or by a check. `output` is what the run came to, for whoever looks
    into a bad grade; two grades are equal whatever was said. `unmeasured` are the dimensions that did not pass only
    because a check raised, {dimension: what it raised}: nobody has said that they are bad.
    """

    run_id: str
    dimensions: Mapping[str, bool]
    failed_checks: tuple[str, ...] = ()
    steps: int | None = None
    tokens: int | None = None
    errors: tuple[str, ...] = ()
    output: str | None = field(default=None, compare=False, repr=False)
    unmeasured: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """How the runs of one scenario did: `dimensions` is {dimension: (runs that passed it, runs that measured it)}.

    Averages and population standard deviations (0 for less than two runs) are over the `runs` without the `failed`
    ones, whose steps and tokens say nothing; all four are 0 where no run is left.
    """

    name: str
    runs: int
    dimensions: Mapping[str, tuple[int, int]]
    avg_steps: float = 0.0
    avg_tokens: float = 0.0
    stdev_steps: float = 0.0
    stdev_tokens: float = 0.0
    failed: int = 0

    @classmethod
    def of(cls, name: str, grades: Sequence[RunGrade]) -> ScenarioResult:
        """The result of a scenario from the grades of its runs."""
        measured = dict.fromkeys(dimension for grade in grades for dimension in grade.dimensions)
        steps = [grade.steps for grade in grades if grade.steps is not None]
        tokens = [grade.tokens for grade in grades if grade.tokens is not None]
        return cls(
            name=name,
            runs=len(grades),
            dimensions={
                dimension: (
                    sum(grade.dimensions.get(dimension, False) for grade in grades),
                    sum(dimension in grade.dimensions for grade in grades),
                )
                for dimension in measured
            },
            avg_steps=_mean(steps),
            avg_tokens=_mean(tokens),
            stdev_steps=pstdev(steps) if steps else 0.0,
            stdev_tokens=pstdev(tokens) if tokens else 0.0,
            failed=sum(grade.steps is None for grade in grades),
        )

    def measures(self, dimension: str) -> bool:
        """Whether any run was checked for it."""
        return self.dimensions.get(dimension, (0, 0))[1] > 0

    def rate(self, dimension: str) -> float:
        """The share of runs that passed; 1.0 for a dimension nobody checked."""
        passed, total = self.dimensions.get(dimension, (0, 0))
        return passed / total if total else 1.0

    def rate_stderr(self, dimension: str) -> float:
        """The standard error of `rate`, by `agresti_coull`; 0.0 for a dimension nobody checked."""
        return agresti_coull(*self.dimensions.get(dimension, (0, 0)))


@dataclass(frozen=True, slots=True)
class EvalReport:
    """The results of an evaluation, one per scenario, and the grades of all its runs, both in the scenarios' order."""

    results: Sequence[ScenarioResult]
    runs: Sequence[RunGrade] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", tuple(self.results))
        object.__setattr__(self, "runs", tuple(self.runs))

    @property
    def errors(self) -> dict[str, tuple[str, ...]]:
        """{run id: what was raised in it}, for the runs in which anything was."""
        return {grade.run_id: grade.errors for grade in self.runs if grade.errors}

    @property
    def unmeasured(self) -> dict[str, int]:
        """{dimension: how many runs could not be graded in it, since a check raised}; empty is good.

        A profile counts them as not passed. Kept as a baseline, it would let worse agents through from then on.
        """
        return dict(Counter(dimension for grade in self.runs for dimension in grade.unmeasured))

    def profile(self) -> dict[str, Any]:
        """The evaluation in numbers, as plain JSON: keep it with a release, and let a gate compare it with the next.

        With k the number of scenarios, and for a dimension of those that measure it:

            <dimension>   mean of the scenarios' rates (a macro-average: pooled runs would let the scenario that is run
                          most decide)
            stderr        {dimension: sqrt(sum of the scenarios' squared standard errors) / k}. It follows from the
                          mean, Var((X1 + ... + Xk) / k) = (Var X1 + ... + Var Xk) / k**2, for scenarios that are run
                          independently. It tells how far chance alone moves the rate of these very scenarios, not how
                          well they stand for others.
            noise         the largest of stderr, 0.0 if there is none
            avg_steps     mean of the scenarios' averages; avg_tokens likewise
            stdev_steps   population standard deviation over the runs, each scenario's together weighing 1 / k:
                          sqrt(mean of the scenarios' variances + variance of their averages). That is the law of total
                          variance; where every scenario has as many runs it is the deviation over all runs.
                          stdev_tokens likewise

        Scenarios whose every run failed have no steps and no tokens and are left out of those averages. Look at
        `unmeasured` before you keep it.
        """
        dimensions = {d: None for result in self.results for d in result.dimensions if result.measures(d)}
        measuring = {d: [result for result in self.results if result.measures(d)] for d in dimensions}
        stderr = {d: _stderr_of_mean([r.rate_stderr(d) for r in results]) for d, results in measuring.items()}
        finished = [result for result in self.results if result.runs > result.failed]
        return {
            **{d: fmean(result.rate(d) for result in results) for d, results in measuring.items()},
            "avg_steps": _mean([result.avg_steps for result in finished]),
            "avg_tokens": _mean([result.avg_tokens for result in finished]),
            "stderr": stderr,
            "noise": max(stderr.values(), default=0.0),
            "stdev_steps": _total_stdev([(result.avg_steps, result.stdev_steps) for result in finished]),
            "stdev_tokens": _total_stdev([(result.avg_tokens, result.stdev_tokens) for result in finished]),
        }


def agresti_coull(passed: int, total: int) -> float:
    """The standard error of the rate passed / total; 0.0 where total is 0.

        n' = total + z**2,  p' = (passed + z**2 / 2) / n',  stderr = sqrt(p' * (1 - p') / n'),  z = 1.96

    Unlike the textbook's sqrt(p * (1 - p) / n) it is not 0 when all runs agree: one run that passed (1/1) gives 0.222,
    and it takes many to be sure. Source: A. Agresti and B. A. Coull, "Approximate is better than 'exact' for interval
    estimation of binomial proportions", The American Statistician 52 (2), 1998, pages 119 to 126.
    """
    if total < 1:
        return 0.0
    adjusted = total + Z**2
    rate = (passed + Z**2 / 2) / adjusted
    return math.sqrt(rate * (1 - rate) / adjusted)


def _stderr_of_mean(stderrs: Sequence[float]) -> float:
    return math.hypot(*stderrs) / len(stderrs)


def _total_stdev(scenarios: Sequence[tuple[float, float]]) -> float:
    """From (average, standard deviation) of each."""
    if not scenarios:
        return 0.0
    within = fmean(stdev**2 for _, stdev in scenarios)
    return math.sqrt(within + pvariance([average for average, _ in scenarios]))


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
