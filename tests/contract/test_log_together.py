"""What waits together goes together: on Postgres in one statement, and it must come to what each alone comes to."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from drangue_client.errors import ConflictError
from drangue_client.events import Fact
from drangue_client.folding import fold
from drangue_client.store.conversations import Conversations
from drangue_client.store.database import Database
from drangue_client.store.log import SqlLog
from drangue_client.store.statements import CLAIM, LOOK
from drangue_client.store.together import settle_together
from drangue_client.store.values import Ask, Look, Move, NewRun, Open, PartlyFailed
from tests.contract.log_scenes import (
    LEASE_S,
    ask,
    at_once,
    begun,
    claim,
    claim_all,
    decision,
    elapse,
    fan_out,
    model,
    move,
    open_rows,
    result,
    start,
    tool,
    write,
)


def chained(look: Look, *ends: tuple[Fact, Ask, tuple[Open, ...]]) -> list[Move]:
    """The moves of siblings, each decided from what the one before it will have written."""
    moves, run, head = [], look.run, look.row.head_seq
    for fact, held, opens in ends:
        run = fold([fact.at(head + 1)], onto=run)
        moves.append(Move(look.row.run_id, head, run, (fact,), opens, held))
        head += 1
    return moves


class TestSiblings:
    def test_siblings_settle_together(self, log: SqlLog) -> None:
        """Each opens again what is open already, the other's step too: settled, that must not come back."""
        fan_out(log, tools=3)
        claims = claim_all(log, 2, 3, 4)
        opens = [(tool(3), tool(4)), (tool(4),), (model(5),)]
        ends = [(result(one.ask.step), one.ask, also) for one, also in zip(claims, opens, strict=True)]
        moved = log.settle(chained(claims[0].look, *ends))
        assert [one.verdict for one in moved] == ["ok"] * 3
        assert [[ref.step for ref in one.opened] for one in moved] == [[], [], [5]]
        assert sorted(open_rows(log)) == [5]
        assert [event.step for event in log.events("r") if event.type == "tool_result"] == [2, 3, 4]
        assert log.look("r").run == fold(log.events("r"))

    def test_behind_a_refused_move_all_are_refused(self, log: SqlLog) -> None:
        """The log has grown by as much as the first would have written: the second's place fits, and nothing else."""
        fan_out(log, tools=3)
        claims = claim_all(log, 2, 3, 4)
        write(log, "r", result(4), claim=claims[2].ask)
        ends = [(result(one.ask.step), one.ask, ()) for one in claims[:2]]
        moved = log.settle(chained(claims[0].look, *ends))
        assert [one.verdict for one in moved] == ["moved"] * 2
        assert [one.look.run for one in moved if one.look] == [fold(log.events("r"))] * 2
        assert sorted(open_rows(log)) == [2, 3]

    def test_moves_that_know_nothing_of_each_other_are_not_taken_for_a_chain(self, log: SqlLog) -> None:
        """Both were decided from the run as it is: the first is written, and the second to be decided again."""
        fan_out(log)
        claims = claim_all(log, 2, 3)
        moved = log.settle([move(one.look, result(one.ask.step), claim=one.ask) for one in claims])
        assert [one.verdict for one in moved] == ["ok", "moved"]
        assert log.look("r").run == fold(log.events("r"))

    def test_the_error_of_one_is_not_given_to_the_other(self, log: SqlLog) -> None:
        """What was recorded of one call already, by whoever took it over, must not cost its sibling its result."""
        fan_out(log, tools=2)
        claims = claim_all(log, 2, 3)
        write(log, "r", result(3))
        look = log.look("r")
        ends = [(result(one.ask.step), one.ask, ()) for one in claims]
        try:
            answers = list(log.settle(chained(look, *ends)))
        except PartlyFailed as error:
            answers = error.answers
        except ConflictError:  # the plain way writes both or neither, and whoever asks then asks for each
            answers = [log.settle([chained(look, ends[0])[0]])[0], ConflictError("r", 4)]
        assert answers[0].verdict == "ok"
        assert isinstance(answers[1], ConflictError)
        assert [event.step for event in log.events("r") if event.type == "tool_result"] == [3, 2]
        assert sorted(open_rows(log)) == [3]

    def test_siblings_are_claimed_together(self, log: SqlLog) -> None:
        """Each is told of its own events and of the one decision."""
        fan_out(log, tools=20)
        claims = log.claim([ask(step=step) for step in range(2, 22)], LEASE_S)
        assert [one.ask.step for one in claims if one] == list(range(2, 22))
        assert {one.decision.seq for one in claims if one and one.decision} == {1}


class TestOnPostgres:
    def test_whoever_takes_a_step_over_knows_what_began_while_he_asked(self, postgres: SqlLog) -> None:
        """A statement sees what was there when it began; an effect may have begun since, before the claim was made."""
        fan_out(postgres, name="restart")
        zombie = claim(postgres, step=2)
        before = ""

        def as_it_was(db: Database, statement: str, values: Any) -> Any:
            rows = real(db, statement, values)
            return [(*row[:-1], before) for row in rows] if statement == CLAIM else rows

        real = Database.alone
        before = real(postgres.db, LOOK, {"runs": ["r"]})[0][-1] or "[]"
        assert postgres.begin(zombie.ask, begun(2))
        elapse(postgres, LEASE_S + 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Database, "alone", as_it_was)
            taken = claim(postgres, step=2, worker="w2")
        assert [event.type for event in taken.facts] == ["step_started"]
        assert taken.look.row.head_seq == 2

    def test_a_pool_of_dead_connections_fails_no_call(self, postgres_logs: tuple[SqlLog, SqlLog]) -> None:
        """A server that was restarted has ended them all; it is back, and must not look as if it were away."""
        log, other = postgres_logs
        start(log)
        barrier = threading.Barrier(4)

        def hold() -> int:
            barrier.wait(10)
            return int(log.db.alone("select pg_backend_pid(), pg_sleep(0.2)", {})[0][0])

        backends = at_once(*[hold] * 4)
        assert len(set(backends)) == 4
        for backend in backends:
            other.db.alone("select pg_terminate_backend(%(backend)s)", {"backend": backend})
        assert log.look("r").row.status == "running"
        assert log.claim([ask()], LEASE_S)[0] is not None
        assert log.submit([NewRun("next", "oncall", "go")])[0][1]

    def test_a_batch_waits_for_nobody_who_has_locked_a_run(self, postgres_logs: tuple[SqlLog, SqlLog]) -> None:
        """An application may hold one run in a transaction of its own: the others' results are not its business."""
        log, other = postgres_logs
        for name in ("a", "b"):
            start(log, name)
        claims = [claim(log, name) for name in ("a", "b")]
        moves = [move(one.look, decision(1, text="x"), claim=one.ask) for one in claims]
        with other.db.engine().connect() as holder:
            transaction = holder.begin()
            holder.exec_driver_sql("select 1 from runs where run_id = 'b' for update")
            written = settle_together(log.db, Conversations(), {one.run_id: [one] for one in moves})
            transaction.rollback()
        assert list(written) == ["a"]
        assert [one.verdict for one in log.settle(moves[1:])] == ["ok"]
