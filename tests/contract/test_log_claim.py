"""Claiming and beginning: who may do a step, what they are told, and what may never be begun twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drangue_client.events import Fact
from drangue_client.store.log import SqlLog
from drangue_client.store.values import Ask, Executor, Release
from tests.contract.log_scenes import (
    LEASE_S,
    NOTE,
    TERMS,
    ask,
    begun,
    beside,
    claim,
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
    set_step,
    sql,
    start,
    stored,
    whole,
    write,
)


class TestWhoMayClaim:
    def test_a_free_step_is_claimed_by_one(self, log: SqlLog) -> None:
        """A doubled message finds nothing to do."""
        fan_out(log)
        first = claim(log, step=2)
        before = stored(log)
        assert log.claim([ask(step=2, worker="w2"), ask(step=2, worker="w1")], LEASE_S) == [None, None]
        assert stored(log) == before
        row = open_rows(log)[2]
        assert (row["claim"], row["worker"]) == (first.ask.token, "w1")

    def test_a_lapsed_claim_can_be_taken_over(self, log: SqlLog) -> None:
        """A worker that was killed renews no lease; its step goes on elsewhere within seconds."""
        fan_out(log)
        claim(log, step=2)
        elapse(log, LEASE_S - 1)
        assert log.claim([ask(step=2, worker="w2")], LEASE_S) == [None]
        elapse(log, 2)
        assert claim(log, step=2, worker="w2").attempt == 2

    def test_ones_own_token_claims_again_and_counts_once(self, log: SqlLog) -> None:
        """The answer to a claim may be lost on its way; asking again must not look like a crash."""
        fan_out(log)
        mine = claim(log, step=2)
        again = log.claim([mine.ask], LEASE_S)[0]
        elapse(log, LEASE_S + 1)
        late = log.claim([mine.ask], LEASE_S)[0]
        for other in (again, late):
            assert other is not None
            assert (other.attempt, other.crashes, other.failures) == (1, 0, 0)
        assert log.claim([ask(step=2, worker="w2")], LEASE_S) == [None]

    def test_ones_own_token_is_worth_nothing_once_somebody_else_has_claimed(self, log: SqlLog) -> None:
        """The successor is at work: the zombie must not take its step back."""
        fan_out(log)
        mine = claim(log, step=2)
        elapse(log, LEASE_S + 1)
        claim(log, step=2, worker="w2")
        assert log.claim([mine.ask], LEASE_S) == [None]

    def test_a_step_in_backoff_cannot_be_claimed_before_it_is_due(self, log: SqlLog) -> None:
        """A doubled message must not cut short the pause that a provider asked for."""
        fan_out(log)
        log.release([Release(claim(log, step=2).ask, delay_s=30, failed=True)])
        assert log.claim([ask(step=2)], LEASE_S) == [None]
        elapse(log, 31)
        assert claim(log, step=2).attempt == 2

    @pytest.mark.parametrize(("run_id", "step"), [("nobody", 1), ("r", 7), ("r", 1)])
    def test_what_is_not_open_cannot_be_claimed(self, log: SqlLog, run_id: str, step: int) -> None:
        """A message may be wrong, or arrive after its step has been settled."""
        fan_out(log)
        assert log.claim([ask(run_id, step)], LEASE_S) == [None]

    @pytest.mark.parametrize(
        "end", [failed(3), finished(3), Fact("run_cancelled", {"by": "ops"}, 3)], ids=lambda end: end.type
    )
    def test_a_step_of_an_ended_run_cannot_be_claimed(self, log: SqlLog, end: Fact) -> None:
        """Nobody wants the effects of a run that is over."""
        fan_out(log)
        claim(log, step=3)
        write(log, "r", end)
        elapse(log, LEASE_S + 1)
        assert log.claim([ask(step=2), ask(step=3)], LEASE_S) == [None, None]

    @pytest.mark.parametrize(("owner", "stranger"), [("celery", "inline"), ("inline", "celery")])
    def test_a_step_is_given_to_the_runs_own_executor_only(
        self, log: SqlLog, owner: Executor, stranger: Executor
    ) -> None:
        """A fleet has not a process's agent, nor a process the fleet's tools: neither may touch the other's run."""
        fan_out(log, executor=owner)
        before = stored(log)
        assert log.claim([replace(ask(step=2), executor=stranger)], LEASE_S) == [None]
        assert stored(log) == before
        assert claim(log, step=2, executor=owner).look.row.executor == owner

    def test_a_paused_runs_free_step_can_be_claimed(self, log: SqlLog) -> None:
        """Siblings that need nobody run while a person is asked."""
        fan_out(log)
        write(log, "r", Fact("approval_requested", {"call_id": "call_3"}, 3))
        assert claim(log, step=2).look.row.status == "running"

    def test_a_batch_answers_in_the_order_it_asked(self, log: SqlLog) -> None:
        """Strangers share a batch; each finds its own answer at the place of its question."""
        fan_out(log, "a")
        fan_out(log, "b")
        asks = [ask("b", 3), ask("nobody", 1), ask("a", 2), ask("b", 2), ask("a", 2)]
        claims = log.claim(asks, LEASE_S)
        assert [one.ask if one else None for one in claims] == [asks[0], None, asks[2], asks[3], None]
        assert [one.look.row.run_id for one in claims if one] == ["b", "a", "b"]
        assert log.claim([], LEASE_S) == []


