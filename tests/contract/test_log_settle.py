"""Settling: a move is written whole where it was decided, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from drangue_client.errors import DrangueError, UnknownRunError
from drangue_client.events import Fact
from drangue_client.store.log import SqlLog
from drangue_client.store.tables import runs
from drangue_client.store.values import Move, NewRun, Open, Release, StepRef
from tests.contract.log_scenes import (
    NOTE,
    STARTED,
    TERMS,
    TOOL_QUEUE,
    ask,
    begun,
    claim,
    claim_all,
    decision,
    elapse,
    failed,
    fan_out,
    finished,
    kinds,
    model,
    move,
    open_rows,
    result,
    resumed,
    sql,
    start,
    stored,
    tool,
    whole,
    write,
)

IMPOSSIBLE = (IntegrityError, DrangueError)


class TestVerdicts:
    def test_a_move_decided_on_the_run_as_it_is_is_written_whole(self, log: SqlLog) -> None:
        """Result, next steps and projections are one transaction: there is no moment between them to crash in."""
        start(log)
        claimed = claim(log)
        moved = log.settle([move(claimed.look, decision(1, "read_logs"), opens=(tool(2),), claim=claimed.ask)])[0]
        assert moved.verdict == "ok"
        assert moved.opened == (StepRef("r", 2, "tool", TOOL_QUEUE, 5),)
        assert kinds(log.events("r")) == ["run_started", "model_decision"]
        assert list(open_rows(log)) == [2]
        assert log.look("r").row.head_seq == 1

    def test_a_move_decided_on_an_older_run_writes_nothing_and_is_told_the_run_as_it_is(self, log: SqlLog) -> None:
        """A verdict that arrives during a step changes what follows; the step must decide again, from the truth."""
        fan_out(log)
        claimed = claim(log, step=2)
        write(log, "r", Fact("approval_requested", {"call_id": "call_3"}, 3))
        before = stored(log)
        moved = log.settle([move(claimed.look, result(2), opens=(model(4),), claim=claimed.ask)])[0]
        assert (moved.verdict, moved.opened) == ("moved", ())
        assert stored(log) == before
        assert moved.look is not None
        assert moved.look.run == whole(log)
        assert moved.look.row == log.look("r").row

    def test_a_refused_move_decided_again_is_written(self, log: SqlLog) -> None:
        """`moved` leaves the claim in place: the same attempt settles at its second try."""
        fan_out(log)
        claimed = claim(log, step=2)
        write(log, "r", NOTE)
        moved = log.settle([move(claimed.look, result(2), claim=claimed.ask)])[0]
        assert moved.look is not None
        assert log.settle([move(moved.look, result(2), claim=claimed.ask)])[0].verdict == "ok"
        assert list(open_rows(log)) == [3]

    def test_a_claim_that_somebody_took_over_writes_nothing(self, log: SqlLog) -> None:
        """A zombie that comes back after its lease must not record a result beside its successor's."""
        fan_out(log)
        zombie = claim(log, step=2)
        elapse(log, 20)
        claim(log, step=2, worker="w2")
        before = stored(log)
        moved = log.settle([move(log.look("r"), result(2), opens=(model(4),), claim=zombie.ask)])[0]
        assert (moved.verdict, moved.opened) == ("lost", ())
        assert stored(log) == before

    @pytest.mark.parametrize("how", ["settled", "released", "never claimed", "of another step"])
    def test_a_claim_that_is_no_more_writes_nothing(self, log: SqlLog, how: str) -> None:
        """Whatever ended a claim, its token is the only leave to write, and it is gone."""
        fan_out(log)
        claimed = claim(log, step=2)
        token = claimed.ask
        if how == "settled":
            write(log, "r", result(2), claim=claimed.ask)
        elif how == "released":
            log.release([Release(claimed.ask)])
        elif how == "never claimed":
            token = ask(step=3)
        else:
            token = replace(claimed.ask, step=3)
        before = stored(log)
        assert log.settle([move(log.look("r"), result(3), claim=token)])[0].verdict == "lost"
        assert stored(log) == before

    def test_ones_own_token_settles_after_its_lease_has_lapsed(self, log: SqlLog) -> None:
        """A worker that was slow, and that nobody replaced, has done the work: doing it again helps nobody."""
        fan_out(log)
        claimed = claim(log, step=2)
        elapse(log, 100)
        assert write(log, "r", result(2), claim=claimed.ask).verdict == "ok"

    def test_moved_is_answered_before_lost(self, log: SqlLog) -> None:
        """Checks come before writes: a move that is late in both ways still writes nothing."""
        fan_out(log)
        claimed = claim(log, step=2)
        log.release([Release(claimed.ask)])
        write(log, "r", NOTE)
        before = stored(log)
        assert log.settle([move(claimed.look, result(2), claim=claimed.ask)])[0].verdict == "moved"
        assert stored(log) == before

    def test_a_run_nobody_knows_cannot_be_moved(self, log: SqlLog) -> None:
        """A log that was removed must not come to life again with the result of a late step."""
        start(log)
        late = move(log.look("r"), decision(1))
        sql(log, "delete from runs")
        before = stored(log)
        with pytest.raises(UnknownRunError):
            log.settle([late])
        assert stored(log) == before

    def test_the_moves_of_a_batch_are_judged_one_by_one(self, log: SqlLog) -> None:
        """Strangers share a batch: one that is late must not cost the others their results."""
        for run_id in ("a", "b", "c", "d"):
            start(log, run_id)
        asks = [ask(run_id) for run_id in ("a", "b", "c", "d")]
        a, b, c, d = (one for one in log.claim(asks, 15.0) if one)
        write(log, "b", NOTE)
        log.release([Release(c.ask)])
        moves = [move(x.look, decision(1), opens=(tool(2),), claim=x.ask) for x in (d, c, b, a)]
        answers = log.settle(moves)
        assert [answer.verdict for answer in answers] == ["ok", "lost", "moved", "ok"]
        assert [[ref.run_id for ref in answer.opened] for answer in answers] == [["d"], [], [], ["a"]]
        assert [len(log.events(run_id)) for run_id in ("a", "b", "c", "d")] == [2, 2, 1, 2]
        assert log.settle([]) == []

    def test_moves_of_one_run_in_a_batch_build_on_each_other(self, log: SqlLog) -> None:
        """Siblings that end together are folded one after another in memory and written in one go."""
        fan_out(log)
        one, other = claim_all(log, 2, 3)
        first = move(one.look, result(2), claim=one.ask)
        second = Move("r", first.head + 1, whole(log), (result(3),), (model(4),), other.ask)
        answers = log.settle([first, second])
        assert [answer.verdict for answer in answers] == ["ok", "ok"]
        assert [event.step for event in log.events("r")] == [None, 1, 2, 3]
        assert list(open_rows(log)) == [4]

    def test_a_move_without_facts_or_steps_only_projects(self, log: SqlLog) -> None:
        """A coordinator that found nothing to do says so by taking the run off the list of those due."""
        start(log)
        before = log.look("r")
        assert write(log, "r").opened == ()
        assert log.look("r").run == before.run
        assert log.look("r").row.head_seq == before.row.head_seq


