"""What an evaluation came to: rich tables for people, JSON for programs. Pure: the same value, the same report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from drangue_client.console.views import LONG, SHORT, cut, shown
from drangue_client.events import canonical
from drangue_worker.evals.evaluation import Evaluation, verdict
from drangue_worker.evals.gate import GATED, GateDecision
from drangue_worker.evals.replays import Replay
from drangue_worker.evals.score import RunGrade

SHOWN = 20  # runs that are shown one by one; the JSON has them all
_VERDICTS = {
    "passed": "bold green",
    "blocked": "bold red",
    "overridden": "bold yellow",
    "measured": "bold",
    "unmeasured": "bold red",
}
_DIFFERENCES = {
    "missing": "not in the record, and the model was told so",
    "stubbed": "not in the record; the stub answered",
    "runs_now": "was refused then, would run today",
    "asks_now": "waits for a person today, did not then",
}
_SAME = 3  # the rank of a replay that is its record again


def as_json(evaluation: Evaluation, decision: GateDecision | None) -> dict[str, Any]:
    """All there is to know, for another program."""
    document = {
        "verdict": verdict(evaluation, decision),
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
        document["replays"] = [
            {
                **asdict(one),
                "same_answer": one.same_answer,
                "failed_checks": list(grade.failed_checks),
                "errors": list(grade.errors),
            }
            for one, grade in zip(evaluation.replays, evaluation.report.runs, strict=True)
        ]
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
    bad = _differing(evaluation) if evaluation.replays else _failures(evaluation)
    parts += [Text(), *bad] if bad else []
    parts += [Text(shown(f"left out: {run_id} ({why})")) for run_id, why in evaluation.left_out[:SHOWN]]
    parts += _more(len(evaluation.left_out), "left out")
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
        _add_failings(tree, first)
        if first.output is not None:
            tree.add(Text(f"said: {cut(first.output, LONG)}", style="dim"))
        found.append(tree)
    return [*found, *_more(len(alike))]


def _add_failings(tree: Tree, grade: RunGrade) -> None:
    """The checks that said no, unless the run itself failed and so all of them; and what was raised."""
    for name in grade.failed_checks if grade.steps is not None else ():
        tree.add(Text(f"not: {cut(name, LONG)}", style="red"))
    for error in grade.errors:
        tree.add(Text(cut(error, LONG), style="red"))


def _differing(evaluation: Evaluation) -> list[RenderableType]:
    """The replays that failed or parted from their records, side by side: what failed first, what only says something
    else last."""
    graded = zip(evaluation.replays, evaluation.report.runs, strict=True)
    ranked = sorted(((_rank(*one), n, one) for n, one in enumerate(graded)), key=lambda entry: entry[:2])
    bad = [one for rank, _, one in ranked if rank < _SAME]
    found: list[RenderableType] = []
    for one, grade in bad[:SHOWN]:
        tree = Tree(Text(one.run_id))
        _add_failings(tree, grade)
        if not one.same_calls:
            tree.add(Text(f"called then: {cut(', '.join(one.recorded.tools) or 'nothing', LONG)}"))
            tree.add(Text(f"called now:  {cut(', '.join(one.replayed.tools) or 'nothing', LONG)}"))
        for difference in one.differences:
            call = f"{difference.tool}({canonical(difference.arguments)})"
            tree.add(Text(f"{cut(call, LONG)}: {_DIFFERENCES[difference.kind]}", style="yellow"))
        if not one.same_answer:
            tree.add(Text(f"said then: {cut(one.recorded.answer, LONG)}", style="dim"))
            tree.add(Text(f"said now:  {cut(one.replayed.answer, LONG)}", style="dim"))
        found.append(tree)
    return [*found, *_more(len(bad))]


def _rank(replay: Replay, grade: RunGrade) -> int:
    """How soon somebody who looks for the reason of a block wants to see it."""
    if grade.failed_checks or grade.errors:
        return 0
    if not replay.same_calls or replay.differences:
        return 1
    return _SAME if replay.same_answer else 2


def _more(number: int, what: str = "") -> list[Text]:
    left = number - SHOWN
    return [Text(f"and {left} more{f' {what}' if what else ''}; --json has them all")] if left > 0 else []


def _verdict(evaluation: Evaluation, decision: GateDecision | None) -> RenderableType:
    word = verdict(evaluation, decision)
    against = shown(f" against {evaluation.baseline_from}") if evaluation.baseline_from else ""
    line = Text.assemble((word.upper(), _VERDICTS[word]), against)
    if decision is None:
        line.append("; there is no baseline to compare with: pass --baseline, or keep this one with --save")
    elif decision.overridden:
        line.append(shown(f" by {decision.overridden_by or 'somebody'}: {decision.override_reason}"))
    blocks = [Text(shown(f"  blocks: {reason}"), style="red") for reason in decision.blocks] if decision else []
    warnings = decision.warnings if decision else evaluation.warnings
    return Group(line, *blocks, *(Text(shown(f"  warns: {reason}"), style="yellow") for reason in warnings))


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
