"""Messages come late, shuffled and twice: they are hints, and what is done follows from the log alone."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from drangue_worker.chaos.breaks import Break
from drangue_worker.chaos.gaps import gaps
from drangue_worker.chaos.monkey import Monkey
from drangue_worker.chaos.post import Taken, count, put_back, take_all
from drangue_worker.chaos.recovery import Recoveries
from drangue_worker.chaos.workers import Workers
from drangue_worker.embedded import Servers
from drangue_worker.supervisor import Supervisor
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.kit.fleet import Fleet, wait_until

Make = Callable[..., Fleet]

RUNS = 20
PATIENCE_S = 0.5
FIRST = (("note", {"text": "a", "seconds": 0.05}), ("ping", {"seconds": 0.1}), ("wire", {"amount": 1}))
SECOND = (("wire", {"amount": 2}), ("note", {"text": "b"}))
STEPS = (2, 3, 4, 6, 7)  # of the calls


def thinks_twice(call: ProviderCall) -> Reply:
    """A model that asks for three calls, then for two, and then answers."""
    asked = (FIRST, SECOND, ())[call.turn]
    return Reply(text="" if asked else "done", tool_calls=asked)


class Postman:
    """Takes all messages that wait, again and again, and puts them back late: shuffled, and one in three twice."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.dice = random.Random(11)
        self.handled: Counter[str] = Counter()
        self._held: list[tuple[float, Taken]] = []

    def work(self, stopped: threading.Event) -> None:
        """Until `stopped`; then everything is put back."""
        while not stopped.wait(0.05):
            self._put_back(time.monotonic())
            taken = take_all(self.client)
            kept_s = self.dice.choice((0.1, 0.3, 3 * PATIENCE_S))
            self._held.append((time.monotonic() + kept_s, taken))
            self.handled["taken"] += count(taken)
            self.handled["late"] += count(taken) if kept_s > PATIENCE_S else 0
        self._put_back(float("inf"))

    def _put_back(self, now: float) -> None:
        for _, taken in [one for one in self._held if one[0] <= now]:
            self.handled["twice"] += put_back(self.client, taken, self.dice, twice=1 / 3)
        self._held = [one for one in self._held if one[0] > now]


@pytest.fixture
def postman(redis_url: str) -> Iterator[Postman]:
    with redis.Redis.from_url(redis_url) as client:
        yield Postman(client)


@contextmanager
def at_work(postman: Postman) -> Iterator[None]:
    stopped = threading.Event()
    thread = threading.Thread(target=postman.work, args=(stopped,))
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def test_messages_that_come_late_shuffled_and_twice_change_nothing(make_fleet: Make, postman: Postman) -> None:
    """Every run finishes, every call is made once, and what cannot be undone is not even begun twice."""
    fleet = make_fleet(thinks_twice, patience_s=PATIENCE_S, lease_s=15.0, model_concurrency=3)
    with at_work(postman):
        fleet.start("model-1", "tool-1")
        ids = fleet.submit(RUNS)
        results = fleet.finish(ids)
    assert {result.status for result in results} == {"completed"}
    assert sorted(fleet.effects()) == sorted(f"{run_id}:{step}" for run_id in ids for step in STEPS)
    assert fleet.provider.received == 3 * RUNS
    for result in results:
        assert gaps(result.events) == []
        assert sorted(event.step for event in result.events if event.type == "tool_result") == list(STEPS)
        assert sorted(event.step for event in result.events if event.type == "step_started") == [4, 6]
    # Else nothing was shown: most messages were taken on their way, many for longer than a sweep is patient.
    handled = postman.handled
    assert handled["taken"] > 5 * RUNS
    assert handled["late"] > RUNS
    assert handled["twice"] > RUNS


def test_the_monkey_puts_back_what_it_took(database_url: str, redis_url: str) -> None:
    """A shuffle is a delay and another order; one that lost messages would be a flush, and show something else."""
    lists = {b"drangue.tool": 30, b"drangue.tool\x06\x163": 50, b"somebody.elses": 20}
    sent = {name: [b"%d" % number for number in range(size)] for name, size in lists.items()}
    workers = Workers(Supervisor(), database_url)
    monkey = Monkey(workers, Servers(Path("unused")), database_url, redis_url, 3.0, Recoveries(database_url, 3.0))
    breaks = [Break(0.0, "shuffle", 0.0)]
    with redis.Redis.from_url(redis_url) as client, ThreadPoolExecutor(1) as pool:
        for name, messages in sent.items():
            client.rpush(name, *messages)
        playing = pool.submit(monkey.play, breaks, threading.Event())
        wait_until(lambda: not client.exists(b"drangue.tool", b"drangue.tool\x06\x163"), 5, "they are taken")
        client.rpush(b"drangue.tool", b"new")
        playing.result(10)
        left = {name: client.lrange(name, 0, -1) for name in sent}
    assert left[b"drangue.tool"].pop() == b"new"  # the next to be served: what was late is behind what came meanwhile
    assert {name: sorted(messages) for name, messages in left.items()} == {n: sorted(m) for n, m in sent.items()}
    assert [name for name in sent if left[name] == sent[name]] == [b"somebody.elses"]
    assert (monkey.done, monkey.skipped) == ({"shuffle": 1}, {})
