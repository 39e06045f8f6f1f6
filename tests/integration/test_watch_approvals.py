"""`watch_approvals`: what waits for people is told once, and again when it has changed, by rings or by the clock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import redis

from drangue_client import AsyncClient, Client, waiting
from drangue_client.store.values import RunRow
from drangue_client.wire import aio, signals
from drangue_client.wire.signals import APPROVALS
from tests.kit.fleet import Fleet, calls_then_answer, wait_until
from tests.kit.tcp import Wire

NOBODY_THERE = "redis://127.0.0.1:1/0"
LAST = "last"  # the run that ends a watch of these tests
Watch = Callable[[Client, list[dict[str, Any]]], None]


@pytest.fixture(scope="module")
def fleet(addresses: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Workers for the whole file, on servers emptied once."""
    with psycopg.connect(addresses.database_url, autocommit=True) as connection:
        connection.execute("truncate runs, events, steps, agents")
    with redis.Redis.from_url(addresses.redis_url) as server:
        server.flushdb()
    script = calls_then_answer(("wire", {"amount": 5}))
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(addresses.database_url, addresses.redis_url, folder, script, agents=("tests.kit.approving",)) as made:
        made.start("model-1")
        yield made


@pytest.fixture(autouse=True)
def alone(fleet: Fleet) -> Iterator[None]:
    """What a test leaves waiting is of no concern to the next one."""
    yield
    for row in fleet.client.runs(limit=1000):
        fleet.client.cancel(row.run_id)