class TestCounters:
    def test_attempts_failures_and_crashes_are_counted_apart(self, log: SqlLog) -> None:
        """A retry policy looks at failures, the poison ceiling at crashes; a drain is neither."""
        fan_out(log)
        counts = []

        def claimed() -> Ask:
            one = claim(log, step=2)
            counts.append((one.attempt, one.failures, one.crashes))
            return one.ask

        log.release([Release(claimed())])  # a drain
        log.release([Release(claimed(), failed=True)])  # a retryable error
        claimed()  # a crash
        elapse(log, LEASE_S + 1)
        log.release([Release(claimed())])
        claimed()
        assert counts == [(1, 0, 0), (2, 0, 0), (3, 1, 0), (4, 1, 1), (5, 1, 1)]

    def test_a_claim_forgets_how_often_its_message_was_sent(self, log: SqlLog) -> None:
        """Patience that grew while a queue was long must not delay the next recovery."""
        fan_out(log)
        claimed = claim(log, step=2)
        elapse(log, LEASE_S + 1)
        assert len(log.recover(5.0)) == 1
        elapse(log, 11)
        assert len(log.recover(5.0)) == 1
        assert open_rows(log)[2]["sends"] == 2
        claim(log, step=2, worker="w2")
        assert open_rows(log)[2]["sends"] == 0
        assert claimed.attempt == 1


class TestWhatAClaimTells:
    def test_a_model_step_is_told_the_whole_log(self, log: SqlLog) -> None:
        """The conversation is folded from it, and must be sent anyway."""
        start(log)
        claimed = claim(log)
        assert (claimed.kind, claimed.name, claimed.outcome) == ("model", None, None)
        assert claimed.events == tuple(log.events("r"))
        assert claimed.facts == ()

    def test_a_tool_step_is_told_the_decision_that_asked_for_it(self, log: SqlLog) -> None:
        """The arguments are in the decision; nothing else of the log is needed."""
        fan_out(log, tools=3)
        write(log, "r", result(2), claim=claim(log, step=2).ask)
        claimed = claim(log, step=4)
        assert (claimed.kind, claimed.name) == ("tool", "read_logs")
        assert claimed.decision == log.events("r")[1]
        assert (claimed.events, claimed.facts) == ((), ())

    def test_a_tool_step_of_a_later_decision_is_told_that_one(self, log: SqlLog) -> None:
        """Step numbers go on through a run, and every call belongs to the latest decision before it."""
        fan_out(log, tools=1)
        write(log, "r", result(2), opens=(model(3),), claim=claim(log, step=2).ask)
        opens = tuple(replace(model(step), kind="tool", name="read_logs") for step in (4, 5))
        write(log, "r", decision(3, "read_logs", "read_logs"), opens=opens, claim=claim(log, step=3).ask)
        claimed = claim(log, step=5)
        assert claimed.decision is not None
        assert claimed.decision.step == 3

    def test_a_step_is_told_its_own_facts(self, log: SqlLog) -> None:
        """A beginning, a verdict and the granted arguments decide what the claimer may do, whoever wrote them."""
        fan_out(log, name="restart")
        write(log, "r", Fact("approval_requested", {"call_id": "call_2"}, 2))
        write(log, "r", Fact("approval_granted", {"call_id": "call_2", "by": "ops", "arguments": {"host": "b"}}, 2))
        assert log.begin(claim(log, step=2).ask, begun(2))
        write(log, "r", Fact("approval_requested", {"call_id": "call_3"}, 3))
        elapse(log, LEASE_S + 1)
        claimed = claim(log, step=2, worker="w2")
        assert kinds(claimed.facts) == ["approval_requested", "approval_granted", "step_started"]
        assert claimed.facts == tuple(event for event in log.events("r") if event.step == 2)
        assert claimed.facts[1].payload["arguments"] == {"host": "b"}

    def test_a_claim_comes_with_the_run_as_it_stands(self, log: SqlLog) -> None:
        """The result is decided from it in the transaction that records it, without another read."""
        fan_out(log)
        assert log.begin(claim(log, step=2).ask, begun(2))
        write(log, "r", NOTE)
        claimed = claim(log, step=3)
        assert claimed.look.run == whole(log) == log.look("r").run
        assert claimed.look.row == log.look("r").row
        assert claimed.look.run.terms == TERMS
        assert log.look("r").now >= claimed.look.now >= claimed.look.row.created_at
        assert write(log, "r", result(3), claim=claimed.ask).verdict == "ok"

    def test_a_raw_outcome_comes_back(self, log: SqlLog) -> None:
        """An outcome kept before its screening is screened again, not produced again."""
        fan_out(log)
        set_step(log, "r", 2, outcome={"content": "π", "ok": True})
        assert claim(log, step=2).outcome == {"content": "π", "ok": True}
        assert claim(log, step=3).outcome is None

    def test_the_lease_runs_from_the_databases_now(self, log: SqlLog) -> None:
        """Every worker must agree on when a lease has lapsed, whatever its own clock says."""
        fan_out(log)
        claimed = claim(log, step=2, lease_s=30)
        assert open_rows(log)[2]["lease_until"] == pytest.approx(claimed.look.now + 30, abs=1)

    def test_a_locked_step_is_not_waited_for(self, postgres: SqlLog) -> None:
        """A locked step is being claimed, renewed or settled: waiting for it would hold a worker for nothing."""
        fan_out(postgres)
        asks = [ask(step=2), ask(step=3)]
        one, two = beside(postgres, "select 1 from steps where step = 2", lambda: postgres.claim(asks, LEASE_S))
        assert one is None
        assert two is not None


