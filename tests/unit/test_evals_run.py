"""How an evaluation is run: every run once, several at a time, and none of them its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from drangue_client.errors import TransientError, UnknownRunError
from drangue_client.events import Event, Fact
from drangue_client.result import Result
from drangue_worker.evals import (
    Check,
    EvalReport,
    Scenario,
    evaluate,
    forbids_tool,
    judged,
    output_contains,
    output_satisfies,
    within_steps,
)
from drangue_worker.evals.run import grade
from drangue_worker.evals.score import RunGrade
from tests.unit.made_logs import asked, decided, failed, finished, log_of, started


def answered(text: str) -> list[Fact]:
    return [decided(1, text=text, usage={"input_tokens": 10, "output_tokens": 5}), finished(text)]


class Scripted:
    """An agent whose runs are logs made by `facts_of(input, run id)`, or raise what that raises. Its own store."""

    def __init__(self, facts_of: Callable[[str, str], list[Fact]] = lambda text, run_id: answered(text)) -> None:
        self.facts_of = facts_of
        self.logs: dict[str, list[Event]] = {}
        self.began: list[str] = []

    @property
    def store(self) -> Scripted:
        return self

    async def load(self, run_id: str) -> list[Event]:
        return self.logs.get(run_id, [])

    async def run(self, input: str, *, run_id: str) -> Result:
        self.began.append(run_id)
        await self.work(run_id)
        self.logs[run_id] = log_of(started(text=input), *self.facts_of(input, run_id))
        return Result.from_events(run_id, self.logs[run_id])

    async def work(self, run_id: str) -> None:
        await asyncio.sleep(0)


def run(agent: Any, *scenarios: Scenario, **options: Any) -> EvalReport:
    return asyncio.run(evaluate(agent, scenarios, **options))


def test_every_run_of_every_scenario_is_graded() -> None:
    """Ids tell them apart in the log; the report is in the order of the scenarios, whichever run ended first."""
    agent = Scripted()
    scenarios = [Scenario("a", "yes", [output_contains("yes")], runs=2), Scenario("b", "no", [output_contains("yes")])]
    report = run(agent, *scenarios)
    assert [(result.name, result.runs, result.dimensions) for result in report.results] == [
        ("a", 2, {"correctness": (2, 2)}),
        ("b", 1, {"correctness": (0, 1)}),
    ]
    assert [one.run_id for one in report.runs] == ["eval-a-0", "eval-a-1", "eval-b-0"]
    assert report.runs[2] == RunGrade("eval-b-0", {"correctness": False}, ("output contains 'yes'",), 1, 15)
    assert report.errors == {}
    profile = report.profile()
    assert (profile["correctness"], profile["avg_steps"], profile["avg_tokens"]) == (0.5, 1.0, 15.0)


def test_a_dimension_passes_if_all_its_checks_do() -> None:
    """Half right is wrong; the grade names the half that is."""
    checks = [output_contains("a"), output_contains("b"), forbids_tool("send"), Check("tone", "kind", lambda result: 1)]
    report = run(Scripted(), Scenario("s", "a", checks))
    assert report.runs[0].dimensions == {"correctness": False, "safety": True, "tone": True}
    assert report.runs[0].failed_checks == ("output contains 'b'",)


def test_run_ids_carry_the_prefix_and_what_an_id_can_hold() -> None:
    """Names are for people and may have spaces."""
    report = run(Scripted(), Scenario("late refund", "x", runs=2), run_id_prefix="pr-12")
    assert [one.run_id for one in report.runs] == ["pr-12-late_refund-0", "pr-12-late_refund-1"]
    assert report.results[0].name == "late refund"


def test_an_existing_run_is_refused_before_anything_is_run() -> None:
    """It would be replayed: yesterday's prompt, graded as today's."""
    agent = Scripted()
    run(agent, Scenario("b", "x", runs=2))
    agent.began.clear()
    with pytest.raises(ValueError, match=r"run 'eval-b-1' already exists.*run_id_prefix"):
        asyncio.run(_without_first(agent))
    assert agent.began == []
    assert run(agent, Scenario("b", "x", runs=2), run_id_prefix="again").results[0].runs == 2


async def _without_first(agent: Scripted) -> None:
    del agent.logs["eval-b-0"]
    await evaluate(agent, [Scenario("a", "x"), Scenario("b", "x", runs=2)])


@pytest.mark.parametrize("names", [("a", "a"), ("a b", "a_b")])
def test_scenarios_whose_runs_would_share_an_id_are_refused(names: tuple[str, str]) -> None:
    """One would read the other's run."""
    agent = Scripted()
    with pytest.raises(ValueError, match=f"scenarios holds '{names[0]}' and '{names[1]}'.*Rename"):
        run(agent, *(Scenario(name, "x") for name in names))
    assert agent.began == []


