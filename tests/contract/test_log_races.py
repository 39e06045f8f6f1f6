"""Two processes at one log, at the same moment: one wins, the other is told so, and neither waits for the other.

Each is a `SqlLog` of its own, in a thread, on a database of its own kind. What can only be seen between two statements
of one transaction is brought about with Postgres' own locks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from drangue_client.events import EventType, Fact
from drangue_client.store.log import SqlLog
from drangue_client.store.values import Look, Move, Moved, NewRun, StepRef
from tests.contract.log_scenes import (
    LEASE_S,
    NOTE,
    PATIENCE_S,
    STARTED,
    TOOL_QUEUE,
    ask,
    at_once,
    begun,
    beside,
    claim,
    claim_all,
    decision,
    elapse,
    eventually,
    fan_out,
    kinds,
    model,
    move,
    open_rows,
    result,
    start,
    tool,
    whole,
    write,
)

Logs = tuple[SqlLog, SqlLog]


class TestOneWins:
    def test_of_many_submissions_of_one_run_one_creates_it(self, logs: Logs) -> None:
        """A caller behind two load balancers asks twice; there must be one run, and one that was told to start it."""
        ids = [f"r{n}" for n in range(15)]

        def submit(log: SqlLog, agent: str) -> list[bool]:
            return [log.submit([NewRun(run_id, agent, agent)])[0][1] for run_id in ids]

        answers = at_once(*(lambda log=log, n=n: submit(log, f"agent{n}") for n, log in enumerate(logs * 2)))
        assert [sum(created) for created in zip(*answers, strict=True)] == [1] * len(ids)

    def test_of_many_claims_of_one_step_one_wins(self, logs: Logs) -> None:
        """The whole design stands on this: one live holder, however often a message is delivered."""
        fan_out(logs[0], tools=40)

        def claim_each(log: SqlLog) -> list[str | None]:
            claims = (log.claim([ask(step=step)], LEASE_S)[0] for step in range(2, 42))
            return [one.ask.token if one else None for one in claims]

        answers = at_once(*(lambda log=log: claim_each(log) for log in logs * 2))
        winners = [[token for token in tokens if token] for tokens in zip(*answers, strict=True)]
        assert [len(tokens) for tokens in winners] == [1] * 40
        assert [row["claim"] for row in open_rows(logs[0]).values()] == list(chain(*winners))

    def test_of_many_claims_of_one_lapsed_step_one_wins_and_one_crash_is_counted(self, logs: Logs) -> None:
        """A dead worker's step is resent by every sweep that sees it; one takes it over."""
        fan_out(logs[0], tools=20)
        claim_all(logs[0], *range(2, 22))
        elapse(logs[0], LEASE_S + 1)

        def claim_each(log: SqlLog) -> list[bool]:
            return [log.claim([ask(step=step)], LEASE_S)[0] is not None for step in range(2, 22)]

        answers = at_once(*(lambda log=log: claim_each(log) for log in logs * 2))
        assert [sum(won) for won in zip(*answers, strict=True)] == [1] * 20
        assert {(row["attempt"], row["crashes"]) for row in open_rows(logs[0]).values()} == {(2, 1)}

    def test_of_two_moves_from_one_state_one_is_written(self, logs: Logs) -> None:
        """Two coordinators decide alike; what they open must be opened, and sent, once."""
        for n in range(15):
            run_id = f"r{n}"
            logs[0].submit([NewRun(run_id, "oncall", "")])
            look = logs[0].look(run_id)
            one = move(look, STARTED, opens=(model(1),))
            answers: list[Moved] = at_once(*(lambda log=log, m=one: log.settle([m])[0] for log in logs))
            assert sorted(answer.verdict for answer in answers) == ["moved", "ok"]
            (moved,) = (answer.look for answer in answers if answer.verdict == "moved")
            assert moved is not None
            assert moved.run == whole(logs[0], run_id)
            assert [len(answer.opened) for answer in answers if answer.verdict == "ok"] == [1]

    def test_every_writer_that_decides_again_gets_its_fact_into_the_log(self, logs: Logs) -> None:
        """Verdicts, results and coordinators meet on one run: nothing is lost, and the log has neither gap nor twin."""
        start(logs[0])

        def append(log: SqlLog, name: str) -> None:
            for n in range(8):
                fact = Fact("schema_feedback", {"text": f"{name}{n}"})
                moved = Moved("moved", look=log.look("r"))
                while moved.look is not None:
                    moved = log.settle([move(moved.look, fact)])[0]

        at_once(*(lambda log=log, n=n: append(log, f"{n}:") for n, log in enumerate(logs * 2)))
        events = logs[0].events("r")
        assert [event.seq for event in events] == list(range(33))
        assert len({event.payload.get("text") for event in events[1:]}) == 32
        assert logs[1].look("r").run == whole(logs[1])

    def test_a_zombie_and_its_successor_never_both_have_the_step(self, logs: Logs) -> None:
        """At the moment a lease lapses, its holder settles or somebody else claims; never both or neither."""
        fan_out(logs[0], tools=20)
        zombies = claim_all(logs[0], *range(2, 22))
        elapse(logs[0], LEASE_S + 1)

        def settle_all() -> list[bool]:
            verdicts = []
            for zombie in zombies:
                one = move(logs[0].look("r"), result(zombie.ask.step), claim=zombie.ask)
                verdicts.append(logs[0].settle([one])[0].verdict == "ok")
            return verdicts

        def claim_each() -> list[bool]:
            asks = [ask(step=zombie.ask.step, worker="w2") for zombie in zombies]
            return [logs[1].claim([one], LEASE_S)[0] is not None for one in asks]

        settled, claimed = at_once(settle_all, claim_each)
        assert all(one != other for one, other in zip(settled, claimed, strict=True))
        assert list(open_rows(logs[0])) == [z.ask.step for z, taken in zip(zombies, claimed, strict=True) if taken]

    def test_a_successor_always_knows_whether_the_zombie_began(self, logs: Logs) -> None:
        """Either the beginning is recorded and the next claim is told of it, or it never happened."""
        fan_out(logs[0], tools=20, name="restart")
        zombies = claim_all(logs[0], *range(2, 22))
        elapse(logs[0], LEASE_S + 1)

        def begin_all() -> list[bool]:
            return [logs[0].begin(zombie.ask, begun(zombie.ask.step)) for zombie in zombies]

        def claim_each() -> list[Any]:
            return [logs[1].claim([ask(step=zombie.ask.step, worker="w2")], LEASE_S)[0] for zombie in zombies]

        began, claims = at_once(begin_all, claim_each)
        for zombie_began, successor in zip(began, claims, strict=True):
            if successor is None:
                assert zombie_began  # it held the row just then; the next message finds the step
            else:
                assert kinds(successor.facts) == (["step_started"] if zombie_began else [])


