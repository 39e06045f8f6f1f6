"""Wires that break between workers and their servers: every run finishes, and nothing is done twice.

The servers are well; only what lies between them and the fleet is cut. The tests themselves ask the servers past it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import redis

from drangue_client import Client
from drangue_worker.supervisor import Child
from tests.kit.fleet import Fleet, calls_then_answer, wait_until
from tests.kit.tcp import Wire
from tests.kit.wired_agents import EFFECTS_URL

Make = Callable[..., Fleet]

CALLS = (("note", {"text": "a", "seconds": 0.3}), ("ping", {"seconds": 0.5}), ("wire", {"amount": 1, "seconds": 0.1}))
RUNS = 8
FLAPS = 3
TERMINATE = (
    "select count(pg_terminate_backend(pid)) from pg_stat_activity "
    "where datname = current_database() and application_name = 'drangue'"
)


class Wired:
    """A fleet whose workers reach Redis and Postgres over wires. Its client and its counts go past them."""

    def __init__(self, make_fleet: Make, database_url: str, redis_url: str, **settings: Any) -> None:
        self.redis, redis_through = Wire.to(redis_url, 6379)
        self.postgres, postgres_through = Wire.to(database_url, 5432)
        self.fleet = make_fleet(calls_then_answer(*CALLS), agents=("tests.kit.wired_agents",), **settings)
        self.fleet.supervisor.env = {
            **self.fleet.supervisor.env,
            EFFECTS_URL: database_url,
            "DRANGUE_REDIS_URL": redis_through,
            "DRANGUE_DATABASE_URL": postgres_through,
        }
        self.workers: list[Child] = []
        self.through = replace(self.fleet.settings, redis_url=redis_through, database_url=postgres_through)

    def begin(self, runs: int = RUNS) -> list[str]:
        """Start workers and runs, and come back when some steps are done and others under way."""
        self.workers = self.fleet.start("model-1", "tool-1")
        ids = self.fleet.submit(runs)
        wait_until(lambda: len(self.fleet.effects()) >= 4, 15, "steps are under way")
        return ids

    def ended(self) -> list[str]:
        """Workers that are gone."""
        return [worker.name for worker in self.workers if worker.process.poll() is not None]

    def check(self, ids: list[str], timeout_s: float = 20) -> None:
        """Every run finishes, and each of its calls was made once."""
        results = self.fleet.finish(ids, timeout_s)
        assert {result.status for result in results} == {"completed"}
        assert sorted(self.fleet.effects()) == sorted(f"{run_id}:{step}" for run_id in ids for step in (2, 3, 4))
        for result in results:
            settled = [event.step for event in result.events if event.type == "tool_result"]
            assert sorted(settled) == [2, 3, 4]
            assert "unknown_outcome" not in str([event.payload for event in result.events])


@pytest.fixture
def wired(make_fleet: Make, database_url: str, redis_url: str) -> Iterator[Callable[..., Wired]]:
    made: list[Wired] = []

    def make(**settings: Any) -> Wired:
        made.append(Wired(make_fleet, database_url, redis_url, **settings))
        return made[-1]

    yield make
    for one in made:
        one.fleet.__exit__()  # before its wires: a worker that stops still gives back what it holds
        one.redis.refuse()
        one.postgres.refuse()


def done(fleet: Fleet) -> int:
    """How many steps are settled."""
    return int(fleet.execute("select count(*) from events where type in ('tool_result', 'model_decision')")[0][0])


def test_an_absent_redis_delays_runs_and_no_more(wired: Callable[..., Wired]) -> None:
    """A restart of Redis in the middle of the day: what runs is recorded, what waits is sent when it is back."""
    cut = wired()
    ids = cut.begin()
    cut.redis.refuse()
    wait_until(lambda: "_failed" in cut.fleet.log_of("tool-1") or cut.ended(), 15, "the fleet has noticed")
    wait_until(lambda: not cut.fleet.execute("select 1 from steps where lease_until > now()"), 15, "what ran has ended")
    assert cut.ended() == []
    before = len(cut.fleet.effects())
    assert before < 3 * RUNS
    cut.redis.restore()
    cut.check(ids)


def test_a_reset_of_every_connection_to_redis_doubles_nothing(wired: Callable[..., Wired]) -> None:
    """Celery puts back what it is still doing and does it again at once; the claim of the first one holds."""
    cut = wired()
    ids = cut.begin()
    wait_until(lambda: cut.fleet.held_by(cut.workers[0]), 10, "a step is under way")
    cut.redis.reset()
    cut.check(ids)
    assert cut.ended() == []


def test_a_link_to_redis_that_flaps_ends_no_worker(wired: Callable[..., Wired]) -> None:
    """A balancer that is being replaced resets whoever comes back, a few times over; no worker may be lost by it."""
    cut = wired()
    ids = cut.begin()
    for _ in range(FLAPS):
        cut.redis.reset()
        opened = cut.redis.opened
        wait_until(lambda opened=opened: cut.redis.opened > opened, 10, "somebody has come back")  # type: ignore[misc]
    cut.check(ids)
    assert cut.ended() == []


def test_an_absent_redis_ends_no_worker_that_hears_of_it_while_it_listens(wired: Callable[..., Wired]) -> None:
    """Redis goes, and the connection for signals is the first on which a worker hears of it."""
    cut = wired()
    ids = cut.begin()
    wait_until(lambda: cut.fleet.held_by(cut.workers[0]), 10, "a step is under way")
    cut.redis.refuse(first=b"SUBSCRIBE")
    wait_until(lambda: "Cannot connect to redis" in cut.fleet.log_of("model-1") or cut.ended(), 10, "it is noticed")
    cut.redis.restore()
    assert cut.ended() == []
    cut.check(ids)


@pytest.mark.long
def test_a_link_to_redis_that_died_unsaid_holds_no_worker(wired: Callable[..., Wired]) -> None:
    """A NAT forgets, a cable is pulled: nobody is told, and a worker that waited for ever would be lost for good.

    It takes a worker up to half a minute to doubt a link on which nothing comes: two health checks of ten seconds.
    """
    cut = wired()
    ids = cut.begin(4)
    cut.redis.strand()
    cut.check(ids, 50)
    assert cut.ended() == []


def test_every_connection_to_postgres_is_ended_while_steps_run(wired: Callable[..., Wired]) -> None:
    """A failover: what ran is recorded over new connections, and not run again."""
    cut = wired()
    ids = cut.begin()
    for _ in range(3):
        with psycopg.connect(cut.fleet.settings.database_url, autocommit=True) as connection:
            ended = connection.execute(TERMINATE).fetchone()
        assert ended
        assert ended[0] > 0
        settled = done(cut.fleet)
        wait_until(lambda settled=settled: done(cut.fleet) > settled, 15, "work goes on")  # type: ignore[misc]
    cut.check(ids)


def test_a_reset_of_every_connection_to_postgres_doubles_nothing(wired: Callable[..., Wired]) -> None:
    """Also where the commit went through and only its answer was lost."""
    cut = wired()
    ids = cut.begin()
    for _ in range(3):
        cut.postgres.reset()
        settled = done(cut.fleet)
        wait_until(lambda settled=settled: done(cut.fleet) > settled, 15, "work goes on")  # type: ignore[misc]
    cut.check(ids)


@pytest.mark.parametrize("lease_s", [9.0, 2.0], ids=["shorter than a lease", "longer than a lease"])
def test_an_absent_postgres_doubles_nothing(wired: Callable[..., Wired], lease_s: float) -> None:
    """Whoever holds a step keeps what it came to, and records it when the database is back, before it is taken for
    dead."""
    cut = wired(lease_s=lease_s)
    ids = cut.begin()
    cut.postgres.refuse()
    wait_until(lambda: "sweep_failed" in cut.fleet.log_of("tool-1"), 15, "the fleet has noticed")
    wait_until(lambda: "sweep_failed" in cut.fleet.log_of("model-1"), 15, "the fleet has noticed")
    if lease_s < 9:
        lapsed = "select count(*) from steps where claim is not null and lease_until > now()"
        wait_until(lambda: cut.fleet.execute(lapsed) == [(0,)], 15, "every lease has lapsed")
    cut.postgres.restore()
    cut.check(ids)


def test_a_run_whose_message_never_left_is_done_all_the_same(wired: Callable[..., Wired], redis_url: str) -> None:
    """The commit came through and Redis refused: whoever submitted is told that it is recorded, and it is done."""
    cut = wired()
    cut.redis.refuse()
    with closing(Client(replace(cut.through, database_url=cut.fleet.settings.database_url))) as client:
        submitted = [client.submit("tester", f"input {number}", allow_unknown=True) for number in range(3)]
        ids = [one.run_id for one in submitted]
        assert [one.sent for one in submitted] == [False] * 3
    with redis.Redis.from_url(redis_url) as server:
        assert server.keys("drangue.*") == []
    assert cut.fleet.execute("select count(*) from runs where status = 'queued'") == [(3,)]
    cut.redis.restore()
    cut.workers = cut.fleet.start("model-1", "tool-1")
    cut.check(ids)