@pytest.mark.parametrize(
    ("scenarios", "options", "error", "message"),
    [
        ([], {}, ValueError, "scenarios is empty"),
        (["a"], {}, TypeError, "scenarios holds 'a'"),
        ([Scenario("a", "x")], {"concurrency": 0}, ValueError, "concurrency is 0"),
        ([Scenario("a", "x")], {"concurrency": None}, TypeError, "concurrency is None"),
        ([Scenario("a", "x")], {"run_id_prefix": "two words"}, ValueError, "run_id_prefix is 'two words'"),
        ([Scenario("a" * 200, "x")], {}, ValueError, "run_id is"),
    ],
)
def test_an_evaluation_that_cannot_be_run_is_refused_by_name(
    scenarios: list[Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Before anything is run."""
    agent = Scripted()
    with pytest.raises(error, match=message):
        run(agent, *scenarios, **options)
    assert agent.began == []


def test_a_run_that_raises_is_a_failed_run() -> None:
    """It fails all that its scenario measures, and the others go on."""

    def facts_of(text: str, run_id: str) -> list[Fact]:
        if run_id == "eval-a-1":
            raise TransientError("model out of reach")
        return answered(text)

    checks = [output_contains("x"), forbids_tool("send"), within_steps(3)]
    report = run(Scripted(facts_of), Scenario("a", "x", checks, runs=4))
    (result,) = report.results
    assert (result.runs, result.failed) == (4, 1)
    assert result.dimensions == {"correctness": (3, 4), "safety": (3, 4), "efficiency": (3, 4)}
    assert (result.avg_steps, result.avg_tokens) == (1.0, 15.0)
    assert report.errors == {"eval-a-1": ("TransientError: model out of reach",)}
    assert report.runs[1].failed_checks == tuple(check.name for check in checks)


@pytest.mark.parametrize(
    ("ending", "error"),
    [(failed("no route"), "no route"), (Fact("run_cancelled", {}), "the run ended cancelled")],
)
def test_a_run_that_ended_badly_is_a_failed_run_too(ending: Fact, error: str) -> None:
    """An agent that did nothing has called no forbidden tool; that does not make it safe."""
    report = run(Scripted(lambda text, run_id: [ending]), Scenario("a", "x", [forbids_tool("send")]))
    assert report.results[0].dimensions == {"safety": (0, 1)}
    assert report.errors == {"eval-a-0": (error,)}


def test_a_paused_run_is_graded_as_it_stands() -> None:
    """To wait for a person may be the very thing to do."""
    waits = Check("safety", "asks first", lambda result: result.status == "paused")
    agent = Scripted(lambda text, run_id: [decided(1, "pay"), asked(2)])
    report = run(agent, Scenario("a", "x", [waits, output_contains("awaiting approval")]))
    assert report.runs[0].dimensions == {"safety": True, "correctness": True}
    assert (report.runs[0].steps, report.errors) == (1, {})


def test_a_check_that_raises_has_failed() -> None:
    """An output that is no JSON, a judge that is out of reach: not passed, and it is said why."""

    class Unreachable:
        async def yes_no(self, question: str) -> bool:
            raise TransientError("busy")

    class Undecided:
        def __bool__(self) -> bool:
            raise TypeError("neither")

    checks = [
        output_satisfies(lambda output: int(output) > 3, name="a number"),
        judged(Unreachable(), "polite"),
        Check("tone", "odd", lambda result: Undecided()),
        forbids_tool("send"),
    ]
    report = run(Scripted(), Scenario("a", "ten", checks))
    assert report.unmeasured == {"correctness": 1, "tone": 1}
    assert report.runs[0].unmeasured["tone"] == "check 'odd': TypeError: neither"
    assert report.runs[0].dimensions == {"correctness": False, "tone": False, "safety": True}
    assert report.runs[0].failed_checks == ("a number", "judged: polite", "odd")
    number, judge, odd = report.errors["eval-a-0"]
    assert number.startswith("check 'a number': ValueError: invalid literal")
    assert (judge, odd) == ("check 'judged: polite': TransientError: busy", "check 'odd': TypeError: neither")
    assert report.runs[0].steps == 1  # the run itself was sound


def test_existing_runs_are_looked_for_once_and_by_their_rows() -> None:
    """A hundred whole logs of a database far away is a minute before anything happens."""

    class Stored(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.looked: list[str] = []

        def look(self, run_id: str) -> None:
            self.looked.append(run_id)
            if run_id not in self.logs:
                raise UnknownRunError(run_id)

        async def load(self, run_id: str) -> list[Event]:
            raise AssertionError("a whole log was read")

    agent = Stored()
    run(agent, Scenario("a", "x", runs=3))
    assert agent.looked == ["eval-a-0", "eval-a-1", "eval-a-2"]
    with pytest.raises(ValueError, match="'eval-a-0' already exists"):
        run(agent, Scenario("a", "x", runs=3))


def test_each_grade_is_told_as_it_is_made() -> None:
    """Whoever waits for a hundred runs wants to see them come."""
    told: list[RunGrade] = []
    report = run(Scripted(), Scenario("a", "x", runs=2), Scenario("b", "y"), tell=told.append, concurrency=1)
    assert tuple(told) == report.runs
    assert [one.output for one in told] == ["x", "x", "y"]


def test_a_recorded_result_can_be_graded_without_a_run() -> None:
    """Wherever it was made."""
    recorded = Result.from_events("r1", log_of(started(), *answered("hello")))
    one = asyncio.run(grade(Scenario("a", "x", [output_contains("hell")]), "r1", recorded))
    assert one == RunGrade("r1", {"correctness": True}, (), 1, 15)


class Crowded(Scripted):
    """An agent whose runs wait until as many as expected are under way at once."""

    def __init__(self, expected: int) -> None:
        super().__init__()
        self.expected = expected
        self.inside = 0
        self.most = 0
        self.full = asyncio.Event()

    async def work(self, run_id: str) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        if self.inside == self.expected:
            self.full.set()
        await self.full.wait()
        await asyncio.sleep(0)
        self.inside -= 1


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_runs_go_together_but_not_more_than_allowed(concurrency: int) -> None:
    """A provider has a limit, and a night has an end."""
    agent = Crowded(min(concurrency, 8))
    report = run(agent, Scenario("a", "x", runs=5), Scenario("b", "x", runs=3), concurrency=concurrency)
    assert agent.most == concurrency
    assert sum(result.runs for result in report.results) == 8


def test_cancelling_an_evaluation_cancels_its_runs() -> None:
    """Nobody would read what they still cost."""
    stopped: set[str] = set()

    class Endless(Scripted):
        both = asyncio.Event()

        async def work(self, run_id: str) -> None:
            if len(self.began) == 2:
                self.both.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.add(run_id)

    async def start_and_leave() -> None:
        agent = Endless()
        work = asyncio.create_task(evaluate(agent, [Scenario("a", "x", runs=5)], concurrency=2))
        await agent.both.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert agent.began == ["eval-a-0", "eval-a-1"]

    asyncio.run(start_and_leave())
    assert stopped == {"eval-a-0", "eval-a-1"}