class TestSteps:
    def test_only_what_is_not_open_is_opened_and_exactly_that_is_reported(self, log: SqlLog) -> None:
        """`decide` names all that is due and forgets; what is reported is sent, so a step reported twice runs twice."""
        fan_out(log)
        claimed = claim(log, step=3)
        moved = write(log, "r", NOTE, opens=(tool(4), tool(3), tool(2), tool(5)))
        assert [ref.step for ref in moved.opened] == [4, 5]
        assert list(open_rows(log)) == [2, 3, 4, 5]
        assert open_rows(log)[3]["claim"] == claimed.ask.token

    def test_a_step_is_opened_as_it_was_asked_for(self, log: SqlLog) -> None:
        """Where a step is queued, and before whom, comes from its run and its tool."""
        log.submit([NewRun("r", "oncall", "", priority=2), NewRun("s", "oncall", "", executor="inline")])
        asked = (Open(1, "model", None, "m"), Open(2, "tool", "read_logs", "browser"))
        assert write(log, "r", STARTED, opens=asked).opened == (
            StepRef("r", 1, "model", "m", 2),
            StepRef("r", 2, "tool", "browser", 2),
        )
        assert open_rows(log)[2]["name"] == "read_logs"
        assert write(log, "s", STARTED, opens=(Open(1, "model", None, None),)).opened[0].queue is None

    def test_a_fresh_step_can_be_claimed_at_once(self, log: SqlLog) -> None:
        """Its message may arrive before the settling worker has drawn breath."""
        start(log)
        row = open_rows(log)[1]
        assert row["available_at"] == row["sent_at"]
        assert (row["attempt"], row["failures"], row["crashes"], row["sends"]) == (0, 0, 0, 0)
        assert log.claim([ask()], 15.0)[0] is not None

    def test_a_settled_step_is_gone(self, log: SqlLog) -> None:
        """`steps` holds only open work, so it stays small whatever the history; a settled step never runs again."""
        fan_out(log)
        write(log, "r", result(2), claim=claim(log, step=2).ask)
        assert list(open_rows(log)) == [3]
        assert log.claim([ask(step=2)], 15.0) == [None]

    def test_a_failed_runs_step_is_parked(self, log: SqlLog) -> None:
        """A redrive goes on with the step that failed, not with another run."""
        fan_out(log)
        claimed = claim(log, step=2)
        write(log, "r", failed(3), claim=claimed.ask, park=True)
        row = open_rows(log)[2]
        assert (row["claim"], row["worker"], row["lease_until"], row["attempt"]) == (None, None, None, 1)
        assert log.claim([ask(step=2)], 15.0) == [None]
        assert log.settle([move(log.look("r"), result(2), claim=claimed.ask)])[0].verdict == "lost"

    def test_parking_is_fenced_as_well(self, log: SqlLog) -> None:
        """A zombie must not be able to fail the run its successor is working on."""
        fan_out(log)
        zombie = claim(log, step=2)
        elapse(log, 20)
        claim(log, step=2, worker="w2")
        before = stored(log)
        assert log.settle([move(log.look("r"), failed(3), claim=zombie.ask, park=True)])[0].verdict == "lost"
        assert stored(log) == before

    def test_reopening_puts_parked_steps_back_with_fresh_counters(self, log: SqlLog) -> None:
        """What drove the run into the wall is counted anew, or a redriven run would fail at its first step."""
        fan_out(log)
        for _ in range(2):
            log.release([Release(claim(log, step=2).ask, failed=True)])
        claim(log, step=2)
        elapse(log, 20)
        write(log, "r", failed(3), claim=claim(log, step=2, worker="w2").ask, park=True)
        log.mark_sent([StepRef("r", 2, "tool", TOOL_QUEUE, 5)])
        elapse(log, 1000)
        moved = write(log, "r", resumed(), reopen=True, opens=(tool(2), tool(3)))
        assert [ref.step for ref in moved.opened] == [2, 3]
        row = open_rows(log)[2]
        assert (row["failures"], row["crashes"], row["sends"], row["attempt"]) == (0, 0, 0, 4)
        claimed = claim(log, step=2)
        assert (claimed.attempt, claimed.failures, claimed.crashes) == (5, 0, 0)

    def test_reopening_leaves_a_claimed_step_to_its_holder(self, log: SqlLog) -> None:
        """A sibling that survived the failure is still at work; sending its step again would only be refused."""
        fan_out(log)
        holder = claim(log, step=3)
        write(log, "r", failed(3), claim=claim(log, step=2).ask, park=True)
        moved = write(log, "r", resumed(), reopen=True, opens=(tool(2), tool(3)))
        assert [ref.step for ref in moved.opened] == [2]
        assert open_rows(log)[3]["claim"] == holder.ask.token

    def test_an_ended_run_still_takes_the_result_of_a_step_that_was_under_way(self, log: SqlLog) -> None:
        """What happened in the world is recorded, even after the run's end."""
        fan_out(log)
        late = claim(log, step=3)
        write(log, "r", failed(3), claim=claim(log, step=2).ask, park=True)
        write(log, "r", result(3), claim=late.ask)
        assert kinds(log.events("r"))[-2:] == ["run_failed", "tool_result"]
        assert log.look("r").row.status == "failed"
        assert list(open_rows(log)) == [2]


