"""What a sweep finds: everything that stopped moving, and nothing that moves."""

from __future__ import annotations

import pytest

from drangue_client.store.log import SqlLog
from drangue_client.store.values import NewRun, Release, StepRef
from tests.contract.log_scenes import (
    LEASE_S,
    MODEL_QUEUE,
    NOTE,
    PATIENCE_S,
    STARTED,
    TOOL_QUEUE,
    ask,
    claim,
    claim_all,
    elapse,
    failed,
    fan_out,
    finished,
    open_rows,
    result,
    resumed,
    set_step,
    sql,
    start,
    tool,
    write,
)


def steps_of(refs: list[StepRef] | tuple[StepRef, ...]) -> list[tuple[str, int]]:
    return [(ref.run_id, ref.step) for ref in refs]


class TestWake:
    def test_a_run_that_is_due_is_found_and_not_again_before_patience_is_over(self, log: SqlLog) -> None:
        """The message of a submission may be lost; the run is started all the same, and without a storm."""
        log.submit([NewRun("due", "oncall", ""), NewRun("later", "oncall", "", wake_in_s=2)])
        assert [row.run_id for row in log.wake(PATIENCE_S)] == ["due"]
        assert log.wake(PATIENCE_S) == []
        elapse(log, 3)
        assert [row.run_id for row in log.wake(PATIENCE_S)] == ["later"]
        elapse(log, 3)
        assert [row.run_id for row in log.wake(PATIENCE_S)] == ["due"]

    def test_a_run_found_is_told_as_it_is(self, log: SqlLog) -> None:
        """Its message needs its priority; and it says when the run would be due again."""
        log.submit([NewRun("r", "oncall", "disk full", priority=1)])
        (row,) = log.wake(PATIENCE_S)
        assert row == log.look("r").row
        assert row.priority == 1
        assert row.wake_at == pytest.approx(row.created_at + PATIENCE_S, abs=5)

    def test_a_run_that_needs_nobody_is_left_alone(self, log: SqlLog) -> None:
        """A run whose steps are under way costs a sweep nothing."""
        start(log)
        elapse(log, 1000)
        assert log.wake(PATIENCE_S) == []
        write(log, "r", NOTE, wake_in_s=0)
        assert [row.run_id for row in log.wake(PATIENCE_S)] == ["r"]

    def test_a_run_that_no_fleet_serves_is_left_to_its_process(self, log: SqlLog) -> None:
        """Its agent may exist in that process only."""
        log.submit([NewRun("r", "oncall", "", executor="inline")])
        elapse(log, 1000)
        assert log.wake(PATIENCE_S) == []

    def test_an_ended_run_is_never_due(self, log: SqlLog) -> None:
        """A wake-up time left behind, by whoever wrote last, must not load an ended run for ever."""
        start(log)
        write(log, "r", finished(0), wake_in_s=0)
        elapse(log, 10)
        assert log.wake(PATIENCE_S) == []

    def test_the_longest_due_come_first(self, log: SqlLog) -> None:
        """Under a backlog nobody waits for ever."""
        for run_id in ("a", "b", "c", "d"):
            log.submit([NewRun(run_id, "oncall", "")])
            elapse(log, 1)
        assert {row.run_id for row in log.wake(PATIENCE_S, limit=2)} == {"a", "b"}
        assert {row.run_id for row in log.wake(PATIENCE_S, limit=2)} == {"c", "d"}

    def test_the_limit_holds_whatever_the_planner_thinks(self, postgres: SqlLog, database_url: str) -> None:
        """A limit inside an update is one only where the planner runs its subquery once; a small table tempts it."""
        postgres.submit([NewRun("first", "oncall", "")])
        sql(postgres, "analyze runs")
        postgres.submit([NewRun(f"r{n}", "oncall", "") for n in range(20)])
        assert len(postgres.wake(PATIENCE_S, limit=3)) == 3


