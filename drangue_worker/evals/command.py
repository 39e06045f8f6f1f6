"""`drangue eval`: make an evaluation as the options say, compare it, report, keep what shall be kept.

What can be wrong with the options, the files and the agents is found before a model is asked. A profile that the gate
blocked is not saved: a baseline must not be replaced by what it has just refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from drangue_client.client import Client
from drangue_client.console.shell import FAILED, OK, say, say_json
from drangue_client.errors import DrangueError
from drangue_client.settings import Settings
from drangue_client.store.log import SqlLog
from drangue_worker.blueprint import Blueprint
from drangue_worker.evals.gate import Gate, GateDecision
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
from drangue_worker.evals.places import InProcess, OnFleet, close_models
from drangue_worker.evals.replays import ReplayReport, replay
from drangue_worker.evals.report import Evaluation, as_json, to_keep, view
from drangue_worker.evals.run import Evaluated, Tell, evaluate, plan, refuse_existing
from drangue_worker.evals.scenario import Scenario
from drangue_worker.evals.score import EvalReport, RunGrade


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for; a name is that of its option, a time in seconds. `filters` are keywords of `Log.runs`."""

    scenarios: str | None = None
    agent: str | None = None
    from_runs: bool = False
    filters: Mapping[str, Any]
    stub: str | None = None
    checks: str | None = None
    prices: Path | None = None
    tolerance: float
    fleet: bool = False
    runs: int | None = None
    concurrency: int
    timeout: float | None = None
    prefix: str | None = None
    baseline: Path | None = None
    save: Path | None = None
    override: str | None = None
    by: str = ""
    record: Path | None = None
    as_json: bool = False


def run_eval(options: Options, settings: Settings) -> int:
    """Make the evaluation and print its report; returns an exit code: OK, or FAILED where it is blocked.

    Raises DrangueError for what keeps it from being made.
    """
    check(options)
    evaluation = _replayed(options, settings) if options.from_runs else _evaluated(options, settings)
    decision = decide(evaluation)
    blocked = decision is not None and not decision.passed
    try:
        if decision is not None and blocked and options.override is not None and options.record is not None:
            decision = decision.override(options.override, options.by, record=_recorder(options.record, evaluation))
    finally:  # also where the override could not be recorded, and so did not take place
        say_json(as_json(evaluation, decision)) if options.as_json else say(view(evaluation, decision))
    if options.override is not None and not blocked:
        click.echo("nothing was blocked, so nothing was overridden or recorded", err=True)
    passed = decision is None or decision.passed
    if options.save is not None and passed:
        _save(options.save, evaluation)
    elif options.save is not None:
        click.echo(f"{options.save} was not written: what is blocked is no baseline", err=True)
    return OK if passed else FAILED


def check(options: Options) -> None:
    """Raise DrangueError for options that contradict each other, or name a place that cannot be written."""
    if (options.scenarios is None) != options.from_runs:
        raise DrangueError(
            "name what to evaluate: pkg.module:scenarios, or --from-runs for recorded runs; one of them."
        )
    for name, value in (("--stub", options.stub), ("--checks", options.checks), ("--prices", options.prices)):
        if value is not None and not options.from_runs:
            raise DrangueError(f"{name} is for replays of recorded runs. Leave it out, or add --from-runs.")
    if options.from_runs and options.fleet:
        raise DrangueError("--fleet does not go with --from-runs: replays are answered from the log, in this process.")
    if (options.override is None) != (options.record is None):
        raise DrangueError("--override REASON and --record FILE go together: an override that nobody can find is none.")
    if options.override is not None and not options.override.strip():
        raise DrangueError("an override needs a reason: say why this may be deployed all the same.")
    for name, path in (("--save", options.save), ("--record", options.record)):
        if path is not None and not _writable(path, whole=name == "--save"):
            raise DrangueError(f"{name} cannot be written to {str(path)!r}. Make the folder, or name another place.")


def _writable(path: Path, *, whole: bool) -> bool:
    """Whether a file can be appended to, or, as a `whole`, be put in the place of an older one."""
    if path.exists() and not whole:
        return not path.is_dir() and os.access(path, os.W_OK)
    return path.parent.is_dir() and os.access(path.parent, os.W_OK) and not path.is_dir()


def decide(evaluation: Evaluation) -> GateDecision | None:
    """What the gate says of an evaluation; None where there is nothing to compare it with.

    An evaluation of which every run failed is blocked in any case: it has measured nothing.
    """
    runs = evaluation.report.runs
    decision = None
    if evaluation.baseline is not None:
        decision = Gate().evaluate(evaluation.baseline, evaluation.profile)
        decision = replace(decision, warnings=[*decision.warnings, *evaluation.warnings])
    if evaluation.failed < len(runs):
        return decision
    blocks = decision.blocks if decision else []
    why = f"every run failed, so nothing was measured; the first: {runs[0].errors[0]}"
    return GateDecision(False, [*blocks, why], decision.warnings if decision else [])


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
    unlike = _unlike(known, [scenario.name for scenario in scenarios])
    return Evaluation(name, [agent], report, baseline, _shown(options.baseline), warnings=unlike)


@contextmanager
def _place(options: Options, settings: Settings, name: str) -> Iterator[tuple[Evaluated, str]]:
    """Where the scenarios are run, and the name of the agent."""
    if not options.fleet:
        blueprint = agent_named(agents_of(settings), options.agent)
        place = InProcess(blueprint, timeout_s=options.timeout)
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
    try:
        await refuse_existing(place, [run_id for _, run_id in plan(scenarios, name)])
    except ValueError as error:
        raise DrangueError(str(error).replace("run_id_prefix", "--prefix")) from error
    try:
        return await evaluate(place, scenarios, run_id_prefix=name, concurrency=concurrency, tell=tell)
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
    with _progress(len(recordings) * runs) as tell:
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


def _unlike(known: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    """Warnings of scenarios that only one of baseline and candidate has: their rates are not of the same thing."""
    if known is None:
        return []
    gone = [f"scenario {name!r} of the baseline was not run." for name in known if name not in names]
    return gone + [f"scenario {name!r} is not in the baseline." for name in names if name not in known]


def _recorder(path: Path, evaluation: Evaluation) -> Callable[[dict[str, Any]], None]:
    """What appends an override to a file, one JSON object a line."""

    def record(decided: dict[str, Any]) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"at": at, **decided, **to_keep(evaluation), "baseline": evaluation.baseline}
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DrangueError(f"the override was not recorded, so it does not hold: {error}.") from error

    return record


def _save(path: Path, evaluation: Evaluation) -> None:
    """Write the profile, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(json.dumps(to_keep(evaluation), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(fresh, path)
    except OSError as error:
        raise DrangueError(f"the profile was not saved: {error}. Name another place with --save.") from error


def _shown(path: Path | None) -> str:
    return "" if path is None else str(path)
