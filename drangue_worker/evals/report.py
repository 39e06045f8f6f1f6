"""What an evaluation came to: rich tables for people, JSON for programs. Pure: the same value, the same report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from drangue_client.console.views import LONG, SHORT, cut, shown
from drangue_client.events import canonical
from drangue_worker.evals.gate import GateDecision
from drangue_worker.evals.replays import Replay
from drangue_worker.evals.score import EvalReport, RunGrade, ScenarioResult

GATED = ("safety", "correctness", "efficiency")
SHOWN = 20  # runs that are shown one by one; the JSON has them all
_VERDICTS = {"passed": "bold green", "blocked": "bold red", "overridden": "bold yellow", "measured": "bold"}
_DIFFERENCES = {
    "missing": "not in the record, and the model was told so",
    "stubbed": "not in the record; the stub answered",
    "runs_now": "was refused then, would run today",
    "asks_now": "waits for a person today, did not then",
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation that has been made: its `name`, which begins the ids of its runs, the `agents` evaluated, the
    `report`, and what it is compared with. `baseline` is a profile or None, `baseline_from` says whose.

    `replays` are those of recorded runs, side by side with their records; `left_out` are the recorded runs that were
    asked for and could not be replayed, as (run id, why not). `warnings` are given beside the gate's.
    """

    name: str
    agents: Sequence[str]
    report: EvalReport
    baseline: Mapping[str, Any] | None = None
    baseline_from: str = ""
    replays: Sequence[Replay] = ()
    left_out: Sequence[tuple[str, str]] = ()
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


def verdict(decision: GateDecision | None) -> str:
    """`passed`, `blocked` or `overridden`; `measured` where there was nothing to compare with."""
    if decision is None:
        return "measured"
    return "overridden" if decision.overridden else "passed" if decision.passed else "blocked"


def as_json(evaluation: Evaluation, decision: GateDecision | None) -> dict[str, Any]:
    """All there is to know, for another program."""
    document = {
        "verdict": verdict(decision),
        "evaluation": evaluation.name,
        "agents": list(evaluation.agents),
        "decision": decision.to_record() if decision else None,
        "profile": dict(evaluation.profile),
        "baseline": dict(evaluation.baseline) if evaluation.baseline is not None else None,
        "baseline_from": evaluation.baseline_from or None,
        "scenarios": [asdict(result) for result in evaluation.report.results],
        "runs": [{"scenario": result.name, **asdict(grade)} for result, grade in evaluation.runs],
    }
    if evaluation.replays or evaluation.left_out:
        document["replays"] = [{**asdict(one), "same_answer": one.same_answer} for one in evaluation.replays]
        document["left_out"] = [{"run_id": run_id, "why": why} for run_id, why in evaluation.left_out]
    return document


def to_keep(evaluation: Evaluation) -> dict[str, Any]:
    """What is saved for later evaluations to be compared with."""
    return {
        "evaluation": evaluation.name,
        "agents": list(evaluation.agents),
        "scenarios": [result.name for result in evaluation.report.results],
        "profile": dict(evaluation.profile),
    }


def view(evaluation: Evaluation, decision: GateDecision | None) -> RenderableType:
    """The report for a person: how it stands against the baseline, each scenario, what went wrong, the verdict."""
    parts: list[RenderableType] = [_head(evaluation), _profile_table(evaluation), Text()]
    parts.append(_replay_table(evaluation.replays) if evaluation.replays else _scenario_table(evaluation))
    bad = _differing(evaluation.replays) if evaluation.replays else _failures(evaluation)
    parts += [Text(), *bad] if bad else []
    parts += [Text(shown(f"left out: {run_id} ({why})")) for run_id, why in evaluation.left_out]
    return Group(*parts, Text(), _verdict(evaluation, decision))


def _head(evaluation: Evaluation) -> Text:
    results, runs = evaluation.report.results, len(evaluation.report.runs)
    what = _count(len(results), "recorded run" if evaluation.replays else "scenario")
    failed = f", {evaluation.failed} failed" if evaluation.failed else ""
    made = _count(runs, "replay" if evaluation.replays else "run")
    return Text.assemble(
        (evaluation.name, "bold"), f"  {shown(', '.join(evaluation.agents))}  {what}, {made}{failed}\n"
    )


def _profile_table(evaluation: Evaluation) -> Table:
    profile, baseline = evaluation.profile, evaluation.baseline or {}
    measured = [*GATED, *(name for name in (*profile["stderr"], *baseline.get("stderr", ())) if name not in GATED)]
    table = _table("", "baseline", "now", "change", "std error")
    for name in dict.fromkeys(measured):
        if name in profile or name in baseline:
            noise = profile["stderr"].get(name)
            table.add_row(name, *_change(baseline.get(name), profile.get(name), 3), _number(noise, 3))
    for name in ("steps", "tokens"):
        used = None if evaluation.failed == len(evaluation.report.runs) else profile[f"avg_{name}"]
        table.add_row(f"{name} per run", *_change(baseline.get(f"avg_{name}"), used, 1), "")
    return table