class TestRecover:
    def test_a_lapsed_step_is_found_at_once_and_then_once_per_patience(self, log: SqlLog) -> None:
        """Its worker is dead, which is certain; that its new message was lost as well is only suspected."""
        fan_out(log)
        claim(log, step=2)
        assert log.recover(PATIENCE_S) == []
        elapse(log, LEASE_S + 0.1)
        assert log.recover(PATIENCE_S) == [StepRef("r", 2, "tool", TOOL_QUEUE, 5, attempt=1, sends=1, urgent=True)]
        assert log.recover(PATIENCE_S) == []
        elapse(log, 2 * PATIENCE_S - 1)
        assert log.recover(PATIENCE_S) == []
        elapse(log, 2)
        assert [ref.sends for ref in log.recover(PATIENCE_S)] == [2]
        elapse(log, 2 * PATIENCE_S + 1)
        assert log.recover(PATIENCE_S) == []

    def test_a_step_that_lapses_again_is_found_at_once_again(self, log: SqlLog) -> None:
        """A worker that outlived its lease and then died after all is recovered as fast as any."""
        fan_out(log)
        claimed = claim(log, step=2)
        for _ in range(3):
            elapse(log, LEASE_S + 1)
            assert len(log.recover(1000)) == 1
            assert log.recover(1000) == []
            log.renew([claimed.ask], LEASE_S)

    def test_a_step_whose_backoff_is_over_is_found_once(self, log: SqlLog) -> None:
        """Its message was not sent when it was given back; the sweep is its alarm clock."""
        fan_out(log)
        log.release([Release(claim(log, step=2).ask, delay_s=30, failed=True)])
        elapse(log, 29)
        assert log.recover(PATIENCE_S) == []
        elapse(log, 2)
        assert log.recover(PATIENCE_S) == [StepRef("r", 2, "tool", TOOL_QUEUE, 5, attempt=1, sends=1, urgent=False)]
        assert log.recover(PATIENCE_S) == []

    def test_a_step_given_back_at_once_is_not_found(self, log: SqlLog) -> None:
        """Who gave it back sends it; a second message would only be refused."""
        fan_out(log)
        log.release([Release(claim(log, step=2).ask)])
        elapse(log, 1)
        assert log.recover(PATIENCE_S) == []

    def test_steps_never_claimed_are_not_recovered(self, log: SqlLog) -> None:
        """Their messages may wait in a long queue; doubling a backlog would only lengthen it."""
        fan_out(log)
        elapse(log, 1000)
        assert log.recover(PATIENCE_S) == []

    def test_what_no_fleet_serves_is_left_to_its_process(self, log: SqlLog) -> None:
        """A step without a queue has nowhere to be sent."""
        fan_out(log, executor="inline")
        claim(log, step=2, executor="inline")
        log.release([Release(claim(log, step=3, executor="inline").ask, delay_s=5)])
        elapse(log, 1000)
        assert log.recover(PATIENCE_S) == []

    def test_an_ended_runs_steps_stay_where_they_are(self, log: SqlLog) -> None:
        """Its parked steps are history until somebody resumes it."""
        fan_out(log)
        claim(log, step=3)
        write(log, "r", failed(3), claim=claim(log, step=2).ask, park=True)
        elapse(log, 1000)
        assert log.recover(PATIENCE_S) == []

    def test_a_sweep_takes_no_more_than_it_was_asked_to(self, log: SqlLog) -> None:
        """After an outage the backlog is shared by all sweepers, a portion each."""
        fan_out(log, tools=5)
        claim_all(log, *range(2, 7))
        elapse(log, LEASE_S + 1)
        portions = [steps_of(log.recover(PATIENCE_S, limit=2)) for _ in range(4)]
        assert [len(portion) for portion in portions] == [2, 2, 1, 0]
        assert sorted(step for portion in portions for step in portion) == [("r", step) for step in range(2, 7)]


