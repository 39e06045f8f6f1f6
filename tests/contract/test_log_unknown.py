"""What the log knows of calls that were interrupted: how an attempt ended, who may make it anew, what nobody knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from drangue_client.errors import NotUnknownError
from drangue_client.events import Fact
from drangue_client.outcomes import unknown_outcome
from drangue_client.store.log import SqlLog
from drangue_client.store.values import KILLED, LAPSED, REAPED, Release
from drangue_client.turns import cancel
from drangue_client.unknowns import record_outcome
from tests.contract.log_scenes import (
    LEASE_S,
    at_once,
    begun,
    claim,
    decision,
    elapse,
    failed,
    fan_out,
    finished,
    kinds,
    open_rows,
    result,
    start,
    stored,
    tool,
    write,
)

CHILD, BESIDE, MAIN = "host/1.12", "host/1.123", "host/1"


def unknown(step: int) -> Fact:
    told = {"call_id": f"call_{step}", "name": "restart", "content": unknown_outcome("restart"), "unknown": True}
    return Fact("tool_result", told, step)


def wondered(step: int) -> Fact:
    told = {"call_id": f"call_{step}", "tool": "restart", "arguments": {}, "content": unknown_outcome("restart")}
    return Fact("outcome_requested", told, step)


def unknowns(log: SqlLog, **filters: Any) -> dict[str, int]:
    """The runs with an outcome that nobody knows, and how many."""
    return {row.run_id: row.unknown for row in log.runs(unknown=True, **filters)}


def give(log: SqlLog, step: int | None = None, happened: bool = True) -> dict[str, Any]:
    call_id = None if step is None else f"call_{step}"
    return record_outcome(log, "r", call_id, happened=happened, note="", by="ann", reason="")[0]


class TestTheDead:
    def test_what_a_dead_child_held_is_given_back_as_a_crash(self, log: SqlLog) -> None:
        """It counts towards the ceiling of a step that kills every process, and the next attempt knows that it died."""
        fan_out(log)
        claim(log, step=2, worker=CHILD)
        assert [ref.step for ref in log.release_worker(CHILD, REAPED)] == [2]
        row = open_rows(log)[2]
        assert [row[name] for name in ("claim", "worker", "lease_until", "crashes", "lost", "failures")] == [
            None,
            None,
            None,
            1,
            0,
            0,
        ]
        again = claim(log, step=2, worker=BESIDE)
        assert (again.attempt, again.crashes, again.lost, again.category) == (2, 1, 1, REAPED)
        log.release_worker(BESIDE, REAPED)
        assert claim(log, step=2, worker=CHILD).crashes == 2

    def test_it_takes_nothing_of_a_child_whose_id_merely_begins_alike(self, log: SqlLog) -> None:
        """A living process would lose its work, and an irreversible call be made beside its own."""
        fan_out(log, tools=5)
        workers = {3: BESIDE, 4: "host/1.1", 5: "host/1", 6: "otherhost/1.12"}
        claim(log, step=2, worker=CHILD)
        for step, worker in workers.items():
            claim(log, step=step, worker=worker)
        before = open_rows(log)
        assert [ref.step for ref in log.release_worker(CHILD, REAPED)] == [2]
        after = open_rows(log)
        assert {step: after[step] for step in workers} == {step: before[step] for step in workers}

    @pytest.mark.parametrize("category", ["drained", REAPED])
    def test_a_name_is_no_pattern(self, log: SqlLog, category: str) -> None:
        """Names hold underscores and percent signs, which a database would take for anything."""
        fan_out(log, tools=3)
        for step, worker in {2: "a_b/1.7", 3: "aXb/1.7", 4: "a%/1.7"}.items():
            claim(log, step=step, worker=worker)
        assert [ref.step for ref in log.release_worker("a_b/1", category)] == [2]
        assert [ref.step for ref in log.release_worker("a%", category)] == []

    def test_a_worker_that_is_told_to_end_gives_back_without_a_crash(self, log: SqlLog) -> None:
        """A deploy is no fault of the step's; and nothing is proven of a process that was let end."""
        fan_out(log)
        claim(log, step=2, worker=CHILD)
        claim(log, step=3, worker=BESIDE)
        assert sorted(ref.step for ref in log.release_worker(MAIN)) == [2, 3]
        again = claim(log, step=2)
        assert (again.crashes, again.lost, again.category) == (0, 1, "drained")

    def test_a_child_that_held_nothing_changes_nothing(self, log: SqlLog) -> None:
        """Pools end idle children all day."""
        fan_out(log)
        claim(log, step=2, worker=BESIDE)
        before = stored(log)
        assert (log.release_worker(CHILD, REAPED), stored(log) == before) == ([], True)

    @pytest.mark.parametrize("category", [KILLED, REAPED])
    def test_a_claim_over_a_lapsed_lease_proves_nothing(self, log: SqlLog, category: str) -> None:
        """Its holder may still be at it, and what was known of the attempt before says nothing about this one."""
        fan_out(log)
        first = claim(log, step=2, worker=CHILD)
        log.release([Release(first.ask, category=category)])
        assert claim(log, step=2, worker=BESIDE).category == category
        elapse(log, LEASE_S + 1)
        third = claim(log, step=2, worker="host/2.5")
        assert (third.attempt, third.category, third.crashes) == (3, LAPSED, 1)

    def test_a_claim_asked_for_again_knows_what_it_knew(self, log: SqlLog) -> None:
        """After a lost answer: neither a crash more nor a proof less."""
        fan_out(log)
        claim(log, step=2, worker=CHILD)
        log.release_worker(CHILD, REAPED)
        second = claim(log, step=2)
        elapse(log, LEASE_S + 1)
        repeated = log.claim([second.ask], LEASE_S)[0]
        assert repeated is not None
        assert (repeated.attempt, repeated.crashes, repeated.category) == (2, 1, REAPED)


