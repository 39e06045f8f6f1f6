"""`replay`: recorded runs, done again by today's agent, compared with their records and graded.

The model is asked anew; tools, memory and people are answered from the record, so that nothing in the world is touched.
Every difference is in the report. Whether the agent is good enough is the gate's business: the records give it a
baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from drangue_client.budget import Prices, checked_prices
from drangue_client.checks import count, number, shown
from drangue_client.result import Result
from drangue_client.settings import Settings
from drangue_client.store import InMemoryStore
from drangue_worker.blueprint import Blueprint
from drangue_worker.evals.checks import within_steps, within_tokens
from drangue_worker.evals.places import limited
from drangue_worker.evals.recording import Difference, Recording, choices, decisions
from drangue_worker.evals.rerun import Rerun, Stub
from drangue_worker.evals.run import Tell, graded, reported
from drangue_worker.evals.scenario import Check, Scenario, tokens_used
from drangue_worker.evals.score import EvalReport, RunGrade
from drangue_worker.observability.tracers import Tracer
from drangue_worker.registry import OneAgent, Registry

TOLERANCE = 0.2

Checks = Sequence[Check] | Callable[[Result], Sequence[Check]]


@dataclass(frozen=True, slots=True)
class Account:
    """One side of a comparison. `tools` are the names called, in order; `usd` is None where a model has no price."""

    status: str
    answer: str
    tools: tuple[str, ...]
    steps: int
    tokens: int
    usd: float | None

    @classmethod
    def of(cls, result: Result, prices: Prices) -> Account:
        """What a result comes to."""
        tools = tuple(call.name for calls in decisions(result) for call in calls)
        return cls(result.status, result.output, tools, result.steps, tokens_used(result), _usd(result, prices))


@dataclass(frozen=True, slots=True)
class Replay:
    """A recorded run and one replay of it, side by side. `same_calls` also compares arguments; `error` is what ended
    the replay early."""

    run_id: str
    agent: str
    recorded: Account
    replayed: Account
    same_calls: bool
    differences: tuple[Difference, ...] = ()
    error: str | None = None

    @property
    def same_answer(self) -> bool:
        """Whether both said the same, to the letter."""
        return self.recorded.answer == self.replayed.answer


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What came of replaying: the `report` of the replays, a scenario per recorded run; the `baseline`, which is the
    profile of the records themselves under the same checks; all replays side by side, in the report's order; and the
    `records`' own report, of which the baseline is the profile."""

    report: EvalReport
    baseline: dict[str, Any]
    replays: tuple[Replay, ...]
    records: EvalReport


def same_calls(recorded: Result) -> Check:
    """Correctness: the model called the same tools with the same arguments as it did in a recorded run.

    The order of decisions counts, the order of calls within one does not.
    """
    expected = choices(recorded)
    return Check("correctness", "same tool calls as recorded", lambda result: choices(result) == expected)


