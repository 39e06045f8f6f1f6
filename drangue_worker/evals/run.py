"""`evaluate`: run the scenarios, grade the runs, report.

Every run that was asked for is in the report, and no run or check that raises ends the evaluation. A run is graded by
its result alone (`grade`), wherever that was made; whether the agent is good enough is not decided here.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from drangue_client import checks
from drangue_client.errors import ToolError, UnknownRunError
from drangue_client.result import Result
from drangue_client.submission import check_run_id
from drangue_worker.evals.places import in_its_store
from drangue_worker.evals.scenario import Scenario, tokens_used
from drangue_worker.evals.score import EvalReport, RunGrade, ScenarioResult
from drangue_worker.tools.invoke import CancelledItself, either, text_of

Job = tuple[Scenario, str]  # a run to be made, and its id
Tell = Callable[[RunGrade], object]


class Evaluated(Protocol):
    """What can be evaluated: an `Agent`, an `OnFleet`, or an object of yours."""

    @property
    def store(self) -> Any:
        """Where its runs are recorded: any store of ours, or an object whose `await store.load(run_id)` lists the
        events, none for an unknown run."""

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
    replaced by `_`; the runs of an `Agent` bear the label {"eval": run_id_prefix}. A run that exists would be replayed
    and not run, so ValueError is raised before anything is run: every evaluation needs a prefix of its own. Two
    evaluations begun at one moment with one prefix are not told apart.

    A run that raises, or ends failed or cancelled, fails every dimension its scenario measures, and the report keeps
    its error. A run that pauses is graded as it stands then. A check that raises passes nothing and leaves what it
    measures unmeasured (`EvalReport.unmeasured`). `tell` is given each grade as it is made. Raises TypeError or
    ValueError for arguments that cannot be used. When cancelled, the runs under way in this process are cancelled and
    no report is made.
    """
    checks.has("agent", agent, "run", "an Agent, or an object with an async method `run` and a `store`")
    scenarios = checks.many("scenarios", scenarios, "a list of scenarios")
    checks.count("concurrency", concurrency, least=1)
    checks.function("tell", tell, "a function of a grade", optional=True)
    planned = plan(scenarios, run_id_prefix)
    await refuse_existing(agent, [run_id for _, run_id in planned])
    return await evaluated(in_its_store(agent, run_id_prefix), scenarios, planned, concurrency, tell)


async def evaluated(
    agent: Evaluated, scenarios: Sequence[Scenario], planned: Sequence[Job], concurrency: int, tell: Tell | None
) -> EvalReport:
    """`evaluate`, once it is known that none of the planned runs exists."""
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
    store = agent.store
    if hasattr(store, "look"):  # a row each, and not the whole log
        found = await asyncio.to_thread(_first_known, store, run_ids)
    else:
        found = await _first_with_a_log(store, run_ids)
    if found is not None:
        raise ValueError(
            f"run {found!r} already exists, and grading its replay would measure nothing new. Take another "
            "run_id_prefix, such as one with the date or the commit."
        )


def _first_known(log: Any, run_ids: Sequence[str]) -> str | None:
    for run_id in run_ids:
        try:
            log.look(run_id)
        except UnknownRunError:
            continue
        return run_id
    return None


async def _first_with_a_log(store: Any, run_ids: Sequence[str]) -> str | None:
    for run_id in run_ids:
        if await store.load(run_id):
            return run_id
    return None


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
    """Put every check of a scenario to the result of a run.

    A check that raises has failed and its error is kept; unless another check said no to the same dimension, that is
    then unmeasured. All checks are made, also after one has failed, so that the grade names all that is wrong.
    """
    if result.status in ("failed", "cancelled"):
        return _failed(scenario, run_id, result.error or f"the run ended {result.status}")
    failed: list[str] = []
    errors: list[str] = []
    denied: set[str] = set()
    raised: dict[str, str] = {}
    for check in scenario.checks:
        try:
            if await either(functools.partial(check.fn, result)):
                continue
            denied.add(check.dimension)
        except Exception as error:  # a check is anybody's code, and a judge may be out of reach
            errors.append(f"check {check.name!r}: {_told(error)}")
            if isinstance(error, AssertionError):
                denied.add(check.dimension)
            else:
                raised.setdefault(check.dimension, errors[-1])
        failed.append(check.name)
    return RunGrade(
        run_id=run_id,
        dimensions={one.dimension: one.dimension not in {*denied, *raised} for one in scenario.checks},
        failed_checks=tuple(failed),
        steps=result.steps,
        tokens=tokens_used(result),
        errors=tuple(errors),
        output=result.output,
        unmeasured={dimension: why for dimension, why in raised.items() if dimension not in denied},
    )


async def _made_and_graded(job: Job, work: Callable[[Job], Awaitable[Result]]) -> RunGrade:
    scenario, run_id = job
    try:
        result = await _contained(work, job)
    except Exception as error:  # whatever fails a run is raised; here it is a grade
        return _failed(scenario, run_id, _told(error))
    return await grade(scenario, run_id, result)


async def _contained(work: Callable[[Job], Awaitable[Result]], job: Job) -> Result:
    """What a run gives; ToolError in place of what would end the evaluation.

    Not `either`, which does not wait for what it cancels: a run first gives back the steps that it holds.
    """
    try:
        return await work(job)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise CancelledItself("it cancelled itself") from error
    except (Exception, GeneratorExit):
        raise
    except BaseException as error:  # a SystemExit, or what pytest.fail raises
        raise ToolError(f"it raised {_told(error)}") from error


def _failed(scenario: Scenario, run_id: str, error: str) -> RunGrade:
    return RunGrade(
        run_id=run_id,
        dimensions={check.dimension: False for check in scenario.checks},
        failed_checks=tuple(check.name for check in scenario.checks),
        errors=(error,),
    )


def _id_part(name: str) -> str:
    return "".join("_" if c.isspace() or not c.isprintable() else c for c in name)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}"
