"""`evaluate`: run the scenarios, grade the runs, report.

Every run that was asked for is in the report, and no run or check that raises ends the evaluation. A run is graded by
its result alone (`grade`), wherever that was made; whether the agent is good enough is not decided here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from drangue_client import checks
from drangue_client.result import Result
from drangue_client.submission import check_run_id
from drangue_worker.evals.scenario import Check, Scenario, tokens_used
from drangue_worker.evals.score import EvalReport, RunGrade, ScenarioResult

Job = tuple[Scenario, str]  # a run to be made, and its id
Tell = Callable[[RunGrade], object]


class Evaluated(Protocol):
    """What can be evaluated: an `Agent`, an `OnFleet`, or an object of yours."""

    @property
    def store(self) -> Any:
        """Where its runs are recorded: `await store.load(run_id)` lists the events, none for an unknown run."""

    async def run(self, input: str, *, run_id: str) -> Result:
        """Work on `input` until it is answered or waits for a person; raise what fails the run."""


async def evaluate(
    agent: Evaluated,
    scenarios: Sequence[Scenario],
    *,
    run_id_prefix: str = "eval",
    concurrency: int = 4,
    tell: Tell | None = None,
) -> EvalReport:
    """Run every scenario as often as it says and grade each run; at most `concurrency` of them are under way at once.

    Run i (from 0) of a scenario is recorded as `<run_id_prefix>-<scenario>-<i>`, characters that an id cannot hold
    replaced by `_`. A run that exists would be replayed and not run, so ValueError is raised before anything is run:
    every evaluation needs a prefix of its own. Two evaluations begun at one moment with one prefix are not told apart.

    A run that raises, or ends failed or cancelled, fails every dimension its scenario measures, and the report keeps
    its error. A run that pauses is graded as it stands then. `tell` is given each grade as it is made. Raises TypeError
    or ValueError for arguments that cannot be used. When cancelled, the runs under way are cancelled and no report is
    made.
    """
    checks.has("agent", agent, "run", "an Agent, or an object with an async method `run` and a `store`")
    scenarios = checks.many("scenarios", scenarios, "a list of scenarios")
    checks.count("concurrency", concurrency, least=1)
    checks.function("tell", tell, "a function of a grade", optional=True)
    planned = plan(scenarios, run_id_prefix)
    await refuse_existing(agent, [run_id for _, run_id in planned])
    return reported(
        scenarios, await graded(planned, lambda job: agent.run(job[0].input, run_id=job[1]), concurrency, tell)
    )


def plan(scenarios: Sequence[Scenario], prefix: str) -> list[Job]:
    """Every run to be made, in the scenarios' order. TypeError or ValueError for what cannot be evaluated: nothing at
    all, what is no scenario, or scenarios whose runs would share an id."""
    if not scenarios:
        raise ValueError("scenarios is empty: a profile without rates would pass any gate. Name at least one.")
    checks.printable("run_id_prefix", prefix)
    planned: dict[str, Scenario] = {}
    for scenario in scenarios:
        if not isinstance(scenario, Scenario):
            raise TypeError(f"scenarios holds {checks.shown(scenario)}; it must hold a Scenario in each place.")
        for i in range(scenario.runs):
            run_id = check_run_id(f"{prefix}-{_id_part(scenario.name)}-{i}")
            if run_id in planned:
                raise ValueError(
                    f"scenarios holds {planned[run_id].name!r} and {scenario.name!r}, whose runs would both be "
                    f"recorded as {run_id!r}. Rename one."
                )
            planned[run_id] = scenario
    return [(scenario, run_id) for run_id, scenario in planned.items()]


async def refuse_existing(agent: Evaluated, run_ids: Sequence[str]) -> None:
    """Raise ValueError for a run that exists."""
    for run_id in run_ids:
        if await agent.store.load(run_id):
            raise ValueError(
                f"run {run_id!r} already exists, and grading its replay would measure nothing new. Take another "
                "run_id_prefix, such as one with the date or the commit."
            )


async def graded(
    jobs: Sequence[Job], work: Callable[[Job], Awaitable[Result]], concurrency: int, tell: Tell | None = None
) -> list[RunGrade]:
    """The grades of these runs, in the jobs' order; `work` makes a run, or raises what fails it."""
    free = asyncio.Semaphore(concurrency)

    async def one(job: Job) -> RunGrade:
        async with free:
            grade = await _made_and_graded(job, work)
        if tell is not None:
            tell(grade)
        return grade

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(job)) for job in jobs]
    return [task.result() for task in tasks]


def reported(scenarios: Sequence[Scenario], grades: Sequence[RunGrade]) -> EvalReport:
    """The report of these grades, which stand in the order of the scenarios' runs."""
    rest = iter(grades)
    return EvalReport([ScenarioResult.of(s.name, [next(rest) for _ in range(s.runs)]) for s in scenarios], grades)


async def grade(scenario: Scenario, run_id: str, result: Result) -> RunGrade:
    """Put every check of a scenario to the result of a run. A check that raises has failed, and its error is kept.

    All checks are made, also after one has failed, so that the grade names all that is wrong.
    """
    if result.status in ("failed", "cancelled"):
        return _failed(scenario, run_id, result.error or f"the run ended {result.status}")
    failed: list[Check] = []
    errors: list[str] = []
    for check in scenario.checks:
        try:
            said = check.fn(result)
            passed = bool(await said if inspect.isawaitable(said) else said)
        except Exception as error:  # a check is anybody's code, and a judge may be out of reach
            errors.append(f"check {check.name!r}: {_told(error)}")
            passed = False
        if not passed:
            failed.append(check)
    lost = {check.dimension for check in failed}
    return RunGrade(
        run_id=run_id,
        dimensions={check.dimension: check.dimension not in lost for check in scenario.checks},
        failed_checks=tuple(check.name for check in failed),
        steps=result.steps,
        tokens=tokens_used(result),
        errors=tuple(errors),
        output=result.output,
    )


async def _made_and_graded(job: Job, work: Callable[[Job], Awaitable[Result]]) -> RunGrade:
    scenario, run_id = job
    try:
        result = await work(job)
    except Exception as error:  # whatever fails a run is raised; here it is a grade
        return _failed(scenario, run_id, _told(error))
    return await grade(scenario, run_id, result)


def _failed(scenario: Scenario, run_id: str, error: str) -> RunGrade:
    return RunGrade(
        run_id=run_id,
        dimensions={check.dimension: False for check in scenario.checks},
        failed_checks=tuple(check.name for check in scenario.checks),
        errors=(error,),
    )


def _id_part(name: str) -> str:
    return "".join("_" if c.isspace() or not c.isprintable() else c for c in name)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