class TestSweepersShareTheWork:
    def test_no_two_sweepers_wake_the_same_run(self, logs: Logs) -> None:
        """Every worker sweeps, and nobody leads: what one has found is not another's to send."""
        logs[0].submit([NewRun(f"r{n:02}", "oncall", "") for n in range(40)])
        found = at_once(*(lambda log=log: _until_none(lambda: log.wake(60, limit=3)) for log in logs * 2))
        assert sorted(row.run_id for row in chain(*found)) == [f"r{n:02}" for n in range(40)]

    def test_no_two_sweepers_recover_the_same_step(self, logs: Logs) -> None:
        """One dead worker is one message per step, not one from each of its peers."""
        fan_out(logs[0], tools=40)
        claim_all(logs[0], *range(2, 42))
        elapse(logs[0], LEASE_S + 1)
        found = at_once(*(lambda log=log: _until_none(lambda: log.recover(60, limit=3)) for log in logs * 2))
        assert sorted(ref.step for ref in chain(*found)) == list(range(2, 42))
        assert {ref.sends for ref in chain(*found)} == {1}

    def test_what_somebody_has_locked_is_left_to_the_next_sweep(self, postgres: SqlLog) -> None:
        """A run being settled, a step being claimed: both are moving, and a sweep must not stand in line for them."""
        fan_out(postgres, tools=2)
        claim_all(postgres, 2, 3)
        elapse(postgres, LEASE_S + 1)
        postgres.submit([NewRun("a", "oncall", ""), NewRun("b", "oncall", "")])
        woken = beside(postgres, "select 1 from runs where run_id = 'a'", lambda: postgres.wake(PATIENCE_S))
        found = beside(postgres, "select 1 from steps where step = 2", lambda: postgres.recover(PATIENCE_S))
        assert [row.run_id for row in woken] == ["b"]
        assert [ref.step for ref in found] == [3]
        assert [row.run_id for row in postgres.wake(PATIENCE_S)] == ["a"]
        assert [ref.step for ref in postgres.recover(PATIENCE_S)] == [2]


