"""What a worker fetches from a real Redis: within its limit, in the order of the lists, and nothing of it is lost.

Fetching one by one is the reference. Without copies in Redis, what was fetched is in the worker's books alone.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from drangue_client import Settings
from drangue_client.store.values import StepRef
from drangue_client.wire.broker import broker_settings, queue_named
from drangue_client.wire.envelope import lists_of, message
from drangue_client.wire.queue import Sender
from drangue_worker.fleet import transport
from tests.kit.tcp import Wire

TOOLS, MODELS = "drangue.tool", "drangue.model"
MANY = 60
COPIES = {"unacked", "unacked_index", "unacked_mutex"}


class Worker:
    """The consumer's half of a worker: it takes messages within its limit, and ends them when it is told to."""

    def __init__(self, url: str, queues: list[str], prefetch: int, **options: Any) -> None:
        told = {
            **broker_settings(Settings(redis_url=url))["broker_transport_options"],
            "polling_interval": 0.1,
            **options,
        }
        self.most = prefetch or MANY
        self.connection = Connection(url, transport=f"{transport.__name__}:Transport", transport_options=told)
        self.under_way: dict[str, Any] = {}  # in the order in which they came
        self.seen: dict[str, list[str]] = defaultdict(list)  # ids by queue
        consumer = Consumer(self.connection, [queue_named(name) for name in queues], on_message=self._take)
        consumer.qos(prefetch_count=prefetch)
        consumer.consume()

    def _take(self, message: Any) -> None:
        self.under_way[message.headers["id"]] = message
        self.seen[message.delivery_info["routing_key"]].append(message.headers["id"])

    def fetch(self) -> list[str]:
        """Take what there is, up to the limit; returns the ids of all that is under way."""
        before = -1
        while before < len(self.under_way) < self.most:
            before = len(self.under_way)
            with suppress(TimeoutError):  # nothing came
                self.connection.drain_events(timeout=0.05)
        return list(self.under_way)

    def end(self, *ids: str) -> None:
        for one in ids or list(self.under_way):
            self.under_way.pop(one).ack()


Make = Callable[..., Worker]