def poll_every(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for module in (waiting, signals, aio):
        monkeypatch.setattr(module, "APPROVALS_POLL_S", seconds)


def watch(client: Client, told: list[dict[str, Any]]) -> None:
    for request in client.watch_approvals():
        told.append(request)
        if request["run_id"].startswith(LAST):
            return


def watch_async(client: Client, told: list[dict[str, Any]]) -> None:
    async def story() -> None:
        async with AsyncClient(client.settings) as watching:
            async for request in watching.watch_approvals():
                told.append(request)
                if request["run_id"].startswith(LAST):
                    return

    asyncio.run(story())


def gist(request: dict[str, Any]) -> tuple[Any, ...]:
    """What of a request these tests change: (run, amount, who granted it, who is asked besides)."""
    amount = request["arguments"]["amount"]
    return request["run_id"], amount, request.get("granted_by"), request.get("escalated_to")


def paused(fleet: Fleet, agent: str, run_id: str) -> None:
    fleet.client.submit(agent, "pay", run_id=run_id)
    wait_until(lambda: fleet.client.get(run_id).status == "paused", 60)


@pytest.mark.parametrize("watcher", [watch, watch_async])
def test_each_request_is_told_once_and_again_when_it_has_changed(
    fleet: Fleet, watcher: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told nothing decides nothing, and who is told twice stops reading. By the announcements alone: here
    nobody looks by the clock."""
    poll_every(monkeypatch, 3600)
    name = watcher.__name__
    there, new, put_on, last = f"there-{name}", f"new-{name}", f"put-on-{name}", f"{LAST}-{name}"
    told: list[dict[str, Any]] = []
    paused(fleet, "plain", there)
    watching = threading.Thread(target=watcher, args=(fleet.client, told))
    watching.start()

    def comes(*expected: Any) -> None:
        wait_until(lambda: len(told) >= len(expected), 60, f"{expected} and not only {told}")
        assert [gist(request) for request in told] == list(expected)

    story: list[Any] = [(there, 5, None, None)]
    comes(*story)
    paused(fleet, "double", new)
    story.append((new, 5, [], None))
    comes(*story)
    fleet.client.approve(new, by="ann")
    story.append((new, 5, ["ann"], None))
    comes(*story)
    fleet.client.approve(new, arguments={"amount": 4}, by="bob")
    story.append((new, 4, ["bob"], None))
    comes(*story)
    assert told[-1]["arguments_hash"] != told[-2]["arguments_hash"]
    paused(fleet, "escalating", put_on)
    wait_until(lambda: told[-1].get("escalated_to"), 60)
    del told[len(story) : -1]  # as it was before; on a slow machine nobody has seen that
    story.append((put_on, 5, None, "leads"))
    comes(*story)
    paused(fleet, "plain", last)
    story.append((last, 5, None, None))
    watching.join(60)
    comes(*story)
    assert told[-1] == fleet.client.pending_approvals(last)[0]
    assert (told[-1]["agent"], told[-1]["tool"]) == ("plain", "wire")


@pytest.mark.parametrize("watcher", [watch, watch_async])
def test_without_redis_requests_come_by_the_clock(
    fleet: Fleet, watcher: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The announcements are lost, the requests are not."""
    poll_every(monkeypatch, 0.2)
    told: list[dict[str, Any]] = []
    with closing(Client(replace(fleet.settings, redis_url=NOBODY_THERE))) as deaf:
        watching = threading.Thread(target=watcher, args=(deaf, told))
        watching.start()
        for run_id in (f"deaf-{watcher.__name__}", f"{LAST}-deaf-{watcher.__name__}"):
            paused(fleet, "plain", run_id)
            wait_until(lambda run_id=run_id: told and told[-1]["run_id"] == run_id, 60)  # type: ignore[misc]
        watching.join(60)
    assert len(told) == 2


@pytest.mark.parametrize("watcher", [watch, watch_async])
def test_a_watch_hears_again_when_redis_is_back(fleet: Fleet, watcher: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bot runs for months; one restart of Redis must not leave it slow for the rest of them."""
    poll_every(monkeypatch, 0.2)
    told: list[dict[str, Any]] = []
    wire, through = Wire.to(fleet.settings.redis_url, 6379)
    with (
        wire,
        closing(Client(replace(fleet.settings, redis_url=through))) as client,
        closing(redis.Redis.from_url(fleet.settings.redis_url)) as server,
    ):

        def ears() -> int:
            return int(server.pubsub_numsub(APPROVALS)[0][1])  # type: ignore[no-untyped-call]

        watching = threading.Thread(target=watcher, args=(client, told))
        watching.start()
        wait_until(lambda: ears() == 1, 60, "it has subscribed")
        wire.refuse()
        wait_until(lambda: ears() == 0, 60, "Redis has noticed")
        paused(fleet, "plain", f"while-{watcher.__name__}")
        wait_until(lambda: len(told) == 1, 60, "it looks by itself")
        wire.restore()
        wait_until(lambda: ears() == 1, 60, "it has subscribed anew")
        paused(fleet, "plain", f"{LAST}-back-{watcher.__name__}")
        watching.join(60)
    assert len(told) == 2


def test_a_watch_of_no_time_looks_once_and_asks_nothing_of_redis(fleet: Fleet) -> None:
    """For a job that runs every minute; with Redis away it takes no longer."""
    paused(fleet, "plain", "once")
    with closing(Client(replace(fleet.settings, redis_url=NOBODY_THERE))) as client:
        assert [request["run_id"] for request in client.watch_approvals(timeout=0)] == ["once"]
    wire, through = Wire.to(fleet.settings.redis_url, 6379)
    with wire, closing(Client(replace(fleet.settings, redis_url=through))) as client:
        assert len(list(client.watch_approvals(timeout=0))) == 1
        assert wire.opened == 0


def test_a_watch_ends_when_its_time_is_over(fleet: Fleet) -> None:
    """It is no error that nothing came, and an iterator that never ends could not be given to `for`."""
    assert list(fleet.client.watch_approvals(timeout=0.05)) == []

    async def none() -> list[Any]:
        async with AsyncClient(fleet.settings) as client:
            return [request async for request in client.watch_approvals(timeout=0.05)]

    assert asyncio.run(none()) == []


@pytest.mark.parametrize("hears", ["approvals", "run", "tokens"])
def test_a_wait_that_is_cancelled_ends_whenever_that_comes(addresses: Any, hears: str) -> None:
    """While it connects, subscribes, waits: a server that is told to stop must not hang on one of its requests."""

    async def listen(server: aio.AsyncSignals) -> None:
        if hears == "tokens":
            while True:
                await server.read("r", wait_s=0.01)
        async with server.listen_approvals() if hears == "approvals" else server.listen("r") as listener:
            while True:
                await listener.wait(60)

    async def cancelled_after(turns: int) -> bool:
        server = aio.AsyncSignals(addresses.redis_url)
        task = asyncio.create_task(listen(server))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=30)
        await server.close()
        return task.cancelled()

    assert [turns for turns in range(60) if not asyncio.run(cancelled_after(turns))] == []


def row(run_id: str, head_seq: int) -> RunRow:
    """A run that waits, as far as `Told` looks at it."""
    return RunRow(run_id, "a", "paused", "celery", 5, {}, "", head_seq, None, 0.0, 0.0, None)


def test_a_run_that_goes_on_and_waits_again_with_the_same_request_tells_nothing() -> None:
    """Of two calls one was approved: the other was told already, and its run is merely back from doing the first."""
    told = waiting.Told()
    first, second = ({"step": step, "arguments_hash": "x", "arguments": {}} for step in (2, 3))
    assert told.news(row("r", 4), [first, second]) == [first, second]
    assert told.unread([row("r", 4)]) == []
    assert told.unread([]) == []  # it runs
    assert [one.head_seq for one in told.unread([row("r", 8)])] == [8]
    assert told.news(row("r", 8), [second]) == []
    assert told.news(row("r", 9), [{**second, "arguments_hash": "y"}]) != []


def test_only_runs_that_have_moved_are_read_and_the_oldest_come_first() -> None:
    """A thousand runs that wait for days cost a look one statement, not a thousand."""
    told = waiting.Told()
    newest_first = [row(f"r{number}", 1) for number in (3, 2, 1)]
    assert [one.run_id for one in told.unread(newest_first)] == ["r1", "r2", "r3"]
    for one in newest_first:
        told.news(one, [])
    assert told.unread(newest_first) == []
    assert [one.run_id for one in told.unread([newest_first[0], row("r2", 2), newest_first[2]])] == ["r2"]


def test_what_is_known_of_runs_that_wait_no_more_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch of months must not grow with every run there ever was; what waits now is never forgotten."""
    monkeypatch.setattr(waiting, "KEPT", 2)
    told = waiting.Told()
    request = {"step": 2, "arguments_hash": "x"}
    for number in range(5):
        assert told.news(row(f"r{number}", 1), [request]) == [request]
    assert told.unread([row("r0", 1)]) == []  # r1 and r2 are forgotten, r3 and r4 kept
    assert [told.news(row(f"r{number}", 2), [request]) for number in range(5)] == [[], [request], [request], [], []]