class TestMarking:
    def test_a_sending_that_failed_is_tried_again_at_once(self, log: SqlLog) -> None:
        """Redis was away: its return, not a patience that grew meanwhile, ends the wait."""
        fan_out(log)
        claim(log, step=2)
        log.release([Release(claim(log, step=3).ask, delay_s=1)])
        elapse(log, LEASE_S + 1)
        for _ in range(3):
            found = log.recover(PATIENCE_S)
            assert steps_of(found) == [("r", 2), ("r", 3)]
            assert [ref.sends for ref in found] == [1, 1]
            log.mark_unsent(found)
        assert [row["sends"] for row in open_rows(log).values()] == [0, 0]

    def test_a_failed_sending_is_tried_again_at_once_however_old_the_step_is(self, log: SqlLog) -> None:
        """A run may have waited for days when the queue goes away."""
        fan_out(log)
        claim(log, step=2)
        log.release([Release(claim(log, step=3).ask, delay_s=1)])
        elapse(log, 5 * 86_400)
        found = log.recover(PATIENCE_S)
        assert steps_of(found) == [("r", 2), ("r", 3)]
        log.mark_unsent(found)
        assert steps_of(log.recover(PATIENCE_S)) == [("r", 2), ("r", 3)]

    def test_a_resent_step_counts_its_sendings(self, log: SqlLog) -> None:
        """The count makes each message's id its own, and patience grow."""
        fan_out(log)
        refs = [StepRef("r", step, "tool", TOOL_QUEUE, 5) for step in (2, 3)]
        refs = log.mark_sent(refs)
        refs[:1] = log.mark_sent(refs[:1])
        assert [ref.sends for ref in refs] == [2, 1]
        assert [row["sends"] for row in open_rows(log).values()] == [2, 1]
        log.mark_unsent(refs)
        log.mark_unsent(refs)
        assert [row["sends"] for row in open_rows(log).values()] == [0, 0]

    def test_of_two_who_send_the_same_step_again_one_does(self, log: SqlLog) -> None:
        """Both have looked before either had marked it; and who has claimed it meanwhile needs no message."""
        fan_out(log)
        refs = [StepRef("r", step, "tool", TOOL_QUEUE, 5) for step in (2, 3)]
        claim(log, step=3)
        assert steps_of(log.mark_sent(refs)) == [("r", 2)]
        assert log.mark_sent(refs) == []

    def test_marking_what_is_gone_changes_nothing(self, log: SqlLog) -> None:
        """A step may be settled between its finding and its sending."""
        fan_out(log, tools=1)
        ref = StepRef("r", 2, "tool", TOOL_QUEUE, 5)
        write(log, "r", result(2), claim=claim(log, step=2).ask)
        log.mark_sent([ref])
        log.mark_unsent([ref])
        log.mark_sent([])
        log.mark_unsent([])
        assert open_rows(log) == {}