def _scenario_table(evaluation: Evaluation) -> Table:
    results = evaluation.report.results
    dimensions = dict.fromkeys([*GATED, *(name for result in results for name in result.dimensions)])
    measured = [name for name in dimensions if any(result.measures(name) for result in results)]
    table = _table("scenario", "runs", "failed", *measured, "steps", "tokens")
    for result in results:
        rates = [_passed(*result.dimensions[name]) if result.measures(name) else Text("-") for name in measured]
        failed = Text(str(result.failed), style="red" if result.failed else "")
        spent = (_number(result.avg_steps, 1), _number(result.avg_tokens, 0)) if result.runs > result.failed else "--"
        table.add_row(Text(cut(result.name, SHORT)), str(result.runs), failed, *rates, *spent)
    return table


def _replay_table(replays: Sequence[Replay]) -> Table:
    priced = any(one.recorded.usd is not None or one.replayed.usd is not None for one in replays)
    table = _table("recorded run", "agent", "calls", "answer", "steps", "tokens", *(["USD"] if priced else []))
    for one in replays:
        then, now = one.recorded, one.replayed
        same = Text("same", style="green")
        calls = same if one.same_calls else Text("other", style="red")
        answer = same if one.same_answer else Text("other", style="yellow")
        usd = [f"{_number(then.usd, 4)} -> {_number(now.usd, 4)}"] if priced else []
        spent = (f"{then.steps} -> {now.steps}", f"{then.tokens} -> {now.tokens}", *usd)
        table.add_row(Text(cut(one.run_id, SHORT)), Text(cut(one.agent, SHORT)), calls, answer, *spent)
    return table


def _failures(evaluation: Evaluation) -> list[RenderableType]:
    """What went wrong and why, once for all runs of a scenario in which the same did."""
    alike: dict[object, list[RunGrade]] = {}
    for result, grade in evaluation.runs:
        if grade.failed_checks or grade.errors:
            alike.setdefault((result.name, grade.failed_checks, grade.errors), []).append(grade)
    found: list[RenderableType] = []
    for first, *others in list(alike.values())[:SHOWN]:
        tree = Tree(Text(f"{first.run_id}, and {len(others)} like it" if others else first.run_id))
        for name in first.failed_checks if first.steps is not None else ():
            tree.add(Text(f"not: {cut(name, LONG)}", style="red"))
        for error in first.errors:
            tree.add(Text(cut(error, LONG), style="red"))
        if first.output is not None:
            tree.add(Text(f"said: {cut(first.output, LONG)}", style="dim"))
        found.append(tree)
    return [*found, *_more(len(alike))]


def _differing(replays: Sequence[Replay]) -> list[RenderableType]:
    """The replays that parted from their records, side by side."""
    bad = [one for one in replays if not (one.same_calls and one.same_answer) or one.differences or one.error]
    found: list[RenderableType] = []
    for one in bad[:SHOWN]:
        tree = Tree(Text(one.run_id))
        if not one.same_calls:
            tree.add(Text(f"called then: {cut(', '.join(one.recorded.tools) or 'nothing', LONG)}"))
            tree.add(Text(f"called now:  {cut(', '.join(one.replayed.tools) or 'nothing', LONG)}"))
        for difference in one.differences:
            call = f"{difference.tool}({canonical(difference.arguments)})"
            tree.add(Text(f"{cut(call, LONG)}: {_DIFFERENCES[difference.kind]}", style="yellow"))
        if not one.same_answer:
            tree.add(Text(f"said then: {cut(one.recorded.answer, LONG)}", style="dim"))
            tree.add(Text(f"said now:  {cut(one.replayed.answer, LONG)}", style="dim"))
        if one.error:
            tree.add(Text(cut(one.error, LONG), style="red"))
        found.append(tree)
    return [*found, *_more(len(bad))]


def _more(number: int) -> list[Text]:
    return [Text(f"and {number - SHOWN} more; --json has them all")] if number > SHOWN else []


def _verdict(evaluation: Evaluation, decision: GateDecision | None) -> RenderableType:
    word = verdict(decision)
    against = shown(f" against {evaluation.baseline_from}") if evaluation.baseline_from else ""
    line = Text.assemble((word.upper(), _VERDICTS[word]), against)
    if decision is None:
        return line.append("; there is no baseline to compare with: pass --baseline, or keep this one with --save")
    if decision.overridden:
        line.append(shown(f" by {decision.overridden_by or 'somebody'}: {decision.override_reason}"))
    blocks = [Text(shown(f"  blocks: {reason}"), style="red") for reason in decision.blocks]
    return Group(line, *blocks, *(Text(shown(f"  warns: {reason}"), style="yellow") for reason in decision.warnings))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, no_wrap=True, justify="left" if number == 0 else "right")
    return table


def _change(before: float | None, after: float | None, digits: int) -> tuple[str, str, Text]:
    known = before is not None and after is not None
    change = Text(f"{after - before:+.{digits}f}") if known else Text("")  # type: ignore[operator]
    return _number(before, digits), _number(after, digits), change


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _passed(passed: int, total: int) -> Text:
    return Text(f"{passed}/{total}", style="green" if passed == total else "red")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
