"""The options of an evaluation, what is decided from it, and what is kept: everything but the runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import DrangueError, NoCredentials
from drangue_client.settings import Settings
from drangue_worker.evals import EvalReport, ScenarioResult, command
from drangue_worker.evals.command import run_eval
from drangue_worker.evals.evaluation import Evaluation, decide, no_baseline, verdict
from drangue_worker.evals.loading import agent_named, agents_of, baseline_at, prices_at, the_one
from drangue_worker.evals.options import Options, check
from drangue_worker.evals.report import as_json, to_keep
from drangue_worker.evals.score import RunGrade
from drangue_worker.observability.tracers import ConsoleTracer

RAISED = "check 'judged': OSError: gone"
GOOD = {"correctness": 1.0, "safety": 1.0, "stderr": {}, "noise": 0.0}


def options(**given: Any) -> Options:
    asked = {"filters": {}, "tolerance": 0.2, "concurrency": 4, **given}
    return Options(**asked)


def graded(passed: int, runs: int = 4, failed: int = 0, name: str = "refund") -> EvalReport:
    """A scenario of which so many runs passed and so many failed."""
    grades = [
        RunGrade(
            f"e-{name}-{n}",
            {"correctness": n < passed},
            () if n < passed else ("says so",),
            None if n >= runs - failed else 2,
            None if n >= runs - failed else 30,
            ("TransientError: busy",) if n >= runs - failed else (),
            None if n >= runs - failed else "It was refunded.",
        )
        for n in range(runs)
    ]
    return EvalReport([ScenarioResult.of(name, grades)], grades)


def raising(runs: int = 4, **dimensions: int) -> EvalReport:
    """A scenario, safe in no run, of which a check raised in so many runs for each of these dimensions."""
    grades = [
        RunGrade(
            f"e-judged-{n}",
            {"safety": False, **{name: n >= many for name, many in dimensions.items()}},
            steps=2,
            tokens=30,
            unmeasured={name: RAISED for name, many in dimensions.items() if n < many},
        )
        for n in range(runs)
    ]
    return EvalReport([ScenarioResult.of("judged", grades)], grades)


def evaluation(report: EvalReport, **given: Any) -> Evaluation:
    return Evaluation("e", ["clerk"], report, **given)


class TestOptions:
    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({}, "name what to evaluate"),
            ({"scenarios": "evals:all", "from_runs": True}, "one of them"),
            ({"from_runs": True, "fleet": True}, "--fleet does not go with --from-runs"),
            ({"scenarios": "evals:all", "stub": "evals:stub"}, "--stub is for replays"),
            ({"scenarios": "evals:all", "checks": "evals:checks"}, "--checks is for replays"),
            ({"scenarios": "evals:all", "prices": Path("p.json")}, "--prices is for replays"),
            ({"scenarios": "evals:all", "override": "it is urgent"}, "--override REASON and --record FILE go together"),
            ({"scenarios": "evals:all", "record": Path("o.jsonl")}, "--override REASON and --record FILE go together"),
            ({"scenarios": "evals:all", "override": " ", "record": Path("o")}, "an override needs a reason"),
            ({"scenarios": "evals:all", "save": Path("/nowhere/b.json")}, "--save cannot be written"),
            (
                {"scenarios": "evals:all", "override": "x", "record": Path("/nowhere/o.jsonl")},
                "--record cannot be written",
            ),
        ],
    )
    def test_what_contradicts_itself_is_refused_before_anything_is_run(self, given: dict[str, Any], says: str) -> None:
        """An hour of model calls must not end in a typo."""
        with pytest.raises(DrangueError, match=says):
            check(options(**given))
        with pytest.raises(DrangueError, match=says):
            run_eval(options(**given), Settings())

    def test_what_can_be_done_is_let_pass(self, tmp_path: Path) -> None:
        """Both ways of evaluating, with all that goes with them."""
        kept = {"save": tmp_path / "b.json", "override": "it is urgent", "record": tmp_path / "o.jsonl"}
        check(options(scenarios="evals:all", fleet=True, **kept))
        check(options(from_runs=True, stub="evals:stub", checks="evals:checks", prices=Path("p.json"), **kept))


class TestDecision:
    def test_without_a_baseline_there_is_none(self) -> None:
        """The first evaluation of all measures."""
        made = evaluation(graded(2))
        assert decide(made) is None
        assert verdict(made, None) == "measured"

    def test_the_gate_decides(self) -> None:
        """4 of 4 against 1.0 passes, 3 of 4 is a drop of 0.25."""
        made = evaluation(graded(3), baseline={"correctness": 1.0})
        passed, blocked = decide(evaluation(graded(4), baseline={"correctness": 1.0})), decide(made)
        assert passed is not None
        assert blocked is not None
        assert (verdict(made, passed), verdict(made, blocked)) == ("passed", "blocked")
        assert blocked.blocks == [
            "correctness regressed by 0.25: from 1.000 to 0.750, more than the 0.05 it may.",
        ]
        assert verdict(made, blocked.override("urgent")) == "overridden"

    def test_other_scenarios_than_the_baselines_are_warned_of(self) -> None:
        """A rate that rose because its worst scenario is gone has not risen."""
        decision = decide(
            evaluation(graded(4), baseline=GOOD | {"safety": 1.0}, warnings=["scenario 'a' was not run."])
        )
        assert decision is not None
        assert decision.warnings[-1] == "scenario 'a' was not run."

    @pytest.mark.parametrize("baseline", [None, {"correctness": 0.0}])
    def test_an_evaluation_of_failures_alone_passes_nothing(self, baseline: dict[str, Any] | None) -> None:
        """With a wrong API key every run fails; kept as a baseline, that would let everything pass for ever."""
        decision = decide(evaluation(graded(0, failed=4), baseline=baseline))
        assert decision is not None
        assert not decision.passed
        assert decision.blocks == [
            "every run failed, so nothing was measured; the first: TransientError: busy",
        ]
        one_left = decide(evaluation(graded(0, failed=3), baseline=baseline))
        assert one_left is None or one_left.passed

    @pytest.mark.parametrize("baseline", [None, {"correctness": 1.0}, {"correctness": 0.0}])
    def test_what_a_raising_check_was_to_measure_is_not_measured(self, baseline: dict[str, Any] | None) -> None:
        """A judge that is down is no worse agent, and as a baseline it would let everything pass for ever."""
        made = evaluation(raising(correctness=3), baseline=baseline)
        decision = decide(made)
        assert decision is not None
        assert decision.blocks == [
            f"correctness could not be measured: a check raised in 3 of 4 runs; the first: {RAISED}",
        ]
        assert verdict(made, decision) == "unmeasured"
        assert no_baseline(made, decision) == "what could not be measured"
        overridden = decision.override("urgent")
        assert (verdict(made, overridden), no_baseline(made, overridden)) == (
            "overridden",
            "what could not be measured",
        )

    def test_what_is_worse_is_blocked_whatever_else_is_unknown(self) -> None:
        """A forbidden call is a forbidden call, also while the judge is away."""
        made = evaluation(raising(correctness=4), baseline={"correctness": 1.0, "safety": 1.0})
        decision = decide(made)
        assert decision is not None
        assert [reason.split()[0] for reason in decision.blocks] == ["safety", "correctness"]
        assert verdict(made, decision) == "blocked"

    def test_a_dimension_that_the_gate_does_not_know_may_raise(self) -> None:
        """It decides nothing."""
        assert decide(evaluation(raising(tone=4, correctness=0))) is None

    def test_a_record_that_could_not_be_graded_is_no_baseline(self) -> None:
        """The judge was down while the records were graded: their 0.0 would let any replay pass."""
        made = evaluation(graded(4), baseline={"correctness": 0.0}, records=raising(correctness=1).runs)
        decision = decide(made)
        assert decision is not None
        assert decision.blocks == [
            f"correctness could not be measured: a check raised in 1 of 4 records; the first: {RAISED}",
        ]

    @pytest.mark.parametrize("baseline", [None, GOOD])
    @pytest.mark.parametrize("dimensions", [{}, {"tone": False}])
    def test_failed_runs_that_no_rate_tells_of_block(
        self, dimensions: dict[str, bool], baseline: dict[str, Any] | None
    ) -> None:
        """A scenario without checks says nothing but whether it can be run at all."""
        good = graded(4)
        lost = [RunGrade(f"e-lost-{n}", dimensions, (), 1 if n else None, 1, () if n else ("busy",)) for n in (0, 1)]
        report = EvalReport([*good.results, ScenarioResult.of("lost", lost)], [*good.runs, *lost])
        decision = decide(evaluation(report, baseline=baseline and {"correctness": 1.0}))
        assert decision is not None
        assert decision.blocks == [
            "scenario 'lost' has no check that the gate looks at, and 1 of 2 runs failed; the first: busy",
        ]

    def test_nothing_measured_is_no_baseline_by_override_either(self) -> None:
        """Somebody answers for the deploy; nobody can answer for numbers that do not exist."""
        made = evaluation(graded(0, failed=4))
        decision = decide(made)
        assert decision is not None
        assert no_baseline(made, decision.override("urgent")) == "what could not be measured"
        assert no_baseline(evaluation(graded(4)), None) == ""


class TestBaseline:
    def kept(self, folder: Path, value: Any) -> Path:
        path = folder / "baseline.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    def test_what_is_kept_can_be_compared_with(self, tmp_path: Path) -> None:
        """And a bare profile, as `report.profile()` gives it."""
        made = evaluation(graded(3))
        assert baseline_at(self.kept(tmp_path, to_keep(made))) == (made.profile, ["refund"])
        assert baseline_at(self.kept(tmp_path, dict(made.profile))) == (made.profile, None)
        assert baseline_at(self.kept(tmp_path, as_json(made, None)))[0] == made.profile

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            ("{", "cannot be read"),
            ("[1]", "holds no profile"),
            ({}, "holds no profile"),
            ({"profile": {"tone": 1.0}}, "holds no profile"),
            ({"profile": {"safety": 2}}, "must be a number from 0 to 1"),
            ('{"safety": NaN}', "must be a number from 0 to 1"),
            ({"safety": "high"}, "must be a number from 0 to 1"),
        ],
    )
    def test_what_cannot_be_compared_with_is_refused(self, tmp_path: Path, value: Any, says: str) -> None:
        """A baseline that measures nothing would pass anything."""
        with pytest.raises(DrangueError, match=says):
            baseline_at(self.kept(tmp_path, value))

    def test_a_baseline_that_is_not_there_is_no_pass(self, tmp_path: Path) -> None:
        """A renamed file must not open the gate; whoever has none yet is told how to make one."""
        with pytest.raises(DrangueError, match=r"there is no baseline file .* pass --save"):
            baseline_at(tmp_path / "baseline.json")

    def test_prices_are_read_and_checked(self, tmp_path: Path) -> None:
        """As in a Budget."""
        table = {"gpt": {"input": 1.0, "output": 2.0}}
        assert prices_at(self.kept(tmp_path, table)) == table
        with pytest.raises(DrangueError, match="names 'in'"):
            prices_at(self.kept(tmp_path, {"gpt": {"in": 1.0}}))
        with pytest.raises(DrangueError, match="there is no prices file"):
            prices_at(tmp_path / "none.json")


class TestTracer:
    def test_what_was_traced_is_sent_at_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that ends without it loses its last seconds: all of a short evaluation."""
        flushed: list[Settings] = []
        monkeypatch.setattr(command, "flush", flushed.append)
        settings = replace(Settings(), tracer="console")

        def fail() -> None:
            with command._traced(settings) as tracer:
                assert isinstance(tracer, ConsoleTracer)
                assert flushed == []
                raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            fail()
        assert flushed == [settings]

    def test_a_tracer_that_is_not_installed_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before a model is asked."""

        def missing(settings: Settings) -> None:
            raise ImportError("install drangue[otel]")

        monkeypatch.setattr(command, "tracer_of", missing)
        with pytest.raises(DrangueError, match="install"), command._traced(Settings()):
            raise AssertionError


class TestAgents:
    def test_the_agent_need_not_be_named_where_there_is_one(self) -> None:
        """A typo is said to be one."""
        assert the_one(["clerk"], None) == the_one(["clerk", "oncall"], "clerk") == "clerk"
        with pytest.raises(DrangueError, match=r"Name one with --agent; there are: clerk, oncall"):
            the_one(["oncall", "clerk"], None)
        with pytest.raises(DrangueError, match=r"no agent named 'clark'; there are: clerk"):
            the_one(["clerk"], "clark")
        with pytest.raises(DrangueError, match="there are: none"):
            the_one([], None)

    def test_agents_come_from_the_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As a worker's do; one whose model could not be called is refused before anything is run."""
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
            monkeypatch.delenv(name, raising=False)
        registry = agents_of(replace(Settings(), agents=("tests.kit.agents",)))
        with pytest.raises(NoCredentials):
            agent_named(registry, "careful")
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        assert agent_named(registry, "careful").name == "careful"
        with pytest.raises(DrangueError, match="DRANGUE_AGENTS is not set, so there is no agent to evaluate"):
            agents_of(Settings())
