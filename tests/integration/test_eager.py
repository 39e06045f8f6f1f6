"""Eager dispatch: a worker with room goes on with what it opens. Nothing may wait for a lease because of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from drangue_client.errors import DatabaseUnavailable
from drangue_client.settings import Settings
from drangue_client.store import PostgresStore
from drangue_client.store.values import Claimed, NewRun, Open, StepRef
from drangue_worker import Agent, tool
from drangue_worker.engine.coordinate import Next, move_on
from drangue_worker.engine.perform import work_on
from drangue_worker.engine.runtime import Runtime
from drangue_worker.registry import OneAgent
from drangue_worker.testing.fake import FakeModel
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.contract.log_scenes import alone, open_rows
from tests.kit.fleet import Fleet, wait_until

Make = Callable[..., Fleet]

ROUNDS = 6


@tool
def count(n: int) -> int:
    """Count."""
    return n + 1


@dataclass
class Greedy:
    """Wants every step, and notes what it is given."""

    taken: list[Claimed] = field(default_factory=list)

    def wants(self, opened: Open) -> bool:
        return True

    def go_on(self, taken: Sequence[tuple[Claimed, StepRef]]) -> None:
        self.taken += [claimed for claimed, _ in taken]


@dataclass
class Scene:
    """A runtime that goes on with everything, on a log, and what it sends to others."""

    log: PostgresStore
    runtime: Runtime
    greedy: Greedy
    sent: list[StepRef]

    def begin(self) -> Claimed:
        """A run whose first step is taken."""
        self.log.submit([NewRun("r", "agent", "go")])
        move_on(self.runtime, [Next("r")])
        (taken,) = self.greedy.taken
        return taken

    def go_on(self) -> int:
        """Do what the worker would; returns how many steps there were."""

        async def whole() -> int:
            for claimed in self.greedy.taken:  # which grows meanwhile
                await work_on(self.runtime, claimed)
            return len(self.greedy.taken)

        return asyncio.run(whole())


@pytest.fixture
def scene(database_url: str) -> Iterator[Scene]:
    agent = Agent(FakeModel([*([("count", {"n": n})] for n in range(ROUNDS)), "done"]), [count], max_steps=100)
    greedy, sent = Greedy(), []
    with closing(PostgresStore(database_url)) as log:
        runtime = Runtime(
            log, OneAgent([agent.blueprint]), Settings(), worker="test/1", executor="celery", patient=True,
            publish=sent.extend, dispatch=greedy,
        )  # fmt: skip
        with closing(runtime):
            yield Scene(log, runtime, greedy, sent)


def test_a_step_costs_one_statement(scene: Scene) -> None:
    """Its result, the next step and the claim of that are one transaction; nothing is read and nothing sent."""
    seen: list[str] = []
    with alone(lambda statement, _: seen.append(statement)):
        scene.begin()
        steps = scene.go_on()
    assert steps == 2 * ROUNDS + 1
    assert len(seen) == steps + 3  # the submission, the first look and the first move
    assert scene.log.look("r").row.status == "completed"
    assert scene.sent == []


def test_a_step_that_is_told_to_stop_before_it_begins_is_given_back(scene: Scene) -> None:
    """As by a drain that comes between its opening and its turn: nobody waits for its lease, nothing has failed."""
    taken = scene.begin()

    async def cancelled() -> Any:
        task = asyncio.create_task(work_on(scene.runtime, taken))
        asyncio.get_running_loop().call_soon(task.cancel)
        return await task

    assert [ref.step for ref in asyncio.run(cancelled()).opened] == [1]
    assert [ref.step for ref in scene.sent] == [1]
    assert [open_rows(scene.log)[1][name] for name in ("claim", "failures", "crashes")] == [None, 0, 0]


def test_what_was_taken_by_an_answer_that_was_lost_is_given_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step was settled, the next one opened and held, and nobody here knows: asked again, the claim is lost."""
    taken = scene.begin()
    settle, lost = scene.log.settle, [True]

    def once_unheard(moves: Any) -> Any:
        answers = settle(moves)
        if lost and lost.pop():
            raise DatabaseUnavailable("the connection was lost")
        return answers

    monkeypatch.setattr(scene.log, "settle", once_unheard)
    asyncio.run(work_on(scene.runtime, taken))
    assert [ref.step for ref in scene.sent] == [2]
    assert open_rows(scene.log)[2]["claim"] is None
    assert [event.type for event in scene.log.events("r")] == ["run_started", "model_decision"]


def rounds(call: ProviderCall) -> Reply:
    """A model that pings some times, one after the other, and answers."""
    return Reply(tool_calls=(("ping", {}),)) if call.turn < ROUNDS else Reply(text="done")


def calls_of(redis_url: str, command: str) -> int:
    with redis.Redis.from_url(redis_url) as server:
        stats: Any = server.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


@pytest.mark.parametrize("eager", [True, False])
def test_each_step_is_a_task_and_redis_carries_those_that_others_may_do(
    make_fleet: Make, redis_url: str, eager: bool
) -> None:
    """Celery counts every one of them, and so does Flower, whichever way they come."""
    fleet = make_fleet(rounds, eager_dispatch=eager, lease_s=15.0, patience_s=30.0)
    fleet.start("model-1")
    before = calls_of(redis_url, "lpush")
    (result,) = fleet.finish(fleet.submit())
    assert (result.status, len(fleet.effects("ping"))) == ("completed", ROUNDS)
    assert calls_of(redis_url, "lpush") - before == (1 if eager else 2 * ROUNDS + 2)
    (stats,) = fleet.sender.app.control.inspect(timeout=2.0).stats().values()
    assert stats["total"] == {
        "drangue.coordinate": 1, "drangue.call_model": ROUNDS + 1, "drangue.call_tool": ROUNDS,
    }  # fmt: skip


def test_a_queue_that_an_operator_slowed_down_is_left_to_redis(make_fleet: Make, redis_url: str) -> None:
    """What waits for Celery's rate limit must not be claimed meanwhile: its lease would lapse."""
    fleet = make_fleet(rounds)
    fleet.start("model-1")
    fleet.sender.app.control.rate_limit("drangue.call_tool", "10/s", reply=True)
    before = calls_of(redis_url, "lpush")
    (result,) = fleet.finish(fleet.submit())
    assert result.status == "completed"
    assert calls_of(redis_url, "lpush") - before == 1 + ROUNDS
    assert {row[0] for row in fleet.execute("select distinct crashes from steps")} <= {0}


def test_a_run_goes_on_elsewhere_when_its_worker_stops(make_fleet: Make) -> None:
    """Between two steps or within one: nothing of it waits for the lease of who was told to end."""
    fleet = make_fleet(
        lambda call: Reply(tool_calls=(("ping", {}),), delay_s=0.1) if call.turn < 8 else Reply(text="done"),
        lease_s=60.0, drain_grace_s=5.0,
    )  # fmt: skip
    (first,) = fleet.start("model-1")
    ids = fleet.submit(5)
    wait_until(lambda: len(fleet.effects("ping")) > 10)
    fleet.start("model-2")
    first.process.terminate()
    first.process.wait(10)
    assert {result.status for result in fleet.finish(ids, 30)} == {"completed"}
    assert len(set(fleet.effects("ping"))) == len(fleet.effects("ping")) == 5 * 8
