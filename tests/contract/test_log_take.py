"""Taking: a move's writer goes on with what it opens, holding what a claim of its own would have given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from drangue_client.events import Fact
from drangue_client.store.log import SqlLog
from drangue_client.store.values import Ask, Claimed, Look, Moved, NewRun, Open, Take
from tests.contract.log_scenes import (
    LEASE_S,
    MODEL_QUEUE,
    STARTED,
    alone,
    ask,
    claim,
    claim_all,
    decision,
    elapse,
    fan_out,
    finished,
    model,
    move,
    open_rows,
    result,
    sql,
    start,
    tool,
    write,
)


def taking(look: Look, *facts: Fact, opens: tuple[Open, ...], claimed: Claimed | None = None, **more: Any) -> Any:
    """A move whose writer would go on with all that it opens."""
    asks = tuple(ask(look.row.run_id, one.step) for one in opens)
    take = Take(asks, LEASE_S, look.row)
    return move(look, *facts, opens=opens, claim=claimed.ask if claimed else None, take=take, **more)


def settle(log: SqlLog, look: Look, *facts: Fact, opens: tuple[Open, ...], claimed: Claimed | None = None) -> Moved:
    """Settle such a move, which must succeed."""
    (moved,) = log.settle([taking(look, *facts, opens=opens, claimed=claimed)])
    assert moved.verdict == "ok"
    return moved


def new(log: SqlLog) -> Look:
    log.submit([NewRun("r", "oncall", "disk full", labels={"team": "a"}, overrides={"deadline_s": 60.0})])
    return log.look("r")


def asked_for(log: SqlLog, held: Ask) -> Claimed:
    """What a claim gives; asked again with its token it is the same."""
    (claimed,) = log.claim([held], LEASE_S)
    assert claimed is not None
    return claimed


def at_no_time(claimed: Claimed) -> Claimed:
    return replace(claimed, look=replace(claimed.look, now=0.0))


def test_what_is_taken_is_what_a_claim_would_give(log: SqlLog) -> None:
    """Step by step through a turn, the fields of each, and of the rows behind them."""
    moved = settle(log, new(log), STARTED, opens=(model(1),))
    walked = []
    for facts, opens in (
        ((decision(1, "read_logs", "restart"),), (tool(2), tool(3, "restart"))),
        ((result(2),), ()),
        ((result(3, name="restart"),), (Open(4, "prepare", "recall", MODEL_QUEUE),)),
        ((Fact("memory_recalled", {"items": ["a"]}, 4),), (model(5),)),
        ((decision(5, text="mended"), finished(5)), ()),
    ):
        walked += moved.taken
        assert [ref.step for ref in moved.opened] == [one.ask.step for one in moved.taken]
        assert {ref.attempt for ref in moved.opened} <= {0}
        for one in moved.taken:
            assert at_no_time(one) == at_no_time(asked_for(log, one.ask))
            assert abs(one.look.now - log.look("r").now) < 10
            assert open_rows(log)[one.ask.step]["worker"] == "w1"
        now = walked.pop(0)
        moved = settle(log, log.look("r"), *facts, opens=opens, claimed=now)
    assert walked == []
    assert open_rows(log) == {}
    assert log.look("r").row.status == "completed"


def test_what_is_taken_is_held_like_any_claim(log: SqlLog) -> None:
    """By nobody else while its lease lasts; behind that, by whoever comes, and its holder has died of it."""
    (taken,) = settle(log, new(log), STARTED, opens=(model(1),)).taken
    assert log.claim([ask()], LEASE_S) == [None]
    assert log.renew([taken.ask], LEASE_S) == {taken.ask.token}
    elapse(log, LEASE_S + 1)
    (other,) = log.claim([ask(worker="w2")], LEASE_S)
    assert other is not None
    assert (other.attempt, other.crashes) == (2, 1)
    late = move(taken.look, decision(1, text="late"), claim=taken.ask)
    assert log.settle([late])[0].verdict == "lost"


def test_what_is_open_already_is_not_taken(log: SqlLog) -> None:
    """Whoever was told of it first may be at it."""
    start(log)
    moved = settle(log, log.look("r"), opens=(model(1),))
    assert (moved.opened, moved.taken) == ((), ())
    assert claim(log).attempt == 1


def test_a_refused_move_takes_nothing(log: SqlLog) -> None:
    """Neither where the log has grown, nor where the claim has gone."""
    fan_out(log)
    one, other = claim_all(log, 2, 3)
    write(log, "r", result(3), claim=other.ask)
    (moved,) = log.settle([taking(one.look, result(2), opens=(model(4),), claimed=one)])
    assert (moved.verdict, moved.taken) == ("moved", ())
    (moved,) = log.settle([taking(log.look("r"), result(3), opens=(model(4),), claimed=other)])
    assert (moved.verdict, moved.taken) == ("lost", ())
    assert sorted(open_rows(log)) == [2]


def test_siblings_and_other_runs_take_each_their_own(log: SqlLog) -> None:
    """In one batch: a chain of two moves, of which the second takes, and a run that takes its first step."""
    fan_out(log)
    one, other = claim_all(log, 2, 3)
    log.submit([NewRun("s", "oncall", "disk full")])
    first = move(one.look, result(2), claim=one.ask)
    behind = replace(one.look, row=replace(one.look.row, head_seq=one.look.row.head_seq + 1), run=first.run)
    second = taking(behind, result(3), opens=(model(4),), claimed=other)
    third = taking(log.look("s"), STARTED, opens=(model(1),))
    moved = log.settle([first, second, third])
    assert [answer.verdict for answer in moved] == ["ok"] * 3
    assert [[taken.ask.step for taken in answer.taken] for answer in moved] == [[], [4], [1]]
    for taken in (*moved[1].taken, *moved[2].taken):
        assert at_no_time(taken) == at_no_time(asked_for(log, taken.ask))


class TestOnPostgres:
    def test_nothing_is_read_for_what_is_taken(self, postgres: SqlLog) -> None:
        """One statement a step is all there is."""
        look = new(postgres)
        seen: list[str] = []
        with alone(lambda statement, _: seen.append(statement)):
            (taken,) = settle(postgres, look, STARTED, opens=(model(1),)).taken
            facts = (decision(1, "read_logs"),)
            (taken,) = settle(postgres, taken.look, *facts, opens=(tool(2),), claimed=taken).taken
            (taken,) = settle(postgres, taken.look, result(2), opens=(model(3),), claimed=taken).taken
        assert len(seen) == 3
        assert [event.type for event in taken.events] == ["run_started", "model_decision", "tool_result"]

    def test_who_does_not_hold_the_conversation_leaves_the_thought_to_others(
        self, postgres_logs: tuple[SqlLog, SqlLog]
    ) -> None:
        """It would have to be read; the call of a tool needs its decision only."""
        log, other = postgres_logs
        fan_out(log, tools=1)
        one = claim(other, step=2)
        moved = settle(other, one.look, result(2), opens=(model(3),), claimed=one)
        assert ([ref.attempt for ref in moved.opened], moved.taken) == ([0], ())
        three = claim(other, step=3)
        moved = settle(other, three.look, decision(3, "read_logs"), opens=(tool(4),), claimed=three)
        assert [taken.ask.step for taken in moved.taken] == [4]
        assert at_no_time(moved.taken[0]) == at_no_time(asked_for(other, moved.taken[0].ask))

    def test_an_id_that_was_another_run_s_is_no_hindrance(self, postgres: SqlLog) -> None:
        """What was held of that one is dropped, and this one held from its first thought on."""
        for _ in range(3):
            fan_out(postgres, tools=1)
            call = claim(postgres, step=2)
            moved = settle(postgres, call.look, result(2), opens=(model(3),), claimed=call)
            assert [taken.ask.step for taken in moved.taken] == [3]
            sql(postgres, "delete from runs")
            sql(postgres, "delete from steps")
            sql(postgres, "delete from events")

    def test_nothing_is_taken_for_a_conversation_of_another_past(self, postgres: SqlLog) -> None:
        """A database that was restored, or failed over to a late replica: the log is as long, and another."""
        (taken,) = settle(postgres, new(postgres), STARTED, opens=(model(1),)).taken
        settled = settle(postgres, taken.look, decision(1, "read_logs"), opens=(tool(2),), claimed=taken)
        said = """cast(jsonb_set(cast(payload as jsonb), '{text}', '"other"') as json)"""
        sql(postgres, f"update events set ts = ts - interval '1 s', payload = {said} where run_id = 'r' and seq = 1")
        (call,) = settled.taken
        moved = settle(postgres, call.look, result(2), opens=(model(3),), claimed=call)
        assert ([ref.step for ref in moved.opened], moved.taken) == ([3], ())
        claimed = claim(postgres, step=3)
        assert (claimed.attempt, claimed.crashes) == (1, 0)
        assert claimed.events[1].payload["text"] == "other"

    @pytest.mark.parametrize("ts", [1.1234567, None])
    def test_the_time_of_what_was_written_is_the_log_s_own(self, postgres: SqlLog, ts: float | None) -> None:
        """Postgres counts microseconds, and says itself when nobody does: what is held must be what is read."""
        look = new(postgres)
        (taken,) = settle(postgres, look, replace(STARTED, ts=ts), opens=(model(1),)).taken
        assert list(taken.events) == postgres.events("r")