@pytest.fixture(autouse=True)
def ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker of ours, on a machine that is never slow: what comes is taken for one of many."""
    monkeypatch.setattr(transport, "_ours", None)
    monkeypatch.setattr(transport, "AT_ONCE_S", float("inf"))


@pytest.fixture
def make(redis_url: str) -> Iterator[Make]:
    with ExitStack() as stack:

        def make_one(queues: list[str], prefetch: int = 1000, url: str = redis_url, **options: Any) -> Worker:
            worker = Worker(url, queues, prefetch, **options)
            stack.callback(worker.connection.close)
            return worker

        yield make_one


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def fill(redis_url: str, queue: str, count: int, priorities: tuple[int, ...] = (5,)) -> list[str]:
    """Send that many messages; returns their ids."""
    chance = random.Random(3)
    refs = [StepRef(queue, step, "tool", queue, chance.choice(priorities)) for step in range(count)]
    sender = Sender(Settings(redis_url=redis_url))
    sender.steps(refs)
    sender.close()
    return [f"{queue}:{step}:0.0" for step in range(count)]


def waiting(server: redis.Redis, *queues: str) -> int:
    return sum(server.llen(name) for queue in queues for name in lists_of(queue))


def calls(server: redis.Redis, command: str) -> int:
    return int(server.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


@pytest.mark.parametrize("prefetch", [1, 7, 1000])
def test_many_at_once_are_the_same_messages_in_the_same_order_as_one_by_one(
    make: Make, redis_url: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    """The fetch is a matter of speed alone: urgent before others, and each list from its head."""
    seen = []
    for most in (1, 32):
        monkeypatch.setattr(transport, "MOST", most)
        for queue in (TOOLS, MODELS):
            fill(redis_url, queue, MANY, priorities=(0, 3, 5, 9))
        server.config_resetstat()
        worker = make([TOOLS, MODELS], prefetch)
        while worker.fetch():
            worker.end()
        seen.append(worker.seen)
        assert (waiting(server, TOOLS, MODELS), len(worker.seen[TOOLS]), len(worker.seen[MODELS])) == (0, MANY, MANY)
        assert (calls(server, "rpop") > 0) is (most > 1 and prefetch > 1)
        worker.connection.close()
    one_by_one, many_at_once = seen
    assert many_at_once == one_by_one


def test_a_backlog_costs_few_commands(make: Make, redis_url: str, server: redis.Redis) -> None:
    """Two commands for thirty-two messages; and none to keep or to forget one."""
    fill(redis_url, TOOLS, 10 * 32)
    worker = make([TOOLS])
    server.config_resetstat()
    assert len(worker.fetch()) == 10 * 32
    worker.end()
    assert calls(server, "rpop") == 10
    assert [calls(server, name) for name in ("zadd", "hset", "zrem", "hdel", "multi")] == [0] * 5
    assert not COPIES & {key.decode() for key in server.scan_iter()}


def test_a_worker_takes_no_more_than_its_limit(make: Make, redis_url: str, server: redis.Redis) -> None:
    """What four processes can do, four messages are fetched for: the fifth is for a worker that is free."""
    ids = fill(redis_url, TOOLS, 40)
    worker = make([TOOLS], prefetch=4)
    assert worker.fetch() == ids[:4]
    assert worker.fetch() == ids[:4]
    assert waiting(server, TOOLS) == 36
    worker.end(ids[1], ids[2])
    assert worker.fetch() == [ids[0], ids[3], ids[4], ids[5]]
    assert waiting(server, TOOLS) == 34


def test_no_queue_waits_for_another_s_backlog(make: Make, redis_url: str, server: redis.Redis) -> None:
    """Queues take turns, with as many messages each as are fetched at once."""
    fill(redis_url, TOOLS, 200)
    fill(redis_url, MODELS, 200)
    worker = make([TOOLS, MODELS], prefetch=64)
    worker.fetch()
    assert {queue: len(ids) for queue, ids in worker.seen.items()} == {TOOLS: 32, MODELS: 32}


@pytest.mark.parametrize("copies", [False, True])
def test_a_worker_that_ends_in_order_puts_back_what_it_has_not_begun(
    make: Make, redis_url: str, server: redis.Redis, copies: bool
) -> None:
    """Somebody else takes it at once; nobody has to find out that it is gone. It keeps its place in the queue."""
    ids = fill(redis_url, TOOLS, 40)
    worker = make([TOOLS], prefetch=8, ack_emulation=copies)
    assert worker.fetch() == ids[:8]
    assert bool(COPIES & {key.decode() for key in server.scan_iter()}) is copies
    worker.end(ids[0], ids[1])
    worker.connection.close()
    assert waiting(server, TOOLS) == 38
    left = make([TOOLS], ack_emulation=copies).fetch()
    assert sorted(left) == sorted(ids[2:])
    if not copies:
        assert left == ids[2:]


def test_a_rejected_message_comes_again_after_the_others(make: Make, redis_url: str, server: redis.Redis) -> None:
    """A process that died over a message gives it back so; at the head of its queue it would be taken next."""
    ids = fill(redis_url, TOOLS, 5)
    worker = make([TOOLS], prefetch=2)
    worker.fetch()
    worker.under_way.pop(ids[0]).reject(requeue=True)
    worker.under_way.pop(ids[1]).reject()
    assert waiting(server, TOOLS) == 4
    seen = []
    while fetched := worker.fetch():
        seen += fetched
        worker.end()
    assert seen == [*ids[2:], ids[0]]


def test_a_redis_that_is_gone_by_then_is_told_and_no_more(make: Make, redis_url: str, server: redis.Redis) -> None:
    """kombu would write what it could not put back to a file, as a pickle; here a sweep sends it again."""
    before = set(Path("/tmp").iterdir())
    wire, url = Wire.to(redis_url, 6379)
    fill(redis_url, TOOLS, 5)
    with wire:
        worker = make([TOOLS], prefetch=2, url=url)
        assert len(worker.fetch()) == 2
        wire.refuse()
        for message in worker.under_way.values():
            message.channel.qos.restore_unacked_once()
            message.ack()  # late: nobody minds
    assert waiting(server, TOOLS) == 3
    assert [path for path in set(Path("/tmp").iterdir()) - before if path.is_file() and _holds(path, TOOLS)] == []


def _holds(path: Path, text: str) -> bool:
    return text.encode() in path.read_bytes()


def test_what_is_no_message_is_dropped_from_among_the_others(make: Make, redis_url: str, server: redis.Redis) -> None:
    """Each of many is looked at as one is; and what was dropped takes no place from what comes after it."""
    ids = fill(redis_url, TOOLS, 12)
    (name,) = (one for one in lists_of(TOOLS) if server.llen(one))
    for number, junk in enumerate([b"\xff\xfe", b"{", b"[]", b"{}", b"[" * 100_000, b'{"properties": {}}']):
        server.linsert(name, "before", server.lindex(name, 2 * number), junk)
    worker = make([TOOLS], prefetch=5)
    seen = []
    while fetched := worker.fetch():
        assert len(fetched) <= 5
        seen += fetched
        worker.end()
    assert (seen, waiting(server, TOOLS)) == (ids, 0)


def test_a_redis_that_gives_one_at_a_time_is_asked_for_no_more(
    make: Make, redis_url: str, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """One before 6.2, or a user of ours without the leave: it is tried once, and all messages come."""
    ids = fill(redis_url, TOOLS, 2 * MANY)
    server.execute_command("ACL", "SETUSER", "old", "on", ">old", "+@all", "-rpop", "~*", "&*")
    try:
        server.config_resetstat()
        worker = make([TOOLS], url=f"redis://old:old@{redis_url.rpartition('@')[2]}")
        assert worker.fetch() == ids
        assert server.info("commandstats")["cmdstat_rpop"]["rejected_calls"] == 1
    finally:
        server.execute_command("ACL", "DELUSER", "old")


@pytest.mark.parametrize("ours", [{TOOLS}, set()])
def test_an_application_s_own_app_is_left_as_it_is(
    make: Make, redis_url: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, ours: set[str]
) -> None:
    """Its own tasks have no claims: what it fetches is kept as it says, and comes one by one."""
    monkeypatch.setattr(transport, "_ours", ours)
    ids = fill(redis_url, TOOLS, 12)
    server.config_resetstat()
    worker = make([TOOLS], ack_emulation=True)
    assert worker.fetch() == ids
    assert (calls(server, "rpop"), server.hlen("unacked")) == (0, 12)


def test_an_answer_to_a_question_is_no_backlog(make: Make, redis_url: str, server: redis.Redis) -> None:
    """Who asks workers has no limit on what it takes, and each of its lists is read by it alone."""
    fill(redis_url, TOOLS, 12)
    server.config_resetstat()
    assert len(make([TOOLS], prefetch=0).fetch()) == 12
    assert calls(server, "rpop") == 0


@pytest.mark.parametrize(
    ("of", "name"),
    [
        *((kombu_redis.Channel, name) for name in ("_brpop_read", "_get_client", "_connparams", "_q_for_pri")),
        *((kombu_redis.Channel, name) for name in ("_brpop_sent_at", "_closing", "active_queues", "conn_or_acquire")),
        *((kombu_redis.Channel, name) for name in ("_get_message_priority", "ack_emulation", "sep", "client")),
        *((virtual.QoS, name) for name in ("_flush", "_delivered", "can_consume_max_estimate", "restore_unacked")),
        *((virtual.QoS, name) for name in ("reject", "_dirty", "restore_unacked_once")),
        (kombu_redis.Transport, "_deliver"),
    ],
)
def test_what_is_used_of_kombu_s_inside_is_there(of: type, name: str) -> None:
    """A name that went away would be passed over in silence: a method that overrides nothing is never called."""
    assert hasattr(of, name), f"kombu has no {of.__name__}.{name} any more: look at drangue_worker/fleet/transport.py"


def channel_of(worker: Worker) -> Any:
    return worker.connection.default_channel


def test_there_is_room_while_nothing_waits(redis_url: str, make: Make) -> None:
    """A worker goes on with steps of its own in places that nobody in the queue could have."""
    worker = make([TOOLS], 10)
    fill(redis_url, TOOLS, 4)
    worker.fetch()
    assert channel_of(worker).room(TOOLS) == 6
    worker.end()
    assert channel_of(worker).room(TOOLS) == 10
    assert channel_of(worker).room(MODELS) == 0  # which it does not serve


@pytest.mark.parametrize("limit", [10, 1])
def test_there_is_none_where_more_may_wait_than_was_taken(redis_url: str, make: Make, limit: int) -> None:
    """Whoever is in the queue, and of a higher priority it may be, comes first, also when a place is free."""
    worker = make([TOOLS], limit)
    fill(redis_url, TOOLS, 30)
    first = worker.fetch()
    worker.end(first[0])
    assert channel_of(worker).room(TOOLS) == 0
    seen = 0
    while seen < len(worker.seen[TOOLS]):
        seen = len(worker.seen[TOOLS])
        worker.end()
        worker.fetch()
    worker.end()
    fill(redis_url, TOOLS, 1)
    transport.AT_ONCE_S = 0.0  # it came to an empty queue; the fixture puts this back
    worker.fetch()
    worker.end()
    assert channel_of(worker).room(TOOLS) == limit


def test_there_is_none_for_a_worker_that_keeps_copies(redis_url: str, make: Make) -> None:
    """What it does without a message would be missing there."""
    worker = make([TOOLS], ack_emulation=True)
    assert channel_of(worker).room(TOOLS) == 0


def test_a_channel_that_is_closed_has_no_room_and_hands_nothing_on(redis_url: str, make: Make) -> None:
    """Celery keeps it until it has another, and workers ask it from other threads meanwhile."""
    worker = make([TOOLS])
    channel = channel_of(worker)
    text = message("drangue.call_tool", ("r", 1), "r:1:0.0", TOOLS, 5)
    channel.hand_on(text, TOOLS)
    assert worker.seen[TOOLS] == ["r:1:0.0"]
    channel.hand_on(message("drangue.call_model", ("r", 1), "r:1:0.0", MODELS, 5), MODELS)
    channel.close()
    assert channel.room(TOOLS) == 0
    channel.hand_on(text, TOOLS)
    assert len(worker.seen[TOOLS]) == 1