class TestQueues:
    def test_a_step_unclaimed_for_long_is_in_doubt(self, log: SqlLog) -> None:
        """A message lost with its worker or its Redis leaves no other trace than this."""
        fan_out(log, tools=3)
        elapse(log, PATIENCE_S - 1)
        assert log.queues(PATIENCE_S) == []
        claim(log, step=3)
        elapse(log, 2)
        (state,) = log.queues(PATIENCE_S)
        assert (state.queue, state.unclaimed, steps_of(state.doubtful)) == (TOOL_QUEUE, 2, [("r", 2), ("r", 4)])

    def test_doubt_grows_with_every_sending(self, log: SqlLog) -> None:
        """If nobody serves a queue, its steps must not be sent again and again at one pace."""
        fan_out(log, tools=1)
        ref = StepRef("r", 2, "tool", TOOL_QUEUE, 5)
        for sends in range(1, 3):
            (ref,) = log.mark_sent([ref])
            elapse(log, PATIENCE_S * 2**sends - 1)
            assert log.queues(PATIENCE_S) == []
            elapse(log, 2)
            assert [one.sends for state in log.queues(PATIENCE_S) for one in state.doubtful] == [sends]

    def test_doubt_does_not_grow_for_ever(self, log: SqlLog) -> None:
        """When workers come back after a night, no step waits for days; nor may the doubling overflow."""
        fan_out(log, tools=1)
        set_step(log, "r", 2, sends=100)
        elapse(log, PATIENCE_S * 4 - 1)
        assert log.queues(PATIENCE_S) == []
        elapse(log, 2)
        assert len(log.queues(PATIENCE_S)) == 1

    def test_the_count_is_of_what_could_be_claimed_now(self, log: SqlLog) -> None:
        """It is compared with the messages in the queue: a step in backoff, claimed or ended has none to miss."""
        fan_out(log, tools=5)
        claim(log, step=2)
        log.release([Release(claim(log, step=3).ask, delay_s=60)])
        fan_out(log, "ended", tools=2)
        write(log, "ended", failed(3), claim=claim(log, "ended", 2).ask, park=True)
        fan_out(log, "inline", executor="inline")
        elapse(log, PATIENCE_S + 1)
        fan_out(log, "fresh", tools=1)
        (state,) = log.queues(PATIENCE_S)
        assert steps_of(state.doubtful) == [("r", 4), ("r", 5), ("r", 6)]
        assert state.unclaimed == 4

    def test_queues_are_told_apart(self, log: SqlLog) -> None:
        """Each has its own workers and its own backlog."""
        fan_out(log, "r", tools=1)
        start(log, "s")
        elapse(log, PATIENCE_S + 1)
        states = {state.queue: (state.unclaimed, steps_of(state.doubtful)) for state in log.queues(PATIENCE_S)}
        assert states == {TOOL_QUEUE: (1, [("r", 2)]), MODEL_QUEUE: (1, [("s", 1)])}

    def test_one_queues_backlog_does_not_hide_anothers_lost_step(self, log: SqlLog) -> None:
        """A long queue is in doubt for hours and is right to be; a lost step elsewhere must still be seen."""
        fan_out(log, "busy", tools=4)
        elapse(log, 1)
        start(log, "lost")
        elapse(log, PATIENCE_S + 1)
        states = {state.queue: steps_of(state.doubtful) for state in log.queues(PATIENCE_S, limit=3)}
        assert states == {TOOL_QUEUE: [("busy", 2), ("busy", 3), ("busy", 4)], MODEL_QUEUE: [("lost", 1)]}

    def test_what_is_not_to_be_sent_yet_hides_nothing(self, log: SqlLog) -> None:
        """A provider is down for an hour: what waits for it is older than the step whose message was lost."""
        fan_out(log, "later", tools=9)
        log.release([Release(held.ask, delay_s=3600) for held in claim_all(log, *range(2, 11), run_id="later")])
        elapse(log, 1)
        fan_out(log, "lost", tools=1)
        elapse(log, PATIENCE_S + 1)
        (state,) = log.queues(PATIENCE_S, limit=1)
        assert (steps_of(state.doubtful), state.unclaimed) == ([("lost", 2)], 1)

    def test_what_failed_runs_keep_hides_nothing_and_is_found_when_they_go_on(self, log: SqlLog) -> None:
        """They may be many, each with all the calls that its model had asked for, and wait for months."""
        for run_id in ("a", "b", "c"):
            fan_out(log, run_id, tools=4)
            write(log, run_id, failed(2), claim=claim(log, run_id, 2).ask, park=True)
        elapse(log, 1)
        fan_out(log, "lost", tools=1)
        elapse(log, PATIENCE_S + 1)
        (state,) = log.queues(PATIENCE_S, limit=1)
        assert (steps_of(state.doubtful), state.unclaimed) == ([("lost", 2)], 1)
        write(log, "b", resumed(), reopen=True)
        elapse(log, PATIENCE_S + 1)
        (state,) = log.queues(PATIENCE_S)
        assert steps_of(state.doubtful) == [("lost", 2), ("b", 2), ("b", 3), ("b", 4), ("b", 5)]
        assert {held.ask.step for held in claim_all(log, *range(2, 6), run_id="b")} == {2, 3, 4, 5}

    def test_the_longest_unheard_of_come_first(self, log: SqlLog) -> None:
        """The oldest is the likeliest to be lost."""
        log.submit([NewRun("r", "oncall", "")])
        write(log, "r", STARTED)
        for step in (4, 2, 3):
            write(log, "r", NOTE, opens=(tool(step),))
            elapse(log, 1)
        elapse(log, PATIENCE_S + 1)
        (state,) = log.queues(PATIENCE_S)
        assert steps_of(state.doubtful) == [("r", 4), ("r", 2), ("r", 3)]

    def test_a_step_that_is_claimed_is_in_no_doubt(self, log: SqlLog) -> None:
        """Its message arrived; if its worker dies, its lease tells."""
        fan_out(log, tools=1)
        claim(log, step=2, lease_s=LEASE_S)
        elapse(log, 1000)
        assert log.queues(PATIENCE_S) == []
        assert log.claim([ask(step=2)], LEASE_S)[0] is not None
