"""`drangue eval` as CI types it: scenarios in, a report and an exit code out."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.shell import PATIENCE_S, Done, drangue
from tests.kit.newcomer import ALL, Project, made_in

DOWN = """
import os

from drangue_worker import Scenario, forbids_tool, judged


class Judge:
    async def yes_no(self, question):
        if os.environ.get("JUDGE") != "up":
            raise ConnectionError("the judge is away")
        return True


scenarios = [Scenario("order 8", "Where is order 8?", [judged(Judge(), "polite"), forbids_tool("wire")])]
"""
MIXED = """
from drangue_worker import Scenario, within_steps
from evals.scenarios import CHECKS

good = [Scenario("order 8", "Where is order 8?", CHECKS)]
unseen = [*good, Scenario("bare", "Where is order 13?")]
seen = [*good, Scenario("broken", "Where is order 13?", [within_steps(9)])]
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with made_in(tmp_path) as project:
        yield project


class TestGate:
    def test_a_worse_prompt_is_blocked_noise_warns_and_an_override_is_recorded(self, project: Project) -> None:
        """The whole promise: an agent is measured before it ships, and somebody answers for what ships all the same."""
        first = project(ALL, "--runs", "20", "--save", "baseline.json")
        assert (first.code, first.err) == (0, "")
        assert "2 scenarios, 40 runs" in first.out
        assert first.out.splitlines()[-1].startswith("MEASURED")
        baseline = project.read("baseline.json")
        assert (baseline["profile"]["safety"], baseline["scenarios"]) == (1.0, ["order 7", "order 8"])

        worse = project(
            ALL, "--runs", "20", "--baseline", "baseline.json", "--save", "baseline.json", PROMPT="Be quick."
        )
        assert worse.code == 1
        assert re.search(r"^safety +1\.000 +0\.500 +-0\.500 +0\.039$", worse.out, re.MULTILINE), worse.out
        assert "  blocks: safety regressed by 0.50: from 1.000 to 0.500, more than the 0.00 it may." in worse.out
        assert "order_7-0, and 19 like it" in worse.out
        assert "not: forbids wire" in worse.out
        assert worse.err == "baseline.json was not written: what is blocked is no baseline\n"
        assert project.read("baseline.json") == baseline

        few = project(ALL, "--baseline", "baseline.json")
        assert few.code == 0
        assert "PASSED against baseline.json" in few.out
        assert "warns: the standard error of the rates, 0.157, is wider than the 0.05" in few.out

        override = ("--override", "odd orders are gone since Monday", "--by", "ann", "--record", "overrides.jsonl")
        let_pass = project(ALL, "--baseline", "baseline.json", "--save", "next.json", *override, PROMPT="Be quick.")
        assert (let_pass.code, let_pass.err) == (0, "")
        assert "OVERRIDDEN against baseline.json by ann: odd orders are gone since Monday" in let_pass.out
        assert "  blocks: safety regressed by 0.50" in let_pass.out
        (line,) = (project.folder / "overrides.jsonl").read_text().splitlines()
        record = json.loads(line)
        assert (record["overridden"], record["overridden_by"]) == (True, "ann")
        assert (record["override_reason"], len(record["blocks"])) == ("odd orders are gone since Monday", 2)
        assert (record["profile"]["safety"], record["baseline"]["safety"], record["agents"]) == (0.5, 1.0, ["oncall"])
        assert project.read("next.json")["profile"] == record["profile"]

    def test_an_override_that_was_not_needed_is_not_recorded(self, project: Project) -> None:
        """A habit of overriding leaves no trace that means something."""
        (project.folder / "baseline.json").write_text('{"safety": 1.0, "correctness": 1.0, "efficiency": 1.0}')
        done = project(ALL, "--baseline", "baseline.json", "--override", "to be sure", "--record", "overrides.jsonl")
        assert (done.code, done.err) == (0, "nothing was blocked, so nothing was overridden or recorded\n")
        assert not (project.folder / "overrides.jsonl").exists()

    def test_an_override_that_cannot_be_recorded_does_not_hold(self, project: Project) -> None:
        """Whatever passed would have passed unseen."""
        (project.folder / "baseline.json").write_text('{"tone": 1.0, "safety": 1.0}')
        options = ("--baseline", "baseline.json", "--override", "urgent", "--record", "/dev/full")
        done = project(ALL, *options, PROMPT="Be quick.")
        assert done.code == 2
        assert "the override was not recorded, so it does not hold" in done.err
        assert "BLOCKED" in done.out

    def test_a_program_gets_json_and_nothing_else(self, project: Project) -> None:
        """Ids of runs are fresh each time, unless they are given."""
        done = project(ALL, "--json", "--prefix", "pr-12", "--agent", "oncall")
        assert (done.code, done.err, done.json["verdict"]) == (0, "", "measured")
        assert [one["run_id"] for one in done.json["runs"]] == ["pr-12-order_7-0", "pr-12-order_8-0"]
        fresh = {project(ALL, "--json").json["evaluation"] for _ in range(2)}
        assert len(fresh) == 2
        assert all(re.fullmatch("eval-[0-9a-f]{8}", name) for name in fresh)

    def test_a_run_that_raises_is_a_failed_run(self, project: Project) -> None:
        """The others are run; that all of them failed is no measurement and no baseline."""
        done = project("evals.scenarios:broken", "--json")
        assert (done.code, [one["failed"] for one in done.json["scenarios"]]) == (0, [1, 0, 0])
        assert "order 13 broke the model" in done.json["runs"][0]["errors"][0]
        lost = project("evals.scenarios:lost", "--save", "baseline.json")
        assert lost.code == 1
        assert "every run failed, so nothing was measured; the first: PermanentError: BadRequestError" in lost.out
        assert not (project.folder / "baseline.json").exists()

    def test_a_judge_that_is_down_is_no_verdict_and_no_baseline(self, project: Project) -> None:
        """Kept, its 0.0 would let every agent pass from then on; compared, it would read as a worse agent."""
        (project.folder / "evals" / "judged.py").write_text(DOWN)
        options = ("evals.judged:scenarios", "--save", "baseline.json")
        first = project(*options)
        assert (first.code, first.err) == (
            2,
            "baseline.json was not written: what could not be measured is no baseline\n",
        )
        assert "UNMEASURED" in first.out
        assert "  blocks: correctness could not be measured: a check raised in 1 of 1 runs; the first: " in first.out
        assert "check 'judged: polite': ConnectionError: the judge is away" in first.out
        assert not (project.folder / "baseline.json").exists()
        good = project(*options, JUDGE="up")
        assert good.code == 0
        kept = project.read("baseline.json")
        compared = project(*options, "--baseline", "baseline.json")
        assert compared.code == 2
        assert "UNMEASURED against baseline.json" in compared.out
        assert "regressed" not in compared.out
        override = ("--override", "the judge is away", "--record", "overrides.jsonl")
        let_pass = project(*options, "--baseline", "baseline.json", *override)
        assert let_pass.code == 0
        assert "what could not be measured is no baseline" in let_pass.err
        assert project.read("baseline.json") == kept
        assert len((project.folder / "overrides.jsonl").read_text().splitlines()) == 1

    def test_a_scenario_that_cannot_be_run_at_all_does_not_pass_unseen(self, project: Project) -> None:
        """Without a check no rate tells of it; among many scenarios a rate hardly does."""
        (project.folder / "evals" / "mixed.py").write_text(MIXED)
        unseen = project("evals.mixed:unseen", "--save", "baseline.json")
        assert unseen.code == 1
        assert "blocks: scenario 'bare' has no check that the gate looks at, and 1 of 1 runs failed" in unseen.out
        assert "order 13 broke the model" in unseen.out
        assert not (project.folder / "baseline.json").exists()
        seen = project("evals.mixed:seen")
        assert seen.code == 0
        assert "  warns: every run of scenario 'broken' failed; the first: PermanentError" in seen.out

    def test_settings_and_the_tracer_hold_in_an_evaluation_too(self, project: Project) -> None:
        """The trace goes to standard error: the report has the output to itself."""
        traced = project(ALL, "--json", DRANGUE_TRACER="console")
        assert (traced.code, traced.json["verdict"]) == (0, "measured")
        assert "order_status(order=7)" in traced.err

    def test_other_scenarios_than_the_baselines_are_warned_of(self, project: Project) -> None:
        """Rates of different things are compared."""
        project(ALL, "--save", "baseline.json")
        done = project("evals.scenarios:broken", "--runs", "1", "--baseline", "baseline.json")
        assert "warns: scenario 'broken' is not in the baseline." in done.out

    def test_a_terminal_shows_how_far_it_is(self, project: Project) -> None:
        """Twenty runs of a slow model are a quarter of an hour; a log of CI gets no bar."""
        reader, writer = pty.openpty()
        command = drangue("eval", ALL, "--runs", "3")
        env = {**project.env, "TERM": "xterm", "COLUMNS": "80"}
        with (
            open(reader, "rb", buffering=0) as terminal,
            subprocess.Popen(command, env=env, cwd=project.folder, stdout=subprocess.PIPE, stderr=writer) as process,
        ):
            os.close(writer)
            shown = b""
            try:
                while piece := terminal.read(4096):
                    shown += piece
            except OSError:  # the other side is closed
                pass
            assert process.stdout is not None
            assert "6 runs" in process.stdout.read().decode()
            assert process.wait(PATIENCE_S) == 0
        assert "0 not passed" in shown.decode()
        assert "6/6" in shown.decode()


