"""An evaluation that has been made, as a value, and what is decided of it. Pure: nothing is run, read or written here.

What was not measured is told from what is bad: it neither passes nor becomes a baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drangue_worker.evals.gate import GATED, Gate, GateDecision
from drangue_worker.evals.replays import Replay
from drangue_worker.evals.score import EvalReport, RunGrade, ScenarioResult


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation that has been made: its `name`, which begins the ids of its runs, the `agents` evaluated, the
    `report`, and what it is compared with. `baseline` is a profile or None, `baseline_from` says whose.

    `replays` are those of recorded runs, side by side with their records; `left_out` are the recorded runs that were
    asked for and could not be replayed, as (run id, why not). `records` are the grades of the records themselves where
    those are the baseline. `warnings` are given beside the gate's.
    """

    name: str
    agents: Sequence[str]
    report: EvalReport
    baseline: Mapping[str, Any] | None = None
    baseline_from: str = ""
    replays: Sequence[Replay] = ()
    left_out: Sequence[tuple[str, str]] = ()
    records: Sequence[RunGrade] = ()
    warnings: Sequence[str] = ()
    profile: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "profile", self.report.profile())

    @property
    def runs(self) -> list[tuple[ScenarioResult, RunGrade]]:
        """Every run's grade with its scenario, in the report's order."""
        grades = iter(self.report.runs)
        return [(result, next(grades)) for result in self.report.results for _ in range(result.runs)]

    @property
    def failed(self) -> int:
        """How many runs failed."""
        return sum(result.failed for result in self.report.results)

    @property
    def unmeasured(self) -> dict[str, str]:
        """{dimension that the gate looks at: why it is not known how good it is}."""
        made = "replays" if self.replays else "runs"
        found = {}
        for dimension in GATED:
            for what, grades in ((made, self.report.runs), ("records", self.records)):
                raised = [grade for grade in grades if dimension in grade.unmeasured]
                if raised and dimension not in found:
                    found[dimension] = (
                        f"{dimension} could not be measured: a check raised in {len(raised)} of {len(grades)} {what}; "
                        f"the first: {raised[0].unmeasured[dimension]}"
                    )
        return found


def verdict(evaluation: Evaluation, decision: GateDecision | None) -> str:
    """`passed`, `blocked` or `overridden`; `measured` where there was nothing to compare with, `unmeasured` where all
    that speaks against it is that checks raised."""
    if decision is None:
        return "measured"
    if decision.passed:
        return "overridden" if decision.overridden else "passed"
    return "unmeasured" if decision.blocks == list(evaluation.unmeasured.values()) else "blocked"


def decide(evaluation: Evaluation) -> GateDecision | None:
    """What the gate says of an evaluation; None where there is nothing to compare it with, and nothing against it.

    Blocked in any case are dimensions in which a check raised (the gate does not see those: their rates say nothing),
    scenarios with failed runs that the gate does not see, and an evaluation of which every run failed.
    """
    unmeasured = evaluation.unmeasured
    blocks, warnings = [], list(evaluation.warnings)
    if evaluation.baseline is not None:
        known = ({k: v for k, v in p.items() if k not in unmeasured} for p in (evaluation.baseline, evaluation.profile))
        decision = Gate().evaluate(*known)
        blocks, warnings = decision.blocks, [*decision.warnings, *warnings]
    blocks = [*blocks, *unmeasured.values(), *_lost(evaluation)]
    if blocks or evaluation.baseline is not None:
        return GateDecision(not blocks, blocks, warnings)
    return None


def _lost(evaluation: Evaluation) -> list[str]:
    """Failed runs that no rate tells the gate of."""
    runs = evaluation.report.runs
    if evaluation.failed == len(runs):
        return [f"every run failed, so nothing was measured; the first: {runs[0].errors[0]}"]
    first: dict[str, str] = {}
    for result, grade in evaluation.runs:
        if grade.steps is None and not any(result.measures(dimension) for dimension in GATED):
            first.setdefault(result.name, f"{result.failed} of {result.runs} runs failed; the first: {grade.errors[0]}")
    return [f"scenario {name!r} has no check that the gate looks at, and {why}" for name, why in first.items()]


def no_baseline(evaluation: Evaluation, decision: GateDecision | None) -> str:
    """Why its profile is not fit to be compared with; empty where it is. An override changes who answers for it, not
    what is known."""
    if evaluation.unmeasured or evaluation.failed == len(evaluation.report.runs):
        return "what could not be measured"
    return "what is blocked" if decision is not None and not decision.passed else ""
