"""`drangue eval`: make an evaluation as the options say, compare it, report, keep what shall be kept.

What can be wrong with the options, the files and the agents is found before a model is asked. A profile that the gate
blocked is not saved, since a baseline must not be replaced by what it has just refused; nor is one that was not
measured, which would let anything pass from then on.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from drangue_client.client import Client
from drangue_client.console.shell import FAILED, OK, UNUSABLE, say, say_json
from drangue_client.errors import DrangueError
from drangue_client.settings import Settings
from drangue_client.store.log import SqlLog
from drangue_worker.blueprint import Blueprint
from drangue_worker.evals.evaluation import Evaluation, decide, no_baseline, verdict
from drangue_worker.evals.keeping import recorder, save
from drangue_worker.evals.loading import (
    agent_named,
    agents_of,
    baseline_at,
    checks_at,
    prices_at,
    recordings_in,
    scenarios_at,
    stub_at,
    the_one,
)
from drangue_worker.evals.options import Options, check
from drangue_worker.evals.places import InProcess, OnFleet, close_models
from drangue_worker.evals.replays import ReplayReport, replay
from drangue_worker.evals.report import as_json, view
from drangue_worker.evals.run import Evaluated, Tell, evaluated, plan, refuse_existing
from drangue_worker.evals.scenario import Scenario
from drangue_worker.evals.score import EvalReport, RunGrade
from drangue_worker.observability.export import flush, tracer_of
from drangue_worker.observability.tracers import ConsoleTracer, Tracer

__all__ = ["Options", "run_eval"]


def run_eval(options: Options, settings: Settings) -> int:
    """Make the evaluation and print its report; returns an exit code: OK, FAILED where it is blocked, UNUSABLE where
    nothing else speaks against it than that checks raised, so that it is not known how good it is.

    Raises DrangueError for what keeps it from being made.
    """
    check(options)
    evaluation = _replayed(options, settings) if options.from_runs else _evaluated(options, settings)
    decision = decide(evaluation)
    blocked = decision is not None and not decision.passed
    try:
        if decision is not None and blocked and options.override is not None and options.record is not None:
            decision = decision.override(options.override, options.by, record=recorder(options.record, evaluation))
    finally:  # also where the override could not be recorded, and so did not take place
        say_json(as_json(evaluation, decision)) if options.as_json else say(view(evaluation, decision))
    if options.override is not None and not blocked:
        click.echo("nothing was blocked, so nothing was overridden or recorded", err=True)
    if options.save is not None:
        why_not = no_baseline(evaluation, decision)
        if why_not:
            click.echo(f"{options.save} was not written: {why_not} is no baseline", err=True)
        else:
            save(options.save, evaluation)
    return {"blocked": FAILED, "unmeasured": UNUSABLE}.get(verdict(evaluation, decision), OK)


def _evaluated(options: Options, settings: Settings) -> Evaluation:
    """Run scenarios."""
    name = options.prefix or f"eval-{secrets.token_hex(4)}"
    scenarios = scenarios_at(str(options.scenarios))
    if options.runs is not None:
        scenarios = [replace(scenario, runs=options.runs) for scenario in scenarios]
    try:
        total = len(plan(scenarios, name))
    except (TypeError, ValueError) as error:
        raise DrangueError(str(error)) from error
    baseline, known = baseline_at(options.baseline) if options.baseline else (None, None)
    with _place(options, settings, name) as (place, agent), _progress(total) as tell:
        report = asyncio.run(_made(place, scenarios, name, options.concurrency, tell))
    warnings = [*_unlike(known, [scenario.name for scenario in scenarios]), *_all_failed(report)]
    return Evaluation(name, [agent], report, baseline, _shown(options.baseline), warnings=warnings)


@contextmanager
def _place(options: Options, settings: Settings, name: str) -> Iterator[tuple[Evaluated, str]]:
    """Where the scenarios are run, and the name of the agent."""
    if not options.fleet:
        blueprint = agent_named(agents_of(settings), options.agent)
        with _traced(settings) as tracer:
            place = InProcess(blueprint, label=name, timeout_s=options.timeout, settings=settings, tracer=tracer)
            with closing(place.store):
                yield place, blueprint.name
        return
    with closing(Client(settings)) as client:
        known = [row.name for row in client.agents()]
        if not known:
            raise DrangueError("no worker has registered an agent yet. Start one: `drangue worker`.")
        agent = the_one(known, options.agent)
        yield OnFleet(client, agent, label=name, timeout_s=options.timeout), agent


async def _made(place: Evaluated, scenarios: Sequence[Scenario], name: str, concurrency: int, tell: Tell) -> EvalReport:
    planned = plan(scenarios, name)
    try:
        await refuse_existing(place, [run_id for _, run_id in planned])
    except ValueError as error:
        raise DrangueError(str(error).replace("run_id_prefix", "--prefix")) from error
    try:
        return await evaluated(place, scenarios, planned, concurrency, tell)
    finally:
        if isinstance(place, InProcess):
            await place.aclose()


def _replayed(options: Options, settings: Settings) -> Evaluation:
    """Replay recorded runs."""
    registry = agents_of(settings)
    checks = checks_at(options.checks) if options.checks else None
    stub = stub_at(options.stub) if options.stub else None
    prices = prices_at(options.prices) if options.prices else None
    baseline, _ = baseline_at(options.baseline) if options.baseline else (None, None)
    if options.agent is not None:
        agent_named(registry, options.agent)
    filters = {**options.filters, "status": options.filters.get("status") or "completed", "agent": options.agent}
    with closing(SqlLog(settings.require_database(), pool_size=1)) as log:
        recordings, left_out = recordings_in(log, registry, **filters)
    if not recordings:
        why = f" Left out: {left_out[0][0]}, since {left_out[0][1]}." if left_out else " Try other filters."
        raise DrangueError(f"no recorded run that is asked for can be replayed.{why}")
    used = [agent_named(registry, name) for name in dict.fromkeys(recording.agent for recording in recordings)]
    runs = options.runs or 1
    with _traced(settings) as tracer, _progress(len(recordings) * runs) as tell:
        replays = replay(
            registry,
            recordings,
            checks=checks,
            stub=stub,
            runs=runs,
            tolerance=options.tolerance,
            prices=prices,
            concurrency=options.concurrency,
            timeout_s=options.timeout,
            tell=tell,
            settings=settings,
            tracer=tracer,
        )
        made = asyncio.run(_replays(used, replays))
    return Evaluation(
        options.prefix or f"replay-{secrets.token_hex(4)}",
        [blueprint.name for blueprint in used],
        made.report,
        made.baseline if baseline is None else baseline,
        "the records" if baseline is None else _shown(options.baseline),
        replays=made.replays,
        left_out=left_out,
        records=made.records.runs if baseline is None else (),
    )


async def _replays(used: Sequence[Blueprint], work: Awaitable[ReplayReport]) -> ReplayReport:
    try:
        return await work
    finally:
        for blueprint in used:
            await close_models(blueprint)


@contextmanager
def _progress(total: int) -> Iterator[Tell]:
    """A bar on a terminal, nothing elsewhere; the yielded function moves it on by a run."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("0 not passed", total=total)
        lost = 0

        def tell(grade: RunGrade) -> None:
            nonlocal lost
            lost += bool(grade.failed_checks or grade.errors)
            bar.update(task, advance=1, description=f"{lost} not passed")

        yield tell


@contextmanager
def _traced(settings: Settings) -> Iterator[Tracer]:
    """The tracer that DRANGUE_TRACER names, and what it has seen sent at the end. The console's writes to standard
    error, since the report has the output."""
    try:
        tracer = ConsoleTracer(sys.stderr) if settings.tracer == "console" else tracer_of(settings)
    except ImportError as error:
        raise DrangueError(str(error)) from error
    try:
        yield tracer
    finally:
        flush(settings)


def _all_failed(report: EvalReport) -> list[str]:
    """Warnings of scenarios whose every run failed: beside many others that is too small a drop to block."""
    grades = iter(report.runs)
    first = [(result, [next(grades) for _ in range(result.runs)]) for result in report.results]
    return [
        f"every run of scenario {result.name!r} failed; the first: {made[0].errors[0]}"
        for result, made in first
        if result.failed == result.runs
    ]


def _unlike(known: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    """Warnings of scenarios that only one of baseline and candidate has: their rates are not of the same thing."""
    if known is None:
        return []
    gone = [f"scenario {name!r} of the baseline was not run." for name in known if name not in names]
    return gone + [f"scenario {name!r} is not in the baseline." for name in names if name not in known]


def _shown(path: Path | None) -> str:
    return "" if path is None else str(path)