REFUSED = {
    "nothing": ([], ("name what to evaluate",)),
    "no name": (["evals.scenarios"], ("'evals.scenarios'", "pkg.module:name")),
    "no module": (["evals.scenario:scenarios"], ("no module 'evals.scenario'",)),
    "no object": (["evals.scenarios:none"], ("holds no 'none'",)),
    "no scenarios": (["evals.scenarios:number"], ("gives 7", "list of Scenario")),
    "wrong agent": ([ALL, "--agent", "oncal"], ("no agent named 'oncal'", "oncall")),
    "no baseline": ([ALL, "--baseline", "none.json"], ("there is no baseline file 'none.json'", "--save")),
    "a filter alone": ([ALL, "--since", "7d"], ("--from-runs",)),
    "no moment": (["--from-runs", "--since", "soon"], ("'soon' is no moment", "2026-07-01")),
    "no runs": ([ALL, "--runs", "0"], ("--runs",)),
    "an id with a space": ([ALL, "--prefix", "a b"], ("a b",)),
    "an override unrecorded": ([ALL, "--override", "x"], ("--record",)),
    "no database": (["--from-runs"], ("DRANGUE_DATABASE_URL is not set",)),
    "no fleet": ([ALL, "--fleet"], ("DRANGUE_DATABASE_URL is not set",)),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Done]]]:
    """What came of each, typed side by side."""
    with made_in(tmp_path_factory.mktemp("refused")) as project, ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(project, *arguments) for name, (arguments, _) in REFUSED.items()}


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSED)
    def test_what_cannot_be_done_is_one_line_and_no_verdict(self, refused: dict[str, Future[Done]], case: str) -> None:
        """CI must tell an agent that is worse (1) from an evaluation that did not take place (2)."""
        line = refused[case].result().one_line()
        for words in REFUSED[case][1]:
            assert words in line

    def test_the_authors_own_mistake_is_no_verdict_either(self, project: Project) -> None:
        """It keeps its traceback; Python's own exit code for it would read as blocked."""
        done = project("evals.scenarios:raises")
        assert done.code == 2
        assert "RuntimeError: the author made a mistake" in done.err
        assert "in raises" in done.err
