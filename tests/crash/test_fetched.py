"""What a worker has fetched and not claimed is in its memory alone: no copy is kept in Redis. A sweep is the net."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import redis

from drangue_client.wire.queue import COORDINATE_QUEUE, MODEL_QUEUE
from tests.kit.fleet import Fleet, calls_then_answer, wait_until

Make = Callable[..., Fleet]

RUNS = 20
# Postgres would make the claims of a client that is gone by then.
LEFT_BY_THE_DEAD = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'"
COPIES = {"unacked", "unacked_index", "unacked_mutex"}


@pytest.fixture
def fleet(make_fleet: Make, redis_url: str) -> Fleet:
    """A fleet whose leases outlast the test, and a first step of each of twenty runs that waits for a worker."""
    fleet = make_fleet(calls_then_answer(), lease_s=120.0)
    (coordinator,) = fleet.start("coordinator-1")
    fleet.submit(RUNS)
    wait_until(lambda: fleet.client._sender.waiting([MODEL_QUEUE]) == {MODEL_QUEUE: RUNS}, what="steps wait")
    coordinator.process.send_signal(signal.SIGKILL)
    return fleet


@contextmanager
def no_claims(fleet: Fleet) -> Iterator[None]:
    """Nobody can claim a step inside the block."""
    with psycopg.connect(fleet.settings.database_url) as connection:
        connection.execute("lock table steps in share mode")
        yield


def runs(fleet: Fleet) -> list[str]:
    return [row.run_id for row in fleet.client.runs()]


def copies(redis_url: str) -> set[str]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        return COPIES & set(client.scan_iter())


def fetch_all(fleet: Fleet) -> Any:
    """A worker that has fetched every message, and claimed nothing."""
    (worker,) = fleet.start("model-1")
    wait_until(lambda: fleet.client._sender.waiting([MODEL_QUEUE]) == {MODEL_QUEUE: 0}, what="all is fetched")
    assert fleet.held_by(worker) == 0
    return worker


def test_what_died_with_its_worker_before_it_was_claimed_is_sent_again(fleet: Fleet, redis_url: str) -> None:
    """It is nowhere: neither in a queue nor claimed. No lease has to lapse for it, since there is none."""
    with no_claims(fleet):
        worker = fetch_all(fleet)
        assert copies(redis_url) == set()
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        fleet.execute(LEFT_BY_THE_DEAD)
    fleet.start("model-2")
    assert {result.status for result in fleet.finish(runs(fleet), 60)} == {"completed"}
    assert fleet.provider.received == RUNS
    assert copies(redis_url) == set()


def test_with_copies_a_fetched_message_is_known_to_be_on_its_way(make_fleet: Make, redis_url: str) -> None:
    """`broker_acks` keeps a copy of each until its step is done, and no sweep sends another one meanwhile."""
    fleet = make_fleet(calls_then_answer(delay_s=0.5), broker_acks=True)
    fleet.start("model-1")
    ids = fleet.submit(3)
    wait_until(lambda: copies(redis_url) == COPIES - {"unacked_mutex"}, what="copies are kept")
    assert {result.status for result in fleet.finish(ids)} == {"completed"}
    wait_until(lambda: copies(redis_url) == set(), what="copies are removed")
    assert fleet.client._sender.waiting([COORDINATE_QUEUE]) == {COORDINATE_QUEUE: 0}
