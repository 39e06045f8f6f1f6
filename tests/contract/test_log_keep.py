"""What a step's row remembers between attempts: its outcome before it is judged, what was tried, what was lost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from drangue_client.store.log import SqlLog
from drangue_client.store.values import Ask, NewRun, Release
from tests.contract.log_scenes import (
    LEASE_S,
    ask,
    claim,
    claim_all,
    elapse,
    failed,
    fan_out,
    open_rows,
    result,
    resumed,
    start,
    stored,
    tool,
    write,
)

OUTCOME = {"content": '{"ok": true}', "ts": 12.5, "duration_ms": 3.25}
TRIES = ({"category": "transient", "error": "no route", "delay_s": 0.5},)


class TestKeep:
    def test_what_was_kept_is_told_to_whoever_claims_the_step_next(self, log: SqlLog) -> None:
        """A worker that dies while a result is judged must not have the tool run again for it."""
        fan_out(log)
        claimed = claim(log, step=2)
        assert claimed.outcome is None
        assert log.keep(claimed.ask, OUTCOME)
        elapse(log, LEASE_S + 1)
        assert claim(log, step=2, worker="w2").outcome == OUTCOME
        assert claim(log, step=3).outcome is None

    def test_what_was_kept_survives_being_given_back(self, log: SqlLog) -> None:
        """A guard that cannot be asked for a while: the judgement is put off, the call is over."""
        fan_out(log)
        claimed = claim(log, step=2)
        log.keep(claimed.ask, OUTCOME)
        log.release([Release(claimed.ask, failed=True, category="transient", tries=TRIES)])
        again = claim(log, step=2)
        assert (again.outcome, again.tries, again.failures) == (OUTCOME, TRIES, 1)

    def test_what_is_kept_leaves_the_story_of_the_call_as_it_is(self, log: SqlLog) -> None:
        """Its retries are part of the record; the guard that judges it has chances of its own all the same."""
        fan_out(log)
        for _ in range(2):
            log.release([Release(claim(log, step=2).ask, failed=True, tries=TRIES)])
        claimed = claim(log, step=2)
        log.keep(claimed.ask, OUTCOME)
        log.release([Release(claimed.ask)])
        again = claim(log, step=2)
        assert (claimed.failures, again.failures, again.tries) == (2, 2, TRIES)

    def test_what_was_kept_survives_the_runs_failure_and_its_redrive(self, log: SqlLog) -> None:
        """A guard that is broken fails the run; mending it must not send the money a second time."""
        fan_out(log)
        claimed = claim(log, step=2)
        log.keep(claimed.ask, OUTCOME)
        write(log, "r", failed(3), claim=claimed.ask, park=True)
        write(log, "r", resumed(), reopen=True, opens=(tool(2), tool(3)))
        assert claim(log, step=2).outcome == OUTCOME

    def test_ones_own_claim_keeps_after_its_lease_has_lapsed(self, log: SqlLog) -> None:
        """A slow tool that nobody took over has run, and that is worth remembering."""
        fan_out(log)
        claimed = claim(log, step=2)
        elapse(log, 100)
        assert log.keep(claimed.ask, OUTCOME)
        assert open_rows(log)[2]["outcome"] == OUTCOME

    @pytest.mark.parametrize("how", ["taken over", "settled", "released", "of another step", "of another run"])
    def test_a_claim_that_is_no_more_keeps_nothing(self, log: SqlLog, how: str) -> None:
        """A zombie's outcome beside its successor's attempt would be judged in place of the true one."""
        fan_out(log)
        fan_out(log, "s")
        token: Ask = claim(log, step=2).ask
        if how == "taken over":
            elapse(log, LEASE_S + 1)
            claim(log, step=2, worker="w2")
        elif how == "settled":
            write(log, "r", result(2), claim=token)
        elif how == "released":
            log.release([Release(token)])
        elif how == "of another step":
            token = replace(token, step=3)
        else:
            token = replace(token, run_id="s")
        before = stored(log)
        assert not log.keep(token, OUTCOME)
        assert stored(log) == before

    def test_keeping_again_replaces_and_is_safe(self, log: SqlLog) -> None:
        """The answer to the first keeping may have been lost on its way."""
        fan_out(log)
        claimed = claim(log, step=2)
        assert log.keep(claimed.ask, OUTCOME)
        assert log.keep(claimed.ask, OUTCOME)
        assert log.keep(claimed.ask, {**OUTCOME, "content": "two"})
        assert open_rows(log)[2]["outcome"] == {**OUTCOME, "content": "two"}

    @pytest.mark.parametrize("content", ["a\x00b", "\ud800", "é", "x" * 300_000], ids=["NUL", "half", "é", "long"])
    def test_whatever_a_tool_returned_can_be_kept(self, log: SqlLog, content: str) -> None:
        """An outcome that cannot be written would let the call be made again."""
        fan_out(log)
        claimed = claim(log, step=2)
        assert log.keep(claimed.ask, {"content": content, "ts": math.nan, "duration_ms": math.inf})
        kept = open_rows(log)[2]["outcome"]
        assert kept["content"].encode() == content.replace("\x00", "\\u0000").encode("utf-8", "backslashreplace")
        assert (kept["ts"], kept["duration_ms"]) == ("nan", "inf")

    def test_keeping_is_no_event_and_moves_no_run(self, log: SqlLog) -> None:
        """Nothing has been decided yet: a coordinator at the same moment must not have to decide again."""
        fan_out(log)
        claimed = claim(log, step=2)
        before = stored(log)
        log.keep(claimed.ask, OUTCOME)
        after = stored(log)
        assert (after["runs"], after["events"]) == (before["runs"], before["events"])
        assert log.settle([]) == []
        write(log, "r", result(2), claim=claimed.ask)
        assert list(open_rows(log)) == [3]


class TestTriesAndLosses:
    def test_a_fresh_step_has_tried_and_lost_nothing(self, log: SqlLog) -> None:
        """What a hard budget reserves for it is one call."""
        fan_out(log)
        claimed = claim(log, step=2)
        assert (claimed.tries, claimed.lost, claimed.crashes) == ((), 0, 0)

    def test_what_was_tried_is_told_to_the_next_attempt_and_kept_until_replaced(self, log: SqlLog) -> None:
        """The record of a step shows its failed attempts; a drain in between has nothing to add."""
        fan_out(log)
        log.release([Release(claim(log, step=2).ask, failed=True, tries=TRIES)])
        assert claim(log, step=3).tries == ()
        one = claim(log, step=2)
        log.release([Release(one.ask)])
        two = claim(log, step=2)
        assert (one.tries, two.tries) == (TRIES, TRIES)
        log.release([Release(two.ask, tries=(*two.tries, {"category": "timeout", "error": "a\x00b"}))])
        assert claim(log, step=2).tries == (*TRIES, {"category": "timeout", "error": "a\\u0000b"})

    def test_a_loss_is_counted_only_where_the_call_was_under_way(self, log: SqlLog) -> None:
        """A provider that refused to be asked so often has billed nothing; a call that was cut off may be billed."""
        fan_out(log)
        counts = []
        for release in ({}, {"failed": True}, {"lost": True}, {"failed": True, "lost": True}, {}):
            claimed = claim(log, step=2)
            counts.append((claimed.attempt, claimed.failures, claimed.lost))
            log.release([Release(claimed.ask, **release)])  # type: ignore[arg-type]
        assert counts == [(1, 0, 0), (2, 0, 0), (3, 1, 0), (4, 1, 1), (5, 2, 2)]

    def test_a_crash_is_a_loss_and_a_loss_no_crash(self, log: SqlLog) -> None:
        """Either may have been billed; the poison ceiling counts crashes, and a drain must not bring a step nearer."""
        fan_out(log)
        claim(log, step=2)
        elapse(log, LEASE_S + 1)
        crashed = claim(log, step=2, worker="w2")
        log.release([Release(crashed.ask, lost=True)])
        drained = claim(log, step=2)
        assert [(one.crashes, one.lost) for one in (crashed, drained)] == [(1, 1), (1, 2)]

    def test_a_claim_that_was_lost_counts_nothing(self, log: SqlLog) -> None:
        """The zombie's call was counted as a crash when its step was taken over."""
        fan_out(log)
        zombie = claim(log, step=2)
        elapse(log, LEASE_S + 1)
        claim(log, step=2, worker="w2")
        before = stored(log)
        assert log.release([Release(zombie.ask, failed=True, lost=True, tries=TRIES)]) == [None]
        assert stored(log) == before

    def test_every_step_of_a_worker_that_ended_is_lost_and_no_other(self, log: SqlLog) -> None:
        """Its processes were killed in the middle of whatever they were at."""
        fan_out(log, tools=3)
        claim_all(log, 2, 3)
        claim(log, step=4, worker="w2")
        assert sorted(ref.step for ref in log.release_worker("w1")) == [2, 3]
        assert [row["lost"] for row in open_rows(log).values()] == [1, 1, 0]
        assert log.release_worker("w1") == []
        assert [row["lost"] for row in open_rows(log).values()] == [1, 1, 0]

    def test_the_step_that_failed_a_run_is_redriven_as_if_it_were_new(self, log: SqlLog) -> None:
        """A person's redrive gives it new chances; what it lost was recorded with the failure, and counts once."""
        start(log)
        claim(log)
        elapse(log, LEASE_S + 1)
        log.release([Release(claim(log, worker="w2").ask, failed=True, lost=True, tries=TRIES)])
        write(log, "r", failed(0), claim=claim(log).ask, park=True)
        write(log, "r", resumed(), reopen=True)
        claimed = claim(log)
        assert (claimed.attempt, claimed.failures, claimed.crashes, claimed.lost) == (4, 0, 0, 0)
        assert claimed.tries == ()

    def test_a_step_beside_the_one_that_failed_a_run_forgets_no_loss(self, log: SqlLog) -> None:
        """It has settled nothing yet, so nothing of it is in the log."""
        fan_out(log)
        claim(log, step=3)
        elapse(log, LEASE_S + 1)
        log.release([Release(claim(log, step=3, worker="w2").ask, failed=True, lost=True)])
        write(log, "r", failed(3), claim=claim(log, step=2).ask, park=True)
        write(log, "r", resumed(), reopen=True)
        beside = claim(log, step=3)
        assert (beside.failures, beside.crashes, beside.lost) == (0, 0, 2)

    def test_losses_are_no_reason_to_wait(self, log: SqlLog) -> None:
        """Whatever is remembered of it, a step that was given back is free at once."""
        fan_out(log)
        log.release([Release(claim(log, step=2).ask, lost=True, tries=TRIES)])
        assert claim(log, step=2, worker="w2").attempt == 2


