"""Leases: kept by those who work, given back by those who stop."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drangue_client.store.log import SqlLog
from drangue_client.store.values import Release, StepRef
from tests.contract.log_scenes import (
    LEASE_S,
    TOOL_QUEUE,
    ask,
    beside,
    claim,
    claim_all,
    elapse,
    failed,
    fan_out,
    open_rows,
    result,
    start,
    stored,
    write,
)


class TestRenew:
    def test_a_renewed_lease_runs_from_now(self, log: SqlLog) -> None:
        """A long step is safe from takeover for as long as its worker lives."""
        fan_out(log)
        claimed = claim(log, step=2)
        for _ in range(3):
            elapse(log, LEASE_S - 1)
            assert log.renew([claimed.ask], LEASE_S) == {claimed.ask.token}
        elapse(log, LEASE_S - 1)
        assert log.claim([ask(step=2, worker="w2")], LEASE_S) == [None]

    def test_a_lapsed_lease_that_nobody_took_over_is_renewed(self, log: SqlLog) -> None:
        """After a database that was away for a minute, every worker that lives keeps its work."""
        fan_out(log)
        claimed = claim(log, step=2)
        elapse(log, 60)
        assert log.renew([claimed.ask], LEASE_S) == {claimed.ask.token}
        assert log.claim([ask(step=2, worker="w2")], LEASE_S) == [None]
        assert log.recover(5.0) == []

    def test_a_lost_claim_is_missing_from_the_answer(self, log: SqlLog) -> None:
        """Whoever is missing must stop: somebody else does the step, or it is done."""
        fan_out(log, tools=4)
        taken, settled, released, mine = claim_all(log, 2, 3, 4, 5)
        elapse(log, LEASE_S + 1)
        successor = claim(log, step=2, worker="w2")
        write(log, "r", result(3), claim=settled.ask)
        log.release([Release(released.ask)])
        asks = [one.ask for one in (taken, settled, released, mine)]
        assert log.renew([*asks, ask(step=9), ask("nobody")], LEASE_S) == {mine.ask.token}
        row = open_rows(log)[2]
        assert (row["claim"], row["worker"]) == (successor.ask.token, "w2")

    def test_a_zombies_renewal_does_not_extend_its_successors_lease(self, log: SqlLog) -> None:
        """If the successor dies too, its step must become free in its own time."""
        fan_out(log)
        zombie = claim(log, step=2)
        elapse(log, LEASE_S + 1)
        claim(log, step=2, worker="w2")
        before = stored(log)
        assert log.renew([zombie.ask], 1000) == set()
        assert stored(log) == before

    def test_nothing_held_is_nothing_renewed(self, log: SqlLog) -> None:
        """The renewer's beat may fall between two steps."""
        assert log.renew([], LEASE_S) == set()

    def test_a_step_that_somebody_has_locked_is_reported_as_held_and_not_waited_for(self, postgres: SqlLog) -> None:
        """One row in the middle of its settling must neither hold up the other renewals nor be taken for lost."""
        fan_out(postgres)
        one, two = claim_all(postgres, 2, 3)
        elapse(postgres, 10)
        until = open_rows(postgres)
        asks = [one.ask, two.ask]
        held = beside(postgres, "select 1 from steps where step = 2", lambda: postgres.renew(asks, LEASE_S))
        assert held == {one.ask.token, two.ask.token}
        rows = open_rows(postgres)
        assert rows[2]["lease_until"] == until[2]["lease_until"]
        assert rows[3]["lease_until"] > until[3]["lease_until"] + 5