class TestProjections:
    def test_the_row_says_where_the_run_stands(self, log: SqlLog) -> None:
        """Lists and waiters read the row alone; it must never tell another story than the log."""
        log.submit([NewRun("r", "oncall", "")])
        told = []
        for fact in (
            STARTED,
            decision(1, "read_logs"),
            Fact("approval_requested", {"call_id": "call_2"}, 2),
            Fact("approval_granted", {"call_id": "call_2"}, 2),
            result(2),
            decision(3, text="done"),
            finished(3),
            Fact("user_message", {"text": "more"}),
            Fact("run_cancelled", {"by": "ops"}),
        ):
            write(log, "r", fact)
            told.append(log.look("r").row.status)
        running, paused = "running", "paused"
        assert told == [running, running, paused, running, running, running, "completed", running, "cancelled"]

    def test_the_head_is_the_last_events_place(self, log: SqlLog) -> None:
        """The head is what every later decision is fenced by."""
        log.submit([NewRun("r", "oncall", "")])
        assert log.look("r").row.head_seq == -1
        write(log, "r", STARTED, decision(1, "read_logs"), result(2))
        assert log.look("r").row.head_seq == 2
        assert _row(log)["state_seq"] == 2

    def test_the_terms_are_written_once_and_kept(self, log: SqlLog) -> None:
        """Code deployed later does not change what a run was started under."""
        fan_out(log)
        assert _row(log)["terms"] == TERMS.to_json()
        assert log.look("r").run.terms == TERMS

    def test_a_failure_is_told_until_the_run_goes_on(self, log: SqlLog) -> None:
        """`drangue runs` shows why a run failed; a redriven one has no failure to show."""
        fan_out(log)
        write(log, "r", failed(3, "no more credit"), claim=claim(log, step=2).ask, park=True)
        row = log.look("r").row
        assert (row.status, row.error) == ("failed", "no more credit")
        assert row.finished_at is not None
        write(log, "r", resumed(), reopen=True)
        row = log.look("r").row
        assert (row.status, row.error, row.finished_at) == ("running", None, None)

    def test_a_late_result_does_not_wipe_out_why_the_run_failed(self, log: SqlLog) -> None:
        """A sibling that ends after the failure must leave the operator its reason."""
        fan_out(log)
        late = claim(log, step=3)
        write(log, "r", failed(3, "no more credit"), claim=claim(log, step=2).ask, park=True)
        write(log, "r", result(3), claim=late.ask)
        row = log.look("r").row
        assert (row.status, row.error) == ("failed", "no more credit")

    def test_a_reason_that_no_database_can_hold_is_escaped(self, log: SqlLog) -> None:
        """A provider's message may hold any byte; a failure that cannot be recorded would be tried for ever."""
        start(log)
        write(log, "r", failed(0, "broken \x00 pipe \udc80"), claim=claim(log).ask, park=True)
        assert log.look("r").row.error == log.events("r")[-1].payload["error"] == "broken \\u0000 pipe \\udc80"

    def test_a_run_ended_when_its_end_was_written(self, log: SqlLog) -> None:
        """A late result of a sibling does not move the end; a later turn has an end of its own."""
        fan_out(log)
        late = claim(log, step=3)
        write(log, "r", result(2), finished(3), claim=claim(log, step=2).ask)
        elapse(log, 100)
        ended = log.look("r").row.finished_at
        write(log, "r", result(3), claim=late.ask)
        assert log.look("r").row.finished_at == ended
        write(log, "r", Fact("user_message", {"text": "more"}))
        assert log.look("r").row.finished_at is None
        write(log, "r", finished(3))
        assert log.look("r").row.finished_at == pytest.approx(ended + 100, abs=10)

    def test_an_end_in_the_same_breath_as_a_new_beginning_is_a_new_end(self, log: SqlLog) -> None:
        """A run redriven only to meet its ceiling again ended now, not when it ended first."""
        start(log)
        write(log, "r", finished(0))
        elapse(log, 100)
        ended = log.look("r").row.finished_at
        write(log, "r", resumed(), finished(0))
        assert log.look("r").row.finished_at == pytest.approx(ended + 100, abs=10)
        write(log, "r", failed(0), resumed())
        row = log.look("r").row
        assert (row.status, row.error, row.finished_at) == ("running", None, None)

    def test_a_move_says_when_the_run_needs_a_coordinator_again(self, log: SqlLog) -> None:
        """None is a run that needs nobody but its steps: no sweep may load it meanwhile."""
        start(log)
        assert log.look("r").row.wake_at is None
        write(log, "r", NOTE, wake_in_s=30.0)
        look = log.look("r")
        assert look.row.wake_at == pytest.approx(look.now + 30, abs=5)
        write(log, "r", NOTE)
        assert log.look("r").row.wake_at is None

    def test_every_write_dates_the_row(self, log: SqlLog) -> None:
        """An operator sorts stuck runs by when they last moved."""
        start(log)
        elapse(log, 100)
        before = log.look("r").row
        write(log, "r", NOTE)
        after = log.look("r").row
        assert after.created_at == before.created_at
        assert after.updated_at == pytest.approx(before.updated_at + 100, abs=10)

    def test_a_snapshot_of_a_newer_version_is_left_alone(self, log: SqlLog) -> None:
        """An old worker in a deploy appends its event; the snapshot it cannot read belongs to the new ones."""
        fan_out(log)
        sql(log, """update runs set state = '{"v": 99, "mine": true}'""")
        write(log, "r", result(2), claim=claim(log, step=2).ask)
        row = _row(log)
        assert (row["state"], row["state_seq"], row["head_seq"]) == ({"v": 99, "mine": True}, 1, 2)
        assert log.look("r").run == whole(log)


