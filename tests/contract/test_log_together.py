"""What waits together goes together: on Postgres in one statement, and it must come to what each alone comes to."""

from __future__ import annotations

from drangue_client.events import Fact
from drangue_client.folding import fold
from drangue_client.store.log import SqlLog
from drangue_client.store.values import Ask, Look, Move, Open
from tests.contract.log_scenes import LEASE_S, ask, claim_all, fan_out, model, move, open_rows, result, tool, write


def chained(look: Look, *ends: tuple[Fact, Ask, tuple[Open, ...]]) -> list[Move]:
    """The moves of siblings, each decided from what the one before it will have written."""
    moves, run, head = [], look.run, look.row.head_seq
    for fact, claim, opens in ends:
        run = fold([fact.at(head + 1)], onto=run)
        moves.append(Move(look.row.run_id, head, run, (fact,), opens, claim))
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

    def test_siblings_are_claimed_together(self, log: SqlLog) -> None:
        """Each is told of its own events and of the one decision."""
        fan_out(log, tools=20)
        claims = log.claim([ask(step=step) for step in range(2, 22)], LEASE_S)
        assert [one.ask.step for one in claims if one] == list(range(2, 22))
        assert {one.decision.seq for one in claims if one and one.decision} == {1}