class TestAgain:
    def test_a_call_that_is_known_to_have_had_no_effect_may_begin_again(self, log: SqlLog) -> None:
        """And only if its holder says so: the plain way stays shut."""
        fan_out(log, name="restart")
        first = claim(log, step=2, worker=CHILD)
        assert log.begin(first.ask, begun(2))
        log.release_worker(CHILD, REAPED)
        second = claim(log, step=2, worker=BESIDE)
        assert [fact.payload["attempt"] for fact in second.facts if fact.type == "step_started"] == [1]
        assert not log.begin(second.ask, begun(2, attempt=2))
        assert log.begin(second.ask, begun(2, attempt=2), again=True)
        began = [event.payload["attempt"] for event in log.events("r") if event.type == "step_started"]
        assert began == [1, 2]

    def test_one_attempt_begins_once(self, log: SqlLog) -> None:
        """Whoever is not sure that it has begun must not begin: the answer to the first may have been lost."""
        fan_out(log, name="restart")
        first = claim(log, step=2, worker=CHILD)
        log.begin(first.ask, begun(2))
        log.release_worker(CHILD, REAPED)
        second = claim(log, step=2, worker=BESIDE)
        assert log.begin(second.ask, begun(2, attempt=2), again=True)
        assert not log.begin(second.ask, begun(2, attempt=2), again=True)
        assert kinds(log.events("r")).count("step_started") == 2

    @pytest.mark.parametrize("why", ["another claim", "no claim", "cancelled", "failed"])
    def test_nothing_begins_again_that_would_not_begin(self, log: SqlLog, why: str) -> None:
        """It lifts one reason and no other."""
        fan_out(log, name="restart")
        first = claim(log, step=2, worker=CHILD)
        log.begin(first.ask, begun(2))
        log.release_worker(CHILD, REAPED)
        asks = claim(log, step=2, worker=BESIDE).ask
        if why == "another claim":
            asks = first.ask
        elif why == "no claim":
            asks = replace(asks, token="made up")
        elif why == "cancelled":
            cancel(log, "r")
        else:
            write(log, "r", failed(3))
        assert not log.begin(asks, begun(2, attempt=2), again=True)
        assert kinds(log.events("r")).count("step_started") == 1


