"""The options of an evaluation, what is decided from it, and what is kept: everything but the runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import DrangueError, NoCredentials
from drangue_client.settings import Settings
from drangue_worker.evals import EvalReport, ScenarioResult
from drangue_worker.evals.command import Options, check, decide, run_eval
from drangue_worker.evals.loading import agent_named, agents_of, baseline_at, prices_at, the_one
from drangue_worker.evals.report import Evaluation, as_json, to_keep, verdict
from drangue_worker.evals.score import RunGrade

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
        assert decide(evaluation(graded(2))) is None
        assert verdict(None) == "measured"

    def test_the_gate_decides(self) -> None:
        """4 of 4 against 1.0 passes, 3 of 4 is a drop of 0.25."""
        passed, blocked = (decide(evaluation(graded(n), baseline={"correctness": 1.0})) for n in (4, 3))
        assert passed is not None
        assert blocked is not None
        assert (verdict(passed), verdict(blocked)) == ("passed", "blocked")
        assert blocked.blocks == [
            "correctness regressed by 0.25: from 1.000 to 0.750, more than the 0.05 it may.",
        ]
        assert verdict(blocked.override("urgent")) == "overridden"

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
