"""A whole application: two producers, three pools and somebody who decides, each a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from drangue_client import AsyncClient, Client, Settings
from drangue_client.events import Event
from drangue_client.store.log import SqlLog
from tests.acceptance.shell import environment, messages_in, running
from tests.kit.application import MOST, TABLES, TOO_MUCH, Order, orders
from tests.kit.fleet import ROOT, Fleet, wait_until
from tests.kit.shop import model_calls, script

EACH = 24
TAKEN = [order for producer in ("script", "asyncio") for order in orders(producer, EACH)]
KEPT = [order for order in TAKEN if not order.dropped]
ASKED = [order for order in KEPT if order.amount]
PROGRAMS = {"script": EACH, "asyncio": EACH, "approver": len(ASKED)}


class Played:
    """What is left when all programs of the application have ended."""

    def __init__(self, fleet: Fleet, workers: dict[str, set[int]]) -> None:
        self.fleet = fleet
        self.workers = workers
        self.rows = {row[0]: row[1:] for row in fleet.execute("select id, run_id, status, answer from orders_taken")}
        self.runs = fleet.client.runs(limit=1000)
        self.results = {order: fleet.client.result(run_id, timeout=0) for order, (run_id, _, _) in self.rows.items()}
        self.effects: list[tuple[Any, ...]] = fleet.execute("select tool, process, key from effects")
        self.model_calls = fleet.provider.received

    def events(self, order: Order, event_type: str) -> list[dict[str, Any]]:
        return [event.payload for event in self.results[order.id].events if event.type == event_type]


@pytest.fixture(scope="module")
def played(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Played once; each test looks at another side of what is left. Nobody is killed, so no lease may lapse."""
    folder = tmp_path_factory.mktemp("application")
    settings = {"agents": ("tests.kit.shop",), "lease_s": 30.0}
    with Fleet(servers.database_url, servers.redis_url, folder, script, **settings) as fleet:
        fleet.execute("drop table if exists orders_taken, decisions")
        fleet.execute(TABLES)
        (model,) = fleet.start("model-1")
        (tool,) = fleet.start("tool-1", options=("--queues", "drangue.tool"))
        (browser,) = fleet.start("tool-browser", options=("--queues", "browser"))
        workers = {
            "look_up": {model.process.pid},
            "reserve": set(fleet.children_of(tool)),
            "charge": set(fleet.children_of(tool)),
            "browse": set(fleet.children_of(browser)),
        }
        play(fleet, folder)
        yield Played(fleet, workers)


def play(fleet: Fleet, folder: Path) -> None:
    """Run the three programs at once, each to its end."""
    env = environment(**fleet.settings.to_env())
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                running(
                    [sys.executable, "-m", "tests.kit.application", name, str(count)], env, ROOT, folder / f"{name}.txt"
                )
            )
            for name, count in PROGRAMS.items()
        ]
        for program in started:
            assert program.process.wait(100) == 0, program.said()


def outcome(order: Order) -> str:
    """How an order should have ended, in the model's last words."""
    if not order.amount:
        return "free of charge"
    return f"charged {min(order.amount, MOST)}" if order.amount <= TOO_MUCH else f"declined: {order.amount} is too much"


def test_every_order_that_was_committed_is_settled_and_no_other(played: Played) -> None:
    """The producers' own rows and the runs are the same set, and tell the same."""
    assert sorted(played.rows) == sorted(order.id for order in KEPT)
    assert len(KEPT) < len(TAKEN)
    assert {row.run_id for row in played.runs} == {run_id for run_id, _, _ in played.rows.values()}
    assert Counter(row.labels["by"] for row in played.runs) == Counter(order.producer for order in KEPT)
    for order in KEPT:
        _, status, answer = played.rows[order.id]
        result = played.results[order.id]
        assert (status, answer) == (result.status, result.output) == ("completed", outcome(order)), order


def test_every_effect_was_had_once_and_what_was_denied_had_none(played: Played) -> None:
    """By the table that the tools wrote, not by the log; a lowered amount is the one that was charged."""
    expected = [f"{name} {order.id}" for order in KEPT for name in ("look_up", "reserve")]
    expected += [f"browse {order.id}" for order in KEPT if order.browse]
    expected += [f"charge {order.id} {min(order.amount, MOST)}" for order in ASKED if order.amount <= TOO_MUCH]
    assert sorted(what for what, _, _ in played.effects) == sorted(expected)
    assert len({key for _, _, key in played.effects}) == len(expected)
    assert played.model_calls == sum(model_calls(order.amount) for order in KEPT)