class TestBegin:
    def test_a_step_begins_once(self, log: SqlLog) -> None:
        """Irreversible means at most once: anything but "recorded by me, just now" is a stop."""
        fan_out(log, name="restart")
        claimed = claim(log, step=2)
        assert log.begin(claimed.ask, begun(2))
        before = stored(log)
        assert not log.begin(claimed.ask, begun(2))
        assert not log.begin(claimed.ask, begun(2, attempt=2))
        assert stored(log) == before

    def test_a_step_that_began_does_not_begin_again_under_a_later_claim(self, log: SqlLog) -> None:
        """Whether the first attempt acted before it died cannot be known from here."""
        fan_out(log, name="restart")
        assert log.begin(claim(log, step=2).ask, begun(2))
        elapse(log, LEASE_S + 1)
        second = claim(log, step=2, worker="w2")
        assert kinds(second.facts) == ["step_started"]
        assert not log.begin(second.ask, begun(2, attempt=2))

    def test_only_the_claims_holder_begins(self, log: SqlLog) -> None:
        """A zombie that wakes up just before its effect must find the door shut."""
        fan_out(log, name="restart")
        zombie = claim(log, step=2)
        elapse(log, LEASE_S + 1)
        successor = claim(log, step=2, worker="w2")
        released = claim(log, step=3)
        log.release([Release(released.ask)])
        before = stored(log)
        assert not log.begin(zombie.ask, begun(2))
        assert not log.begin(released.ask, begun(3))
        assert not log.begin(ask(step=3), begun(3))
        assert not log.begin(ask(step=9), begun(9))
        assert stored(log) == before
        assert log.begin(successor.ask, begun(2, attempt=2))

    def test_ones_own_token_begins_after_its_lease_has_lapsed(self, log: SqlLog) -> None:
        """As for settling: nobody has taken over, so nobody else can have begun."""
        fan_out(log, name="restart")
        claimed = claim(log, step=2)
        elapse(log, LEASE_S + 1)
        assert log.begin(claimed.ask, begun(2))

    def test_a_beginning_is_a_fact_that_every_later_decision_sees(self, log: SqlLog) -> None:
        """The head moves: whoever decided before the beginning decides again."""
        fan_out(log, name="restart")
        claimed = claim(log, step=2)
        assert log.begin(claimed.ask, begun(2))
        look = log.look("r")
        assert look.row.head_seq == claimed.look.row.head_seq + 1
        event = log.events("r")[-1]
        assert (event.seq, event.type, event.step) == (look.row.head_seq, "step_started", 2)
        assert log.settle([move(claimed.look, NOTE)])[0].verdict == "moved"
        assert write(log, "r", result(2), claim=claimed.ask).verdict == "ok"

    def test_steps_begin_apart(self, log: SqlLog) -> None:
        """One call's beginning says nothing about another's."""
        fan_out(log, "r", name="restart")
        fan_out(log, "s", name="restart")
        for run_id, step in (("r", 2), ("r", 3), ("s", 2)):
            assert log.begin(claim(log, run_id, step).ask, begun(step))

    def test_a_run_nobody_knows_does_not_begin(self, log: SqlLog) -> None:
        """A run may be removed under a worker's hands; its call must not act, and its worker not trip."""
        fan_out(log, name="restart")
        claimed = claim(log, step=2)
        sql(log, "delete from runs")
        assert not log.begin(claimed.ask, begun(2))