class TestNobodyWaitsInACircle:
    def test_two_batches_of_moves_in_opposite_order(self, postgres_logs: Logs) -> None:
        """Batches are filled in whatever order results come; a deadlock would throw one of them away."""
        one, other = postgres_logs
        for run_id in ("a", "b"):
            start(one, run_id)
        a, b = (move(one.look(run_id), NOTE) for run_id in ("a", "b"))

        def hold(connection: Any) -> None:
            connection.execute(text("select 1 from runs where run_id = 'a' for update"))

        answers = _queue_up(one, hold, lambda: one.settle([a, b]), lambda: other.settle([b, a]))
        verdicts = [answers[0][0].verdict, answers[1][1].verdict], [answers[0][1].verdict, answers[1][0].verdict]
        assert [sorted(pair) for pair in verdicts] == [["moved", "ok"]] * 2

    def test_two_batches_of_submissions_in_opposite_order(self, postgres_logs: Logs) -> None:
        """The same list, sent twice and shuffled on the way, must not be refused."""
        one, other = postgres_logs
        for n in range(4):
            runs = [NewRun(f"{name}{n}", "oncall", "") for name in "abcdef"]

            def hold(connection: Any, n: int = n) -> None:
                connection.execute(
                    text(
                        "insert into runs (run_id, agent, status, executor, priority, labels, input, overrides,"
                        " head_seq, state_seq, created_at, updated_at)"
                        " values (:run_id, 'x', 'queued', 'celery', 5, '{}', '', '{}', -1, -1, now(), now())"
                    ),
                    {"run_id": f"a{n}"},
                )

            answers = _queue_up(one, hold, partial(one.submit, runs), partial(other.submit, runs[::-1]))
            created = [sum(created for _, created in answer) for answer in answers]
            assert sum(created) == 6

    def test_marking_what_somebody_has_locked(self, postgres: SqlLog) -> None:
        """A sweep resends what is just being settled; waiting for that row, with others in hand, can close a circle."""
        fan_out(postgres)
        refs = [StepRef("r", step, "tool", TOOL_QUEUE, 5) for step in (2, 3)]
        for mark, sends in ((postgres.mark_sent, 1), (postgres.mark_unsent, 0)):
            beside(postgres, "select 1 from steps where step = 2", lambda mark=mark: mark(refs))
            assert [row["sends"] for row in open_rows(postgres).values()] == [0, sends]

    def test_results_of_siblings_that_end_together(self, logs: Logs) -> None:
        """A wide fan-out ends in a crowd: every result is written, one after the other, and the join opens once."""
        fan_out(logs[0], tools=16)
        opened = []

        def settle(log: SqlLog, first: int) -> None:
            for step in range(first, 18, 4):
                claimed = claim(log, step=step)
                look, moved = claimed.look, None
                while moved is None or moved.look is not None:
                    after = move(look, result(step)).run
                    opens = () if after.unsettled else (model(18),)
                    moved = log.settle([Move("r", look.row.head_seq, after, (result(step),), opens, claimed.ask)])[0]
                    look = moved.look or look
                assert moved.verdict == "ok"
                opened.extend(moved.opened)

        at_once(*(lambda log=log, first=first: settle(log, first) for first, log in enumerate(logs * 2, start=2)))
        assert [ref.step for ref in opened] == [18]
        assert list(open_rows(logs[0])) == [18]


class TestOneFile:
    def test_processes_that_open_a_new_file_at_once_all_find_it_ready(self, tmp_path: Path) -> None:
        """Two commands started together in an empty folder are the first two processes on its log."""
        for n in range(8):
            url = f"sqlite:///{tmp_path / f'{n}.db'}"

            def open_and_submit(name: str, url: str = url) -> bool:
                with closing(SqlLog(url)) as log:
                    return log.submit([NewRun(name, "oncall", "")])[0][1]

            assert at_once(*(lambda m=m: open_and_submit(f"r{m}") for m in range(3))) == [True] * 3


@pytest.mark.parametrize("verdict", ["approval_granted", "approval_denied"])
def test_a_verdict_that_arrives_while_a_sibling_settles_is_seen_by_the_one_or_the_other(
    logs: Logs, verdict: EventType
) -> None:
    """A person answers at the very moment the last sibling ends; whoever comes second decides from both."""
    for n in range(6):
        run_id = f"r{n}"
        start(logs[0], run_id)
        asked = Fact("approval_requested", {"call_id": "call_2"}, 2)
        write(logs[0], run_id, decision(1, "read_logs", "read_logs"), asked, opens=(tool(3),))
        sibling = claim(logs[0], run_id, 3)
        seen_both = at_once(
            partial(_insist, logs[0], run_id, result(3), claim=sibling.ask),
            partial(_insist, logs[1], run_id, Fact(verdict, {"call_id": "call_2"}, 2)),
        )
        assert sorted(seen_both) == [False, True]


def _insist(log: SqlLog, run_id: str, fact: Fact, **more: Any) -> bool:
    """Write a fact, deciding again as often as it takes; whether the run then held both the verdict and the result."""
    look: Look | None = log.look(run_id)
    while look is not None:
        one = move(look, fact, **more)
        look = log.settle([one])[0].look
    return not one.run.pending and one.run.calls[1].settled


def _until_none(look: Callable[[], list[Any]]) -> list[Any]:
    found, more = [], look()
    while more:
        found += more
        more = look()
    return found


def _queue_up(log: SqlLog, hold: Callable[[Any], None], *works: Callable[[], Any]) -> list[Any]:
    """Let one work after the other run into what `hold` has locked, or past it, and only then let go."""
    done: list[int] = []

    def blocked() -> int:
        count = (
            "select count(*) from pg_stat_activity where datname = current_database() and cardinality("
            "pg_blocking_pids(pid)) > 0"
        )
        with log.db.engine("hasty").connect() as connection:
            return int(connection.execute(text(count)).scalar_one())

    with log.db.engine().connect() as holder:
        transaction = holder.begin()
        hold(holder)

        def in_turn(n: int, work: Callable[[], Any]) -> Any:
            eventually(lambda: blocked() + len(done) >= n)
            answer = work()
            done.append(n)
            return answer

        def let_go() -> None:
            try:
                eventually(lambda: blocked() + len(done) >= len(works))
            finally:
                transaction.rollback()

        turns = [lambda n=n, work=work: in_turn(n, work) for n, work in enumerate(works)]
        return at_once(*turns, let_go)[:-1]