class TestUniqueness:
    @pytest.mark.parametrize("fact", [decision(1), result(2), begun(2)], ids=lambda fact: fact.type)
    def test_what_can_happen_once_cannot_be_written_twice(self, log: SqlLog, fact: Fact) -> None:
        """Below every lock and token the database itself keeps one result per step and one beginning per attempt."""
        start(log)
        write(log, "r", fact)
        before = stored(log)
        with pytest.raises(IMPOSSIBLE):
            write(log, "r", fact)
        assert stored(log) == before

    def test_a_second_one_is_impossible_within_one_move_too(self, log: SqlLog) -> None:
        """All of the move is refused, with whatever else it held."""
        fan_out(log)
        claimed = claim(log, step=2)
        before = stored(log)
        with pytest.raises(IMPOSSIBLE):
            write(log, "r", result(2, "one"), result(2, "two"), opens=(model(4),), claim=claimed.ask)
        assert stored(log) == before

    def test_another_step_another_run_and_another_attempt_are_not_the_same(self, log: SqlLog) -> None:
        """The identity is logical, never a place in the log."""
        start(log, "r")
        start(log, "s")
        write(log, "r", decision(1), decision(2), result(2), result(3), begun(3), begun(3, attempt=2))
        write(log, "s", decision(1), result(2), begun(3))
        assert len(log.events("r")) == 7
        assert len(log.events("s")) == 4

    def test_other_facts_may_repeat(self, log: SqlLog) -> None:
        """A run may be asked, fail and finish more than once; its lock guards those, not an index."""
        facts = (
            NOTE,
            resumed(),
            Fact("approval_requested", {"call_id": "call_2"}, 2),
            Fact("approval_granted", {"call_id": "call_2"}, 2),
            Fact("approval_expired", {"call_id": "call_2"}, 2),
            Fact("user_message", {"text": "more"}),
            Fact("outcome_requested", {"call_id": "call_2"}, 2),
            failed(2),
            finished(2),
        )
        start(log)
        write(log, "r", *facts, *facts)
        write(log, "r", *facts)
        assert kinds(log.events("r")) == ["run_started", *[fact.type for fact in facts] * 3]

    def test_what_the_database_refuses_is_told_in_drangues_own_words(self, log: SqlLog) -> None:
        """Nobody above the log imports a driver to catch its errors."""
        start(log)
        write(log, "r", decision(1))
        with pytest.raises(DrangueError):
            write(log, "r", decision(1))


def _row(log: SqlLog) -> dict[str, object]:
    return log.db.run(lambda c: dict(c.execute(select(runs)).mappings().one()))