class TestRelease:
    def test_a_step_given_back_can_be_claimed_at_once(self, log: SqlLog) -> None:
        """A worker that drains hands its steps over; whoever gets the returned message goes on."""
        fan_out(log)
        claimed = claim(log, step=2)
        given_back = log.release([Release(claimed.ask)])
        assert given_back == [StepRef("r", 2, "tool", TOOL_QUEUE, 5, attempt=1)]
        row = open_rows(log)[2]
        assert (row["claim"], row["worker"], row["lease_until"], row["kill_at"]) == (None,) * 4
        assert (row["failures"], row["crashes"]) == (0, 0)
        assert claim(log, step=2, worker="w2").attempt == 2

    def test_a_delay_a_failure_and_its_category_are_kept_on_the_row(self, log: SqlLog) -> None:
        """Backoff is work in progress and never an event; an operator still sees why a step waits."""
        fan_out(log)
        claimed = claim(log, step=2)
        now = claimed.look.now
        ((ref,), events) = log.release([Release(claimed.ask, 30, True, "rate_limited")]), log.events("r")
        assert ref is not None
        row = open_rows(log)[2]
        assert (row["failures"], row["crashes"], row["category"]) == (1, 0, "rate_limited")
        assert row["available_at"] == pytest.approx(now + 30, abs=5)
        assert len(events) == 2

    def test_only_ones_own_claim_is_given_back(self, log: SqlLog) -> None:
        """A zombie that cleans up after itself must not throw its successor out."""
        fan_out(log)
        zombie = claim(log, step=2)
        elapse(log, LEASE_S + 1)
        claim(log, step=2, worker="w2")
        before = stored(log)
        strangers = [zombie.ask, replace(zombie.ask, step=3), ask(step=3), ask("nobody")]
        assert log.release([Release(one) for one in strangers]) == [None] * 4
        assert stored(log) == before

    def test_ones_own_lapsed_claim_can_be_given_back(self, log: SqlLog) -> None:
        """A drain that took longer than a lease still hands over at once, and is no crash."""
        fan_out(log)
        claimed = claim(log, step=2)
        elapse(log, LEASE_S + 1)
        assert log.release([Release(claimed.ask)])[0] is not None
        assert claim(log, step=2).crashes == 0

    def test_giving_back_twice_is_giving_back_once(self, log: SqlLog) -> None:
        """The answer may have been lost; a failure must not count twice."""
        fan_out(log)
        claimed = claim(log, step=2)
        first, second = log.release([Release(claimed.ask, failed=True)] * 2)
        assert first is not None
        assert second is None
        assert open_rows(log)[2]["failures"] == 1
        assert log.release([]) == []

    def test_a_worker_known_to_have_ended_gives_back_all_it_held(self, log: SqlLog) -> None:
        """Killing a pool's children at the end of a drain must not leave their steps to lapse."""
        fan_out(log, "r", tools=3)
        fan_out(log, "s")
        for run_id, step, worker in (("r", 2, "w1"), ("r", 3, "w2"), ("s", 3, "w1")):
            claim(log, run_id, step, worker)
        given_back = log.release_worker("w1")
        assert {(ref.run_id, ref.step, ref.attempt) for ref in given_back} == {("r", 2, 1), ("s", 3, 1)}
        assert log.release_worker("w1") == []
        assert open_rows(log)[3]["worker"] == "w2"
        again = claim(log, "r", 2)
        assert (again.attempt, again.failures, again.crashes) == (2, 0, 0)

    def test_the_children_that_hold_a_step_are_known(self, log: SqlLog) -> None:
        """And nobody else: not their worker itself, not a namesake's, not whoever has given it back."""
        fan_out(log, "r", tools=6)
        for step, worker in enumerate(("w.1.7", "w.1.7", "w.1.12", "w.1.9", "w.1", "w.11.7"), 2):
            claim(log, "r", step, worker)
        log.release_worker("w.1.9")
        assert log.holders("w.1") == ["w.1.12", "w.1.7"]
        assert log.holders("w.11") == ["w.11.7"]

    @pytest.mark.parametrize("how", ["its worker ended", "it was interrupted"])
    def test_an_interrupted_step_keeps_its_place(self, log: SqlLog, how: str) -> None:
        """It has waited its turn once: behind a backlog of hundreds a second turn would take minutes."""
        fan_out(log)
        elapse(log, 60)
        claimed = claim(log, step=2)
        before = open_rows(log)[2]
        if how == "its worker ended":
            (ref,) = log.release_worker("w1")
        else:
            (given_back,) = log.release([Release(claimed.ask, lost=True)])
            assert given_back is not None
            ref = given_back
        after = open_rows(log)[2]
        assert ref.urgent
        assert (after["sent_at"], after["available_at"]) == (before["sent_at"], before["available_at"])
        assert {one.step for one in log.queues(5.0)[0].doubtful} == {2, 3}

    def test_a_step_that_failed_lines_up_again(self, log: SqlLog) -> None:
        """Retries of a broken tool must not push aside what has not been tried once."""
        fan_out(log)
        elapse(log, 60)
        (ref,) = log.release([Release(claim(log, step=2).ask, failed=True)])
        assert ref is not None
        assert not ref.urgent
        assert [one.step for one in log.queues(5.0)[0].doubtful] == [3]


class TestOpenSteps:
    def test_a_process_sees_what_its_run_waits_for(self, log: SqlLog) -> None:
        """A run without a fleet is driven by its own process: what to start, what to wait for, what another holds."""
        fan_out(log, tools=4, executor="inline")
        claim(log, step=3, worker="other", executor="inline")
        log.release([Release(claim(log, step=4, executor="inline").ask, delay_s=30)])
        claim(log, step=5, lease_s=-1, executor="inline")
        seen = [(ref.step, delay_s, live) for ref, delay_s, live in log.open_steps("r")]
        assert [(step, live) for step, _, live in seen] == [(2, False), (3, True), (4, False), (5, False)]
        assert [delay for step, delay, _ in seen if step != 4] == [0.0, 0.0, 0.0]
        assert seen[2][1] == pytest.approx(30, abs=5)
        assert log.open_steps("r")[0][0].queue is None

    def test_an_ended_or_unknown_run_waits_for_nothing(self, log: SqlLog) -> None:
        """The parked step of a failed run is no work before the run is resumed."""
        start(log)
        write(log, "r", failed(0), claim=claim(log).ask, park=True)
        assert list(open_rows(log)) == [1]
        assert log.open_steps("r") == []
        assert log.open_steps("nobody") == []
