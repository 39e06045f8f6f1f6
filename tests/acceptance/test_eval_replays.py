"""`drangue eval --from-runs`: what production recorded in Postgres, as a gate; and the example of a workflow."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drangue_worker.evals import Gate
from drangue_worker.evals.score import agresti_coull
from tests.acceptance.shell import Console, Done, run
from tests.kit.fleet import ROOT
from tests.kit.newcomer import Project, made_in

RECORD = """
import os
from agents import oncall
from drangue_worker import Agent, PostgresStore

store = PostgresStore(os.environ["DRANGUE_DATABASE_URL"])
agent = Agent(oncall.router.model, list(oncall.tools.values()), oncall.instructions, name="oncall", store=store)
for order in (7, 8, 9):
    agent.run_sync(f"Where is order {order}?", run_id=f"run-{order}")
store.close()
"""


class TestReplay:
    @pytest.fixture
    def recorded(self, tmp_path: Path, database_url: str) -> Iterator[Project]:
        """Three runs, as production recorded them in Postgres; what they did is forgotten."""
        read_only = f"{database_url}{'&' if '?' in database_url else '?'}options=-cdefault_transaction_read_only%3Don"
        with made_in(tmp_path, DRANGUE_DATABASE_URL=read_only) as project:
            writing = {**project.env, "DRANGUE_DATABASE_URL": database_url}
            done = run([sys.executable, "-c", RECORD], writing, tmp_path)
            assert done == Done(0, "", "")
            assert len(project.effects()) == 3
            (tmp_path / "effects.txt").unlink()
            yield project
            assert project.effects() == [], "a replay touched the world"

    def test_recorded_runs_are_a_gate(self, recorded: Project) -> None:
        """Today's agent passes; one that pays instead of looking is blocked, and the difference is shown side by side.

        It needs no more than to read the database, and no queue at all.
        """
        done = recorded("--from-runs", "--agent", "oncall")
        assert (done.code, done.err) == (0, ""), done.out
        assert "3 recorded runs, 3 replays" in done.out
        assert "PASSED against the records" in done.out
        worse = recorded("--from-runs", "--runs", "2", PROMPT="Be quick.")
        assert worse.code == 1
        assert "correctness regressed by 0.67: from 1.000 to 0.333" in worse.out
        assert "called then: order_status" in worse.out
        assert "called now:  wire" in worse.out
        assert 'wire({"amount":5}): not in the record, and the model was told so' in worse.out
        assert "said then: It was delivered." in worse.out

    def test_the_filters_choose_the_runs_and_prices_price_them(self, recorded: Project) -> None:
        """The same words that `drangue runs` takes."""
        (recorded.folder / "prices.json").write_text('{"scripted": {"input": 1.0, "output": 2.0}}')
        options = ("--from-runs", "--since", "1h", "--limit", "2", "--prices", "prices.json", "--json")
        replays = recorded(*options).json["replays"]
        assert [one["run_id"] for one in replays] == ["run-9", "run-8"]
        assert [one[side]["usd"] for one in replays for side in ("recorded", "replayed")] == [pytest.approx(40e-6)] * 4
        console = Console({**recorded.env, "DRANGUE_REDIS_URL": "redis://127.0.0.1:1/0"}, recorded.folder)
        runs = console("runs", "--since", "1h", "--limit", "2", "--json").json
        assert [one["run_id"] for one in runs] == ["run-9", "run-8"]
        assert console("runs", "--since", "1h", "--label", "team=sre") == Done(0, "no runs\n", "")
        line = recorded("--from-runs", "--until", "2020-01-01").one_line()
        assert "no recorded run that is asked for can be replayed" in line

    def test_checks_and_a_stub_judge_the_answers_instead(self, recorded: Project) -> None:
        """A call that differs goes to the stub by choice, and is reported all the same."""
        guess = ("--from-runs", "--limit", "1", "--json", "--checks", "evals.scenarios:checks")
        missed = recorded(*guess, PROMPT="Guess.")
        assert (missed.code, missed.json["runs"][0]["failed_checks"]) == (
            1,
            ["says the same", "every call is in the record"],
        )
        stubbed = recorded(*guess, "--stub", "evals.scenarios:stub", PROMPT="Guess.")
        assert (stubbed.code, stubbed.json["verdict"]) == (0, "passed")
        assert stubbed.json["replays"][0]["differences"] == [
            {"kind": "stubbed", "tool": "order_status", "arguments": {"order": 0}}
        ]


class TestWorkflow:
    @pytest.mark.parametrize("name", ["README.md", "ops/eval-workflow.yml"])
    def test_the_runs_that_are_shown_are_enough(self, name: str) -> None:
        """Whoever copies them gets no warning that they prove too little, even with a single scenario."""
        shown = [int(number) for number in re.findall(r"runs[= ](\d+)", (ROOT / name).read_text())]
        assert shown
        assert all(agresti_coull(runs, runs) <= Gate().correctness_max_drop for runs in shown)
        assert agresti_coull(30, 30) == pytest.approx(0.04, abs=0.0005)
        assert agresti_coull(20, 20) == pytest.approx(0.056, abs=0.0005)

    def test_every_command_of_the_example_runs(self, tmp_path: Path, database_url: str) -> None:
        """It is copied by people who have not read anything else; in the order in which they need it."""
        lines = re.findall(r"run: (drangue .*)", (ROOT / "ops" / "eval-workflow.yml").read_text())
        gate, replay, measure = (shlex.split(line)[2:] for line in lines)
        with made_in(tmp_path, DRANGUE_DATABASE_URL=database_url) as project:
            assert project(*measure).code == 0
            assert project(*gate).code == 0
            assert project(*gate, PROMPT="Be quick.").code == 1
            assert "no recorded run" in project(*replay).one_line()