def test_every_effect_was_had_in_the_pool_of_its_tool(played: Played) -> None:
    """A tool with a queue of its own is done by who serves it, and by nobody else."""
    for what, process, _ in played.effects:
        assert process in played.workers[what.split()[0]], what
    assert all(played.workers.values())


def test_who_decided_what_is_on_record(played: Played) -> None:
    """In the log of the run and, by the same transaction, in the approver's own table; both arguments are kept."""
    decisions = {run_id: row for run_id, *row in played.fleet.execute("select run_id, verdict, by from decisions")}
    assert decisions.keys() == {played.rows[order.id][0] for order in ASKED}
    for order in ASKED:
        (asked,) = played.events(order, "approval_requested")
        (told,) = [*played.events(order, "approval_granted"), *played.events(order, "approval_denied")]
        verdict, by, reason, arguments = decided(order)
        assert asked["arguments"] == {"order": order.id, "amount": order.amount}
        assert decisions[played.rows[order.id][0]] == [verdict, by]
        assert (told["by"], told["reason"], told.get("arguments")) == (by, reason, arguments)


def decided(order: Order) -> tuple[str, str, str, dict[str, Any] | None]:
    """What the approver should have made of an order: (verdict, by, reason, the arguments in place of the model's)."""
    if order.amount <= MOST:
        return "granted", "ann", "little", None
    if order.amount > TOO_MUCH:
        return "denied", "bob", f"{order.amount} is too much", None
    return "lowered", "cat", "a part of it", {"order": order.id, "amount": MOST}


def test_nothing_is_left_open(played: Played) -> None:
    """No step in Postgres, no message in Redis, and nobody is asked any more."""
    fleet, ids = played.fleet, [row.run_id for row in played.runs]
    assert fleet.execute("select * from steps where run_id = any(%s)", ids) == []
    assert [request for request in fleet.client.pending_approvals() if request["run_id"] in ids] == []

    def mentioned() -> list[str]:
        held = messages_in(fleet.settings.redis_url)
        return [run_id for run_id in ids if run_id in held]

    wait_until(lambda: not mentioned(), 20, "the last message is acknowledged")
    queues = {row["queue"]: (row["due"], row["held"], row["later"], row["messages"]) for row in fleet.client.queues()}
    assert set(queues.values()) == {(0, 0, 0, 0)}, queues


class Decided(SqlLog):
    """A log whose run somebody grants just before its events are read."""

    def __init__(self, client: Client) -> None:
        super().__init__(client.settings.database_url)
        self._grant: Callable[[str], Any] | None = client.approve

    def events(self, run_id: str, after: int = -1) -> list[Event]:
        if self._grant is not None and self.look(run_id).row.status == "paused":
            grant, self._grant = self._grant, None
            grant(run_id)
        return super().events(run_id, after)


@pytest.mark.parametrize("way", ["result", "async result", "stream", "async stream"])
def test_a_run_that_is_decided_on_while_it_is_read_reads_as_it_was(played: Played, way: str) -> None:
    """Whoever waited is told that it is paused, and not, halfway, of a run that goes on although waiting is over."""
    client = played.fleet.client
    order = json.dumps({"order": f"late {way}", "amount": 20, "browse": False})
    run_id = client.submit("clerk", order).run_id
    wait_until(lambda: client.get(run_id).status == "paused", 30)
    assert last_event(client.settings, Decided(client), run_id, way) == "approval_requested"
    result = wait_until(lambda: (now := client.result(run_id, timeout=30)).status == "completed" and now, 30)
    assert result.output == "charged 20"


def last_event(settings: Settings, log: SqlLog, run_id: str, way: str) -> str:
    """The type of the last event that is seen when waiting for a run is over."""
    if "async" in way:
        return asyncio.run(_last_event(settings, log, run_id, way))
    with closing(Client(settings, log=log)) as client:
        seen = client.result(run_id, timeout=30).events if way == "result" else list(client.stream(run_id, timeout=30))
    return seen[-1].type


async def _last_event(settings: Settings, log: SqlLog, run_id: str, way: str) -> str:
    async with AsyncClient(settings, log=log) as client:
        if way == "async result":
            return (await client.result(run_id, timeout=30)).events[-1].type
        return [event async for event in client.stream(run_id, timeout=30)][-1].type
