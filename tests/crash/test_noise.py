"""Recovery is not paid for by noise: a step that is well is never sent again, however long it waits for its turn.

From Postgres a message that waits in a long queue looks like one that is lost. Here real sweepers look at real queues,
and every message is counted: noise makes a long queue longer, just when it is long.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
import redis

from drangue_client import Settings
from drangue_client.store.log import SqlLog
from drangue_client.wire.envelope import lists_of
from drangue_client.wire.queue import TOOL_QUEUE, Sender
from drangue_worker.engine.sweep import Sweeper, Swept
from tests.contract.log_scenes import ask, at_once, fan_out
from tests.kit.fleet import Fleet, calls_then_answer, wait_until

Make = Callable[..., Fleet]
Key = tuple[str, int]

RUNS, TOOLS = 20, 100  # the backlog: 2,000 steps
PATIENCE_S = 0.25
SWEEP_S = 0.05
SWEEPS = 120
A_SWEEP = 15  # messages taken for each: some are left at the end
LOOKS = 12
SOON = 400  # messages: those whose turn comes next
AT_ONCE = 50
MENDED_S = 2 * PATIENCE_S + 1.0
CLAIM = """
update steps set claim = 'x', worker = 'x', lease_until = now() + interval '1 hour', sends = 0
where run_id = %s and step = %s and claim is null
"""
LISTS = lists_of(TOOL_QUEUE)


class Backlog:
    """Steps of a tool's queue whose messages wait, the sweepers of two workers, and a third that takes messages."""

    def __init__(self, database_url: str, redis_url: str, stack: ExitStack) -> None:
        self.url = database_url
        self.settings = Settings(
            database_url=database_url, redis_url=redis_url, lease_s=60.0, sweep_s=SWEEP_S, patience_s=PATIENCE_S
        )
        self.redis = stack.enter_context(redis.Redis.from_url(redis_url))
        self.log = self._log(stack)
        self.sender = Sender(self.settings)
        self.sweepers = [Sweeper(self._log(stack), Sender(self.settings), self.settings) for _ in range(2)]
        self.swept: list[Swept] = []

    def _log(self, stack: ExitStack) -> SqlLog:
        log = SqlLog(self.url)
        stack.callback(log.close)
        return log

    def fill(self, run_id: str, tools: int = TOOLS) -> None:
        """A run whose model asked for so many calls: each is open, and its message is sent."""
        self.open(run_id, tools)
        self.send(run_id)

    def open(self, run_id: str, tools: int) -> None:
        """The first half of it: the steps are recorded, and nobody has been told yet."""
        fan_out(self.log, run_id, tools, wake_in_s=60.0)

    def send(self, run_id: str) -> None:
        """The other half."""
        self.sender.steps(ref for ref, _, _ in self.log.open_steps(run_id))

    def in_doubt(self) -> int:
        """How many steps have waited for longer than sweepers are patient."""
        return sum(len(state.doubtful) for state in self.log.queues(PATIENCE_S, RUNS * TOOLS))

    def unclaimed(self) -> set[Key]:
        """The steps that nobody has taken."""
        with psycopg.connect(self.url) as connection:
            return set(connection.execute("select run_id, step from steps where claim is null").fetchall())

    def messages(self) -> Counter[Key]:
        """How many messages wait for each step."""
        return Counter(self._key(body) for name in LISTS for body in self.redis.lrange(name, 0, -1))

    def take(self) -> Key:
        """Take the next message; returns its step, which a worker would claim now."""
        popped = self.redis.brpop(LISTS, timeout=5)
        assert popped is not None
        return self._key(popped[1])

    def claim_next(self, count: int) -> None:
        """Take so many messages, or as many as there are, and claim their steps."""
        keys = [self._key(body) for name in LISTS for body in self.redis.rpop(name, count) or []]
        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            cursor.executemany(CLAIM, keys)

    def claim(self, key: Key) -> None:
        """Claim a step, for longer than a test takes."""
        assert self.log.claim([ask(*key)], self.settings.lease_s) != [None]

    def lose(self, count: int, of: int) -> set[Key]:
        """Remove messages from among the next `of`; returns their steps."""
        waiting = [(name, body) for name in LISTS for body in self.redis.lrange(name, -of, -1)]
        lost = random.Random(7).sample(waiting, count)
        for name, body in lost:
            assert self.redis.lrem(name, 1, body) == 1
        return {self._key(body) for _, body in lost}

    def sweep(self) -> int:
        """Let both sweepers look at the same moment; returns how many messages they sent."""
        both: list[Swept] = at_once(*[sweeper.sweep for sweeper in self.sweepers])
        return sum(one.runs + one.recovered + one.resent for one in both)

    @contextmanager
    def sweeping(self) -> Iterator[None]:
        """Both sweepers sweep again and again inside the block, each at a pace of its own."""
        stopped = threading.Event()

        def work(sweeper: Sweeper) -> None:
            while not stopped.wait(SWEEP_S * random.uniform(0.8, 1.2)):
                self.swept.append(sweeper.sweep())

        with ThreadPoolExecutor(2) as pool:
            working = [pool.submit(work, sweeper) for sweeper in self.sweepers]
            try:
                yield
            finally:
                stopped.set()
            for one in working:
                one.result()

    @staticmethod
    def _key(body: bytes) -> Key:
        run_id, step, _ = json.loads(body)["headers"]["id"].rsplit(":", 2)
        return run_id, int(step)