class TestWhatNobodyKnows:
    def test_the_count_follows_what_is_told(self, log: SqlLog) -> None:
        """The list an operator works through: nothing is missing from it, and what is settled leaves it."""
        fan_out(log, tools=3, name="restart")
        fan_out(log, "fine")
        assert unknowns(log) == {}
        write(log, "r", unknown(2), claim=claim(log, step=2).ask)
        write(log, "r", wondered(3), claim=claim(log, step=3).ask)
        assert unknowns(log) == {"r": 2}
        assert log.look("r").row.unknown == 2
        give(log, 3)
        assert unknowns(log) == {"r": 1}
        write(log, "r", result(4, name="restart"), claim=claim(log, step=4).ask)
        write(log, "r", finished(4))
        assert (unknowns(log), unknowns(log, status="completed"), unknowns(log, status="failed")) == (
            {"r": 1},
            {"r": 1},
            {},
        )
        give(log, 2, happened=False)
        assert (unknowns(log), log.look("r").row.unknown) == ({}, 0)
        assert sorted(row.run_id for row in log.runs()) == ["fine", "r"]

    def test_a_late_true_outcome_counts_as_known(self, log: SqlLog) -> None:
        """Nobody needs to look for what has come."""
        fan_out(log, name="restart")
        write(log, "r", unknown(2), claim=claim(log, step=2).ask)
        write(log, "r", Fact("outcome_corrected", {"call_id": "call_2", "name": "restart", "content": "done"}, 2))
        assert unknowns(log) == {}

    def test_the_filter_is_one_among_others(self, log: SqlLog) -> None:
        """A team looks for its own."""
        for run_id, team in (("a", "x"), ("b", "y"), ("c", "x")):
            fan_out(log, run_id, name="restart", labels={"team": team})
            write(log, run_id, unknown(2), claim=claim(log, run_id, 2).ask)
        assert unknowns(log, labels={"team": "x"}) == {"a": 1, "c": 1}
        assert len(log.runs(unknown=True, limit=2)) == 2
        assert unknowns(log, agent="nobody") == {}

    def test_it_is_asked_in_the_order_of_the_calls_and_given_by_name(self, log: SqlLog) -> None:
        """Without a name it is the oldest; a name that nobody wonders about is refused, with those that are."""
        fan_out(log, tools=3, name="restart")
        for step in (3, 2):
            write(log, "r", unknown(step), claim=claim(log, step=step).ask)
        with pytest.raises(NotUnknownError) as refused:
            give(log, 4)
        assert (refused.value.unknown, "call_2, call_3" in str(refused.value)) == (("call_2", "call_3"), True)
        assert [give(log)["step"], give(log)["step"]] == [2, 3]
        with pytest.raises(NotUnknownError) as empty:
            give(log)
        assert empty.value.unknown == ()

    @pytest.mark.parametrize("asked", [True, False], ids=["the run waits", "the model was told"])
    def test_two_people_who_answer_at_once_are_one_answer(self, logs: tuple[SqlLog, SqlLog], asked: bool) -> None:
        """The first word holds; the other person hears that it is known by now."""
        fan_out(logs[0], name="restart")
        write(logs[0], "r", (wondered if asked else unknown)(2), claim=claim(logs[0], step=2).ask)

        def answer(log: SqlLog, happened: bool) -> bool:
            try:
                give(log, 2, happened)
            except NotUnknownError:
                return False
            return True

        heard = at_once(lambda: answer(logs[0], True), lambda: answer(logs[1], False))
        assert sorted(heard) == [False, True]
        events = logs[0].events("r")
        (given,) = [event for event in events if event.type == "outcome_given"]
        assert given.payload["happened"] == heard[0]
        assert kinds(events)[-2:] == ["outcome_given", "tool_result" if asked else "outcome_corrected"]
        assert events[-1].step == 2


class TestOnCancel:
    @pytest.mark.parametrize("end", ["cancelled", "deadline"])
    @pytest.mark.parametrize(
        ("on_cancel", "has_begun", "stopped"),
        [
            (None, False, True),
            (None, True, False),
            ("stop", False, True),
            ("stop", True, True),
            ("finish", False, False),
            ("finish", True, False),
        ],
    )
    def test_a_call_whose_turn_is_over_is_stopped_as_its_tool_says(
        self, log: SqlLog, on_cancel: Any, has_begun: bool, stopped: bool, end: str
    ) -> None:
        """By default what can be undone; and each only after the time in which it may end by itself."""
        start(log)
        opens = (replace(tool(2, "restart"), on_cancel=on_cancel),)
        write(log, "r", decision(1, "restart"), opens=opens, claim=claim(log).ask)
        claimed = claim(log, step=2, worker=CHILD)
        if has_begun:
            log.begin(claimed.ask, begun(2))
        elapse(log, 100)
        assert log.overdue(MAIN, 3.0) == []
        log.renew([claimed.ask], LEASE_S)
        if end == "cancelled":
            cancel(log, "r")
        else:
            write(log, "r", Fact("run_finished", {"output": "", "reason": "deadline"}, 2), clear=True)
        assert log.overdue(MAIN, 3.0) == []
        elapse(log, 4)
        assert [held.ask.token for held in log.overdue(MAIN, 3.0)] == [claimed.ask.token] * stopped

    @pytest.mark.parametrize("on_cancel", ["stop", "finish", None])
    def test_a_timeout_holds_whatever_is_said_about_cancels(self, log: SqlLog, on_cancel: Any) -> None:
        """`finish` lets a call end; it does not let it hang."""
        start(log)
        opens = (replace(tool(2, "restart"), on_cancel=on_cancel),)
        write(log, "r", decision(1, "restart"), opens=opens, claim=claim(log).ask)
        claimed = claim(log, step=2, worker=CHILD)
        log.begin(claimed.ask, begun(2))
        log.arm(claimed.ask, 1.0)
        elapse(log, 2)
        assert [held.ask.token for held in log.overdue(MAIN, 3.0)] == [claimed.ask.token]

    def test_what_is_said_about_a_call_stays_with_its_step(self, log: SqlLog) -> None:
        """Also when it is given back and claimed by a worker of another deploy."""
        start(log)
        opens = (replace(tool(2, "restart"), on_cancel="stop"), tool(3))
        write(log, "r", decision(1, "restart", "read_logs"), opens=opens, claim=claim(log).ask)
        log.release([Release(claim(log, step=2).ask, failed=True)])
        claim(log, step=2)
        assert {step: row["on_cancel"] for step, row in open_rows(log).items()} == {2: "stop", 3: None}