class TestOverrides:
    GIVEN: dict[str, Any] = {"output_schema": {"type": "array"}, "turn_id": "t1", "tokens": True}  # noqa: RUF012

    def test_what_a_run_was_submitted_with_is_on_its_row(self, log: SqlLog) -> None:
        """Its first coordinator merges it into the terms, whichever process that is."""
        row, _ = log.submit([NewRun("r", "oncall", "", overrides=self.GIVEN)])[0]
        assert row.overrides == self.GIVEN
        assert log.look("r").row.overrides == self.GIVEN
        assert log.runs()[0].overrides == self.GIVEN

    def test_most_runs_are_submitted_with_nothing(self, log: SqlLog) -> None:
        """And readers look things up in it all the same."""
        start(log)
        assert log.look("r").row.overrides == {}

    def test_submitting_again_does_not_change_them(self, log: SqlLog) -> None:
        """The run may have started under them; the second caller is told how it was."""
        log.submit([NewRun("r", "oncall", "", overrides=self.GIVEN)])
        row, created = log.submit([NewRun("r", "oncall", "", overrides={"tokens": False})])[0]
        assert (created, row.overrides) == (False, self.GIVEN)
        assert log.look("r").row.overrides == self.GIVEN

    def test_what_no_database_can_hold_is_escaped(self, log: SqlLog) -> None:
        """A schema may come from a user's form."""
        schema = {"const": "a\x00b", "examples": (math.nan, "\ud800")}
        row, _ = log.submit([NewRun("r", "oncall", "", overrides={"output_schema": schema})])[0]
        assert row.overrides == {"output_schema": {"const": "a\\u0000b", "examples": ["nan", "\\ud800"]}}

    def test_a_claim_tells_them(self, log: SqlLog) -> None:
        """A worker asks them whether somebody watches."""
        start(log, overrides=self.GIVEN)
        assert claim(log).look.row.overrides == self.GIVEN
        assert log.claim([ask()], LEASE_S) == [None]
