"""Eager dispatch: a worker with room goes on with what it opens. Nothing may wait for a lease because of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from drangue_client.errors import DatabaseUnavailable
from drangue_client.events import Fact
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
from tests.contract.log_scenes import NOTE, alone, open_rows, write
from tests.kit.fleet import Fleet, wait_until

Make = Callable[..., Fleet]

ROUNDS = 6


@tool
def count(n: int) -> int:
    """Count."""
    return n + 1


@dataclass
class Greedy:
    """Wants every step while it has `room`, and notes what it is given."""

    taken: list[Claimed] = field(default_factory=list)
    room: bool = True

    def begin_round(self) -> None:
        """It promises whatever it is asked for."""

    def wants(self, opened: Open) -> bool:
        return self.room

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


@contextmanager
def scene_of(agent: Agent, database_url: str) -> Iterator[Scene]:
    greedy, sent = Greedy(), list[StepRef]()
    with closing(PostgresStore(database_url)) as log:
        runtime = Runtime(
            log, OneAgent([agent.blueprint]), Settings(), worker="test/1", executor="celery", patient=True,
            publish=sent.extend, dispatch=greedy,
        )  # fmt: skip
        with closing(runtime):
            yield Scene(log, runtime, greedy, sent)


@pytest.fixture
def scene(database_url: str) -> Iterator[Scene]:
    calls = [[("count", {"n": n})] for n in range(ROUNDS)]
    with scene_of(Agent(FakeModel([*calls, "done"]), [count], max_steps=100), database_url) as made:
        yield made


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


class Unheard:
    """A log whose first settlement is written, and whose answer is lost."""

    def __init__(self, scene: Scene, monkeypatch: pytest.MonkeyPatch, then: Callable[[], None] = lambda: None) -> None:
        self._settle, self._then, self._times = scene.log.settle, then, 0
        monkeypatch.setattr(scene.log, "settle", self)

    def __call__(self, moves: Any) -> Any:
        answers = self._settle(moves)
        self._times += 1
        if self._times == 1:
            self._then()
            raise DatabaseUnavailable("the connection was lost")
        return answers


@pytest.mark.parametrize("room", [True, False], ids=["room", "no room any more"])
def test_what_was_taken_by_an_answer_that_was_lost_is_given_back(
    scene: Scene, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step was settled, the next one opened and held, and nobody here knows: asked again, the claim is lost."""
    taken = scene.begin()
    Unheard(scene, monkeypatch, then=lambda: setattr(scene.greedy, "room", room))
    asyncio.run(work_on(scene.runtime, taken))
    assert [ref.step for ref in scene.sent] == [2]
    assert [open_rows(scene.log)[2][name] for name in ("claim", "crashes")] == [None, 0]
    assert [event.type for event in scene.log.events("r")] == ["run_started", "model_decision"]


def test_a_first_step_that_was_taken_by_an_answer_that_was_lost_is_given_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator that asks again finds the run begun, and nothing to do."""
    scene.log.submit([NewRun("r", "agent", "go")])
    Unheard(scene, monkeypatch)
    asyncio.run(scene.runtime.together(move_on, Next("r")))
    assert (scene.greedy.taken, [ref.step for ref in scene.sent]) == ([], [1])
    assert open_rows(scene.log)[1]["claim"] is None


def test_what_is_gone_on_with_is_not_given_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the first of two tries was refused, nor where the batch is repeated for another's sake."""
    taken = scene.begin()
    answer = {"text": "", "tool_calls": [{"id": "c", "name": "count", "arguments": {"n": 1}}], "usage": None}
    settled = Next("r", (Fact("model_decision", {**answer, "model": "m"}, 1),), taken.ask, taken.look)
    write(scene.log, "r", NOTE)  # which moves the run on behind its back
    (moved,) = move_on(scene.runtime, [settled])
    assert moved.verdict == "ok"
    (_, call) = scene.greedy.taken
    (moved,) = move_on(scene.runtime, [settled])
    assert moved.verdict == "lost"
    assert open_rows(scene.log)[2]["claim"] == call.ask.token
    assert scene.sent == []


def test_a_dispatch_that_fails_fails_no_run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether to go on is a wish; what cannot be told is sent."""

    def broken(opened: Open) -> bool:
        raise AttributeError("the connection was lost just now")

    taken = scene.begin()
    monkeypatch.setattr(scene.greedy, "wants", broken)
    asyncio.run(work_on(scene.runtime, taken))
    assert [ref.step for ref in scene.sent] == [2]
    assert scene.log.look("r").row.status == "running"


def test_a_tool_that_changes_its_arguments_changes_no_conversation(database_url: str) -> None:
    """What a worker holds of a run is what the log holds, whatever is done with the objects."""

    @tool
    def spoil(config: dict[str, Any]) -> str:
        """Change what it was given."""
        config["a"]["b"] = "changed"
        return "ok"

    seen: list[Any] = []

    class Looking(FakeModel):
        async def generate(self, *, messages: Any, **more: Any) -> Any:
            seen.append(json.dumps(messages))
            return await super().generate(messages=messages, **more)

    agent = Agent(Looking([[("spoil", {"config": {"a": {"b": "asked"}}})], "done"]), [spoil])
    with scene_of(agent, database_url) as scene:
        scene.begin()
        assert scene.go_on() == 3
    assert "asked" in seen[1]
    assert "changed" not in seen[1]


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


def test_a_run_goes_on_elsewhere_when_its_worker_stops(make_fleet: Make, redis_url: str) -> None:
    """Between two steps or within one: nothing of it waits for the lease of who was told to end."""
    fleet = make_fleet(
        lambda call: Reply(tool_calls=(("ping", {}),), delay_s=0.1) if call.turn < 8 else Reply(text="done"),
        lease_s=60.0, drain_grace_s=5.0,
    )  # fmt: skip
    (first,) = fleet.start("model-1")
    before = calls_of(redis_url, "lpush")
    ids = fleet.submit(5)
    wait_until(lambda: len(fleet.effects("ping")) > 10)
    assert calls_of(redis_url, "lpush") - before < 10
    fleet.start("model-2")
    first.process.terminate()
    first.process.wait(10)
    assert {result.status for result in fleet.finish(ids, 30)} == {"completed"}
    assert len(set(fleet.effects("ping"))) == len(fleet.effects("ping")) == 5 * 8