@pytest.fixture
def backlog(database_url: str, redis_url: str) -> Iterator[Backlog]:
    """2,000 queued steps whose messages wait, all of them for longer than sweepers are patient."""
    with ExitStack() as stack:
        made = Backlog(database_url, redis_url, stack)
        for number in range(RUNS):
            made.fill(f"r{number}")
        assert made.messages() == Counter(made.unclaimed())
        assert made.messages().total() == RUNS * TOOLS
        wait_until(lambda: made.in_doubt() == RUNS * TOOLS, 10)
        yield made


def test_a_long_queue_that_is_worked_off_slowly_is_left_alone(backlog: Backlog) -> None:
    """Every message waits far longer than patience lasts, and each time one is taken there is one less for a moment."""
    began = time.monotonic()
    taken: list[Key] = []
    with backlog.sweeping():
        while len(backlog.swept) < SWEEPS:
            wait_until(lambda: len(taken) < A_SWEEP * (len(backlog.swept) + 1))
            taken.append(backlog.take())
            backlog.claim(taken[-1])
    assert time.monotonic() - began > 10 * PATIENCE_S
    assert [one for one in backlog.swept if one] == []
    assert backlog.messages() == Counter(backlog.unclaimed())
    assert 0 < backlog.messages().total() < RUNS * TOOLS


def test_steps_whose_messages_are_about_to_arrive_send_no_others(backlog: Backlog) -> None:
    """A step is recorded first and then sent: in a busy fleet there is always one whose message is not there yet."""
    for number in range(LOOKS):
        backlog.open(f"new{number}", 1)
        assert (number, backlog.sweep()) == (number, 0)
        backlog.send(f"new{number}")
    assert backlog.messages() == Counter(backlog.unclaimed())


def test_messages_that_were_taken_just_now_send_no_others(backlog: Backlog) -> None:
    """A message is taken first and its step claimed then: a busy worker may take longer than a sweep's pause."""
    looks, slow, until = 0, set[Key](), time.monotonic() + 30
    while looks < LOOKS:
        assert time.monotonic() < until, f"only {looks} looks were quick enough to tell"
        began, taken = time.monotonic(), backlog.take()
        sent = backlog.sweep() + backlog.sweep()
        if time.monotonic() - began < PATIENCE_S:
            assert (looks, sent) == (looks, 0)
            looks += 1
        else:  # a machine this slow has kept the message for longer than a message may take
            slow.add(taken)
        backlog.claim(taken)
    waiting = backlog.messages()
    assert Counter({key: count for key, count in waiting.items() if key not in slow}) == Counter(backlog.unclaimed())


@pytest.mark.parametrize("lost", [1, 40])
def test_as_many_messages_are_sent_as_were_lost_and_no_more(backlog: Backlog, lost: int) -> None:
    """Two sweepers see the same loss at the same moment, in a queue that stands still; one of them mends it."""
    assert backlog.sweep() == 0
    backlog.lose(lost, of=SOON)
    sent = 0
    deadline = time.monotonic() + MENDED_S
    while not sent and time.monotonic() < deadline:
        sent += backlog.sweep()
    assert sent == lost
    until = time.monotonic() + 5 * PATIENCE_S  # longer than the patience with what was sent twice
    while time.monotonic() < until:
        sent += backlog.sweep()
    assert sent == lost
    assert backlog.messages().total() == RUNS * TOOLS


def test_every_lost_message_is_sent_again_by_its_turn_and_no_other(backlog: Backlog) -> None:
    """Lost all over a long queue: each step is to be taken once, and by the end nobody waits for a message."""
    lost, sent = backlog.lose(40, of=RUNS * TOOLS), 0
    deadline = time.monotonic() + 20
    while backlog.unclaimed():
        assert time.monotonic() < deadline, f"{len(backlog.unclaimed())} steps wait for a message"
        sent += backlog.sweep()
        backlog.claim_next(AT_ONCE)
    assert sent == len(lost)
    assert backlog.messages().total() == 0


CALLS = (("note", {"text": "a", "seconds": 0.02}), ("ping", {"seconds": 0.05}))
MANY = 200


def swept(fleet: Fleet) -> Counter[str]:
    """What the workers' sweeps sent, by cause."""
    told: Counter[str] = Counter()
    for name in ("model-1", "tool-1"):
        for line in fleet.log_of(name).splitlines():
            found = json.loads(line) if line.startswith("{") else {}  # the rest are Celery's greetings
            if found.get("event") == "swept":
                told.update({cause: found[cause] for cause in ("runs", "recovered", "resent")})
    return told


def test_a_fleet_that_is_given_more_than_it_can_do_at_once_does_each_thing_once(make_fleet: Make) -> None:
    """Two hundred runs at once, and nobody breaks anything: nothing is asked for, run or sent a second time."""
    fleet = make_fleet(calls_then_answer(*CALLS), log_format="json", patience_s=2.0, lease_s=15.0)
    fleet.start("model-1", "tool-1")
    ids = fleet.submit(MANY)
    results = fleet.finish(ids)
    assert {result.status for result in results} == {"completed"}
    assert fleet.provider.received == 2 * MANY
    assert sorted(fleet.effects()) == sorted(f"{run_id}:{step}" for run_id in ids for step in (2, 3))
    told = swept(fleet)
    assert (told["resent"], told["recovered"]) == (0, 0)
