"""Forgetting old runs, listing what waits, and the doctor's own reading, on every database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drangue_client.errors import DrangueError, UnknownRunError
from drangue_client.events import Fact
from drangue_client.pruning import PAGE, prune
from drangue_client.store.log import SqlLog
from drangue_client.store.values import AgentRow, NewRun
from drangue_client.turns import say
from drangue_client.wire.queue import TOOL_QUEUE
from tests.contract.log_scenes import (
    claim,
    decision,
    elapse,
    fan_out,
    finished,
    set_step,
    sql,
    start,
    stored,
    write,
)

DAY_S = 86400.0


def answered(log: SqlLog, *run_ids: str) -> None:
    for run_id in run_ids:
        start(log, run_id)
        write(log, run_id, decision(1, text="mended"), finished(1), claim=claim(log, run_id).ask)


def ids(log: SqlLog) -> set[str]:
    return {row.run_id for row in log.runs(limit=1000)}


class TestPruning:
    def test_old_runs_are_archived_whole_and_then_gone(self, log: SqlLog, tmp_path: Path) -> None:
        """Nothing of them is left in any table; what is younger, or goes on, stays."""
        answered(log, "old-1", "old-2")
        start(log, "going-on")
        elapse(log, 2 * DAY_S)
        answered(log, "young")
        whole = {run_id: [event.to_json() for event in log.events(run_id)] for run_id in ("old-1", "old-2")}
        archive = tmp_path / "runs.jsonl"
        assert prune(log, DAY_S, archive=archive) == 2
        kept = [json.loads(line) for line in archive.read_text().splitlines()]
        assert {one["run"]["run_id"]: one["events"] for one in kept} == whole
        assert ids(log) == {"going-on", "young"}
        assert "old-" not in str(stored(log))
        with pytest.raises(UnknownRunError):
            log.look("old-1")
        assert prune(log, DAY_S, archive=archive) == 0
        assert len(archive.read_text().splitlines()) == 2

    def test_only_the_statuses_asked_for(self, log: SqlLog) -> None:
        """Failed runs are kept longer by many: somebody has still to look at them."""
        answered(log, "done")
        start(log, "failed")
        write(log, "failed", Fact("run_failed", {"error": "x", "category": "error"}), claim=claim(log, "failed").ask)
        elapse(log, 2 * DAY_S)
        assert prune(log, DAY_S, statuses=("completed",), dry=True) == 1
        assert ids(log) == {"done", "failed"}
        assert prune(log, DAY_S, statuses=("completed",)) == 1
        assert ids(log) == {"failed"}

    def test_a_run_that_was_taken_up_again_meanwhile_is_kept(self, log: SqlLog) -> None:
        """Somebody says something to it between its reading and its deletion."""
        answered(log, "r", "other")
        elapse(log, 2 * DAY_S)
        rows = log.ended_before(DAY_S, ("completed",), 10)
        say(log, "r", "and now?")
        assert log.forget(rows) == ["other"]
        assert ids(log) == {"r"}
        assert log.events("r")[-1].type == "user_message"

    def test_what_somebody_still_works_on_is_kept(self, log: SqlLog) -> None:
        """A cancelled run's irreversible call may still come to an end, and is to be recorded."""
        fan_out(log, tools=1)
        claim(log, step=2)
        write(log, "r", Fact("run_cancelled", {"by": "ops"}))
        sql(log, "update runs set finished_at = created_at")
        elapse(log, 2 * DAY_S)
        assert prune(log, DAY_S) == 0

    def test_what_nobody_knows_is_kept(self, log: SqlLog) -> None:
        """It is on an operator's list; to forget it would be to settle it."""
        answered(log, "r", "known")
        sql(log, "update runs set unknown = 1 where run_id = 'r'")
        elapse(log, 2 * DAY_S)
        assert prune(log, DAY_S) == 1
        assert ids(log) == {"r"}

    def test_an_archive_that_cannot_be_written_costs_nothing(self, log: SqlLog, tmp_path: Path) -> None:
        """One line says so, and every run is still there."""
        answered(log, "r")
        elapse(log, 2 * DAY_S)
        with pytest.raises(DrangueError, match="Nothing was forgotten"):
            prune(log, DAY_S, archive=tmp_path / "nowhere" / "runs.jsonl")
        assert ids(log) == {"r"}

    def test_more_than_a_page_is_pruned(self, log: SqlLog) -> None:
        """The pages follow until nothing is left."""
        log.submit([NewRun(f"r{number}", "oncall", "x") for number in range(PAGE + 5)])
        sql(log, "update runs set status = 'completed', finished_at = created_at")
        elapse(log, 2 * DAY_S)
        told: list[int] = []
        assert prune(log, DAY_S, done=told.append) == PAGE + 5
        assert (told, ids(log)) == ([PAGE, PAGE + 5], set())


class TestBacklog:
    def test_steps_are_counted_by_what_they_wait_for(self, log: SqlLog) -> None:
        """What is due and for how long tells whether there are too few workers; backoff and work do not."""
        fan_out(log, tools=4, name="read_logs")
        claim(log, step=2)
        elapse(log, 5)
        set_step(log, "r", 3, available_at=log.look("r").now + 60)
        (load,) = log.backlog()
        assert (load.queue, load.due, load.held, load.later) == (TOOL_QUEUE, 2, 1, 1)
        assert load.oldest_s == pytest.approx(5, abs=1)
        elapse(log, 3600)  # the lease of the one that was held is over: it is due again
        assert (log.backlog()[0].due, log.backlog()[0].held) == (4, 0)

    def test_ended_runs_wait_for_nothing(self, log: SqlLog) -> None:
        """A failed run's steps are parked until somebody takes it up again."""
        fan_out(log)
        write(log, "r", Fact("run_failed", {"error": "x", "category": "error"}))
        assert log.backlog() == []


class TestExamining:
    def test_a_run_that_nothing_would_move_is_found(self, log: SqlLog) -> None:
        """It would be a bug of ours; an operator should not learn of it from a customer."""
        start(log)
        assert log.stuck() == []
        sql(log, "delete from steps")
        sql(log, "update runs set wake_at = null")
        assert [row.run_id for row in log.stuck()] == ["r"]

    def test_runs_of_agents_that_nobody_serves_are_counted(self, log: SqlLog) -> None:
        """A deploy went ahead of its workers, or an agent was renamed."""
        log.submit([NewRun("a", "gone", ""), NewRun("b", "gone", ""), NewRun("c", "here", "")])
        log.register([AgentRow("here", "f", {"models": [], "tools": []})])
        assert log.unserved() == {"gone": 2}

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            ("update runs set status = 'completed'", "status is 'completed'"),
            ("update runs set head_seq = head_seq + 1", "head_seq"),
            ("update runs set unknown = 1", "unknown is 1"),
        ],
    )
    def test_a_row_that_does_not_say_what_its_log_says_is_found(self, log: SqlLog, damage: str, told: str) -> None:
        """Projections can be rebuilt; first somebody has to notice."""
        fan_out(log)
        answered(log, "fine")
        assert list(log.differing()) == []
        sql(log, f"{damage} where run_id = 'r'")
        ((run_id, differs),) = log.differing()
        assert (run_id, told in differs) == ("r", True)
