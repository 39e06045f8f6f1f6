"""Runs as a caller records and finds them, and the agents that workers announce."""

from __future__ import annotations

import pytest

from drangue_client.events import normalise
from drangue_client.run import Run
from drangue_client.store.log import SqlLog
from drangue_client.store.values import AgentRow, NewRun
from tests.contract.log_scenes import STARTED, elapse, start, write


def submit(log: SqlLog, *run_ids: str, **new: object) -> None:
    log.submit([NewRun(run_id, "oncall", "disk full", **new) for run_id in run_ids])  # type: ignore[arg-type]


class TestSubmit:
    def test_a_new_run_is_queued_and_has_no_log_yet(self, log: SqlLog) -> None:
        """A caller that only enqueues sees its run at once, before any worker has heard of it."""
        row, created = log.submit([NewRun("r", "oncall", "disk full")])[0]
        assert created
        assert (row.run_id, row.agent, row.input, row.status) == ("r", "oncall", "disk full", "queued")
        assert (row.head_seq, row.error, row.finished_at) == (-1, None, None)
        look = log.look("r")
        assert look.row == row
        assert look.run == Run()
        assert log.events("r") == []

    def test_all_that_was_asked_for_is_kept(self, log: SqlLog) -> None:
        """Priority, labels and executor decide who serves the run and how it is found again."""
        labels = {"team": "infra", "ünïcode": "π"}
        row, _ = log.submit([NewRun("r", "oncall", "disk full", "inline", 2, labels)])[0]
        assert (row.executor, row.priority, row.labels) == ("inline", 2, labels)
        assert log.look("r").row == row

    def test_the_same_id_is_the_same_run_and_its_first_input_wins(self, log: SqlLog) -> None:
        """A caller that lost the answer asks again; it must neither start a second run nor change the first."""
        first, _ = log.submit([NewRun("r", "oncall", "disk full", priority=1)])[0]
        again = log.submit([NewRun("r", "billing", "something else", "inline", 9, {"a": "b"})])
        assert again == [(first, False)]

    def test_a_run_under_way_is_returned_as_it_is(self, log: SqlLog) -> None:
        """The caller compares what it asked for with what is there, and reads the status of the run it meets."""
        start(log)
        row, created = log.submit([NewRun("r", "oncall", "disk full")])[0]
        assert not created
        assert row == log.look("r").row
        assert row.status == "running"

    def test_a_batch_answers_in_the_order_it_asked(self, log: SqlLog) -> None:
        """Answers have no id of their own to be told apart by; a repeated id within the batch is one run."""
        submit(log, "b")
        runs = [NewRun(run_id, "oncall", "disk full") for run_id in ("c", "a", "b", "c")]
        answers = log.submit(runs)
        assert [(row.run_id, created) for row, created in answers] == [
            ("c", True),
            ("a", True),
            ("b", False),
            ("c", False),
        ]
        assert log.submit([]) == []

    def test_text_that_no_database_can_hold_is_escaped(self, log: SqlLog) -> None:
        """Postgres refuses NUL and UTF-8 a lone surrogate; such an input must not be lost on one store alone."""
        row, _ = log.submit([NewRun("r", "oncall", "a\x00b\ud800c")])[0]
        assert row.input == normalise("a\x00b\ud800c")
        assert log.look("r").row.input == row.input

    def test_labels_that_no_database_can_hold_are_escaped(self, log: SqlLog) -> None:
        """Labels come from the same callers as the input, and one bad character must not lose the run."""
        row, _ = log.submit([NewRun("r", "oncall", "disk full", labels={"a\x00": "b\x00\ud800"})])[0]
        assert row.labels == normalise({"a\x00": "b\x00\ud800"})

    def test_times_are_the_databases_whatever_this_machines_clock_says(
        self, log: SqlLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Machines disagree about the time; one clock orders all runs and ends all leases."""
        submit(log, "before")
        monkeypatch.setattr("time.time", lambda: 0.0)
        submit(log, "r", wake_in_s=30.0)
        look = log.look("r")
        assert log.look("before").row.created_at <= look.row.created_at <= look.now
        assert look.row.created_at == look.row.updated_at
        assert look.row.wake_at == pytest.approx(look.row.created_at + 30, abs=0.01)
        assert [row.run_id for row in log.wake(60)] == ["before"]


class TestListing:
    def test_runs_are_listed_newest_first(self, log: SqlLog) -> None:
        """An operator looks for what happened last."""
        for run_id in ("old", "middle", "new"):
            elapse(log, 1)
            submit(log, run_id)
        assert [row.run_id for row in log.runs()] == ["new", "middle", "old"]
        assert [row.run_id for row in log.runs(limit=2)] == ["new", "middle"]

    def test_runs_of_one_moment_are_listed_in_a_fixed_order(self, log: SqlLog) -> None:
        """A batch has one time; two listings of it must not differ."""
        submit(log, "c", "a", "b")
        log.db.run(lambda c: c.exec_driver_sql("update runs set created_at = (select min(created_at) from runs)"))
        assert [row.run_id for row in log.runs()] == ["c", "b", "a"]

    def test_pages_follow_one_another_without_a_gap(self, log: SqlLog) -> None:
        """Also where many runs are of one moment, and while others are submitted."""
        submit(log, *"abcdef")
        log.db.run(lambda c: c.exec_driver_sql("update runs set created_at = (select min(created_at) from runs)"))
        submit(log, "new")
        pages = [[row.run_id for row in log.runs(limit=3)]]
        submit(log, "newer")
        while page := [row.run_id for row in log.runs(limit=3, after=pages[-1][-1])]:
            pages.append(page)
        assert pages == [["new", "f", "e"], ["d", "c", "b"], ["a"]]

    def test_a_run_that_may_not_begin_yet_is_due_then(self, log: SqlLog) -> None:
        """Nobody is asked for it before; one whose time is past is due as any other."""
        submit(log, "r")
        now = log.look("r").now
        log.submit([NewRun("later", "oncall", "", not_before=now + 90, wake_in_s=2.0)])
        log.submit([NewRun("past", "oncall", "", not_before=now - 90, wake_in_s=2.0)])
        due_in = [(log.look(one).row.wake_at or 0) - now for one in ("later", "past")]
        assert due_in == [pytest.approx(90, abs=1), pytest.approx(2, abs=1)]
        elapse(log, 60)
        assert {row.run_id for row in log.wake(1.0)} == {"r", "past"}
        elapse(log, 31)
        assert "later" in [row.run_id for row in log.wake(1.0)]

    def test_runs_are_filtered_by_status_and_agent(self, log: SqlLog) -> None:
        """Approvals are found by status; a team looks for its own agent."""
        log.submit([NewRun("a", "oncall", ""), NewRun("b", "billing", ""), NewRun("c", "oncall", "")])
        write(log, "c", STARTED)
        assert {row.run_id for row in log.runs(agent="oncall")} == {"a", "c"}
        assert {row.run_id for row in log.runs(status="queued")} == {"a", "b"}
        assert [row.run_id for row in log.runs(status="queued", agent="oncall")] == ["a"]
        assert log.runs(status="failed") == []


class TestAgents:
    def test_an_agent_is_known_by_its_last_registration(self, log: SqlLog) -> None:
        """Every worker says at its start what it serves; the newest deploy is what `drangue agents` shows."""
        log.register([AgentRow("oncall", "f1", {"models": ["a"], "tools": []}), AgentRow("billing", "f2", {})])
        log.register([AgentRow("oncall", "f3", {"models": ["b"], "tools": ["restart"]})])
        log.register([])
        billing, oncall = log.agents()
        assert (billing.name, billing.fingerprint, billing.summary) == ("billing", "f2", {})
        assert (oncall.name, oncall.fingerprint) == ("oncall", "f3")
        assert oncall.summary == {"models": ["b"], "tools": ["restart"]}

    def test_registering_says_when_the_agent_was_last_seen(self, log: SqlLog) -> None:
        """An agent that no worker has mentioned for a week is a leftover, and only the time can tell."""
        log.register([AgentRow("oncall", "f", {})])
        elapse(log, 100)
        before = log.agents()[0].seen_at
        log.register([AgentRow("oncall", "f", {})])
        assert log.agents()[0].seen_at == pytest.approx(before + 100, abs=10)

    def test_nobody_is_registered_at_first(self, log: SqlLog) -> None:
        """`submit` accepts any name exactly until the first agent is known."""
        assert log.agents() == []
