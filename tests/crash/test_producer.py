"""What a producer submits in its own transaction is there if and only if it committed, however the producer ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis

from drangue_client.wire.queue import HANDOFF_S
from tests.acceptance.shell import Done, environment, run
from tests.kit.fleet import ROOT, Fleet, calls_then_answer, wait_until
from tests.kit.producers import DRIVERS, PRODUCER, TAKEN

Make = Callable[..., Fleet]
KILLED = -signal.SIGKILL
NOTHING = {"taken": 0, "runs": 0, "events": 0, "steps": 0, "in Redis": 0}


@pytest.fixture
def fleet(make_fleet: Make) -> Fleet:
    """Nobody works yet. Leases and sweeps are as in production: how soon a run begins is a part of the promise."""
    made = make_fleet(calls_then_answer(("note", {"text": "delivered"})), lease_s=15.0, sweep_s=1.0, patience_s=5.0)
    made.execute(TAKEN)
    made.execute("truncate taken")
    return made


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.kit.producers", *arguments]


def produce(fleet: Fleet, driver: str, end: str, order: str) -> Done:
    """A producer, from its start to its end."""
    done = run(command(driver, end, order), environment(**fleet.settings.to_env()), ROOT)
    wait_until(lambda: gone(fleet), 20, "Postgres has noticed that the producer is gone")
    return done


@contextmanager
def producing(fleet: Fleet, driver: str, order: str) -> Iterator[subprocess.Popen[bytes]]:
    """A producer that takes order after order until it is killed."""
    env = environment(**fleet.settings.to_env())
    process = subprocess.Popen(command(driver, "for-ever", order), env=env, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def gone(fleet: Fleet) -> bool:
    """Whether nothing is under way in Postgres for any producer, so that what is there now is all there will be."""
    return not fleet.execute("select 1 from pg_stat_activity where application_name = %s", PRODUCER)


def there(fleet: Fleet) -> dict[str, int]:
    """How many rows there are of each kind, and how many keys in Redis."""
    tables = ("taken", "runs", "events", "steps")
    counts = {table: int(fleet.execute(f"select count(*) from {table}")[0][0]) for table in tables}
    with redis.Redis.from_url(fleet.settings.redis_url) as server:
        return {**counts, "in Redis": int(server.dbsize())}


def orders(fleet: Fleet) -> list[str]:
    return [order for (order,) in fleet.execute("select id from taken order by id")]


def ids(fleet: Fleet) -> list[str]:
    return [run_id for (run_id,) in fleet.execute("select run_id from runs order by run_id")]


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_was_not_committed_is_nowhere(fleet: Fleet, driver: str) -> None:
    """Rolled back, or killed before it could commit: no run, no message, and the id is free for who comes next."""
    assert produce(fleet, driver, "rolls-back", "one").code == 0
    assert there(fleet) == NOTHING
    assert produce(fleet, driver, "dies-before-commit", "one").code == KILLED
    assert there(fleet) == NOTHING
    assert fleet.client.submit("tester", "something else", run_id="one").created


def test_what_was_committed_is_done_although_nobody_was_told(fleet: Fleet) -> None:
    """The producer is killed in the statement after its commit: the sweep finds the run, and soon."""
    assert produce(fleet, "psycopg", "dies-after-commit", "early").code == KILLED
    assert there(fleet) == {**NOTHING, "taken": 1, "runs": 1}
    fleet.start("model-1", "tool-1")
    for driver in DRIVERS:
        for number in range(2):
            assert produce(fleet, driver, "dies-after-commit", f"{driver}-{number}").code == KILLED
            assert produce(fleet, driver, "dies-before-commit", f"lost-{driver}-{number}").code == KILLED
    taken = orders(fleet)
    assert taken == ids(fleet) == ["early", "psycopg-0", "psycopg-1", "session-0", "session-1"]
    assert {result.status for result in fleet.finish(taken)} == {"completed"}
    assert sorted(fleet.effects()) == [f"{order}:2" for order in taken]
    assert fleet.provider.received == 2 * len(taken)  # nobody was asked about an order that is not there
    waited = fleet.execute(
        "select id, extract(epoch from ts - at)::float from taken join events on run_id = id"
        " where seq = 0 and id <> 'early'"
    )
    # A run whose message may be under way is left alone for longer than this, and nothing but a sweep could begin it.
    assert min(seconds for _, seconds in waited) < HANDOFF_S, waited


def test_killed_at_any_moment_a_producer_leaves_orders_and_their_runs(fleet: Fleet) -> None:
    """SIGKILL from outside meets it anywhere, in the commit too: no order without its run, no run without its order."""
    fleet.start("model-1", "tool-1")
    for driver in DRIVERS:
        for number in range(2):
            enough = len(orders(fleet)) + 10
            with producing(fleet, driver, f"{driver}-{number}") as producer:
                wait_until(lambda enough=enough: len(orders(fleet)) >= enough, 30, "ten more orders")
                producer.kill()
            wait_until(lambda: gone(fleet), 20)
    taken = orders(fleet)
    assert taken == ids(fleet)
    assert {result.status for result in fleet.finish(taken)} == {"completed"}
    assert sorted(fleet.effects()) == sorted(f"{order}:2" for order in taken)