async def replay(
    agent: Any,
    recordings: Sequence[Recording],
    *,
    checks: Checks | None = None,
    stub: Stub | None = None,
    runs: int = 1,
    tolerance: float = TOLERANCE,
    prices: Prices | None = None,
    concurrency: int = 4,
    timeout_s: float | None = None,
    tell: Tell | None = None,
    settings: Settings | None = None,
    tracer: Tracer | None = None,
) -> ReplayReport:
    """Replay recorded runs, `runs` times each, with `agent`: an Agent, or a Registry that has each recording's agent.

    A call that matches a recorded one by tool and arguments gets its recorded result. One that does not is reported;
    `stub(tool, arguments)` answers it, or the model is told that there is no result, which fails correctness. Verdicts
    of people are given as they were.

    Correctness is `same_calls`, or `checks` in its place: a list, or a function that gives one for a recorded result.
    Efficiency is within `tolerance` (0.2 is a fifth) of the recorded steps and tokens. `prices` (as in Budget) hold for
    both sides; else a record is priced by what its run was started with, a replay first by what the agent has today.
    `timeout_s` limits one replay, `tell` is given each grade as it is made. `settings` and `tracer` are those of any
    run in one process; by default the settings are plain and nothing is traced.

    The baseline has no noise: the records are what is compared with, and no sample of it. Raises TypeError or
    ValueError for arguments that cannot be used.
    """
    _check(recordings, runs, tolerance, concurrency)
    table = None if prices is None else checked_prices(prices)
    registry = agent if isinstance(agent, Registry) else OneAgent([agent])
    reruns: dict[str, Rerun] = {}

    def in_record(result: Result) -> bool:
        answers = reruns[result.run_id].answers if result.run_id in reruns else None
        return answers is None or not any(one.kind == "missing" for one in answers.differences)

    scenarios, jobs = [], []
    for n, recording in enumerate(recordings):
        own = _checks(checks, recording.result)
        every = [*own, Check("correctness", "every call is in the record", in_record)]
        thrift = _thrift(recording.result, tolerance)
        scenario = Scenario(recording.run_id, recording.inputs[0], [*every, *thrift], runs)
        scenarios.append(scenario)
        for i in range(runs):
            reruns[f"replay-{n}-{i}"] = Rerun(recording, _blueprint(registry, recording), stub, settings, tracer)
            jobs.append((scenario, f"replay-{n}-{i}"))
    recorded = {recording.run_id: recording.result for recording in recordings}
    records = await graded([(one, one.name) for one in scenarios], lambda job: _given(recorded[job[1]]), concurrency)
    log = InMemoryStore()
    try:
        grades = await graded(jobs, lambda job: limited(reruns[job[1]].run(log, job[1]), timeout_s), concurrency, tell)
        compared = [
            _compared(reruns[one.run_id], Result.from_events(one.run_id, log.events(one.run_id)), one, table)
            for one in grades
        ]
    finally:
        log.close()
    once = reported([replace(scenario, runs=1) for scenario in scenarios], records)
    baseline = once.profile() | {"stderr": {}, "noise": 0.0}
    return ReplayReport(reported(scenarios, grades), baseline, tuple(compared), once)


async def _given(result: Result) -> Result:
    return result


def _check(recordings: Sequence[Recording], runs: int, tolerance: float, concurrency: int) -> None:
    count("runs", runs, least=1)
    count("concurrency", concurrency, least=1)
    number("tolerance", tolerance, "a number of at least 0, such as 0.2 for a fifth", least=0)
    if not recordings:
        raise ValueError("recordings is empty: a profile without rates would pass any gate. Name at least one.")
    for recording in recordings:
        if not isinstance(recording, Recording):
            raise TypeError(
                f"recordings holds {shown(recording)}, which is no Recording. Wrap a result: Recording(result)."
            )
        if not recording.inputs:
            raise ValueError(f"recordings holds run {recording.run_id!r}, which has not started: its log has no input.")


def _checks(checks: Checks | None, recorded: Result) -> Sequence[Check]:
    if checks is None:
        return (same_calls(recorded),)
    return checks(recorded) if callable(checks) else checks


def _thrift(recorded: Result, tolerance: float) -> list[Check]:
    """Efficiency: no more than the record used and some; tokens where it says how many."""
    steps, tokens = recorded.steps, tokens_used(recorded)
    checks = [within_steps(_with_some(steps, tolerance))]
    return [*checks, within_tokens(_with_some(tokens, tolerance))] if tokens else checks


def _with_some(number: int, tolerance: float) -> int:
    """The most that is within the tolerance. In floats, 100 * 1.15 is a bit less than 115."""
    return math.floor(number * (1 + tolerance) + 1e-9)


def _blueprint(registry: Registry, recording: Recording) -> Blueprint:
    blueprint = registry.get(recording.agent)
    if blueprint is None:
        raise ValueError(f"recordings holds a run of agent {recording.agent!r}, which is not among those given.")
    return blueprint


def _compared(rerun: Rerun, replayed: Result, graded_as: RunGrade, table: Prices | None) -> Replay:
    recording, today = rerun.recording, rerun.blueprint.terms.budget
    recorded = recording.result
    terms = recorded.run.terms
    then: Prices = (terms.budget.prices if terms and terms.budget else None) or {}
    now: Prices = {**then, **((today.prices if today else None) or {})}
    return Replay(
        run_id=recording.run_id,
        agent=recording.agent,
        recorded=Account.of(recorded, then if table is None else table),
        replayed=Account.of(replayed, now if table is None else table),
        same_calls=choices(replayed) == choices(recorded),
        differences=tuple(rerun.answers.differences),
        error=graded_as.errors[0] if graded_as.steps is None else None,
    )


def _usd(result: Result, prices: Prices) -> float | None:
    try:
        return result.cost(prices)
    except ValueError:  # a model that was used has no price
        return None
