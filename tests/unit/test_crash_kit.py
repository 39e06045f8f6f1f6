"""What `crash_everywhere` refuses to conclude anything from, and what it takes for a dead process."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from drangue_client.store.port import Ask, NewRun
from drangue_worker import Agent, Autonomy, InMemoryStore
from drangue_worker.testing import CrashReport, FakeModel, crash_everywhere
from drangue_worker.testing.mortal import Call, MortalLog, ProcessDied
from tests.integration.test_crash_kit import World, careful, careless, paying
from tests.kit.inline import RUN


@pytest.fixture
def world() -> World:
    return World()


def test_the_dead_write_nothing_and_their_claims_lapse() -> None:
    """A process that could still give its step back was not killed, and a lease that lived on would block the next."""
    store = InMemoryStore()
    log: Any = MortalLog(store, Call("settle", 2, 1))
    with pytest.raises(ProcessDied):
        paying(careful(World()))(log).run_sync("pay", run_id=RUN)
    with pytest.raises(ProcessDied):
        log.look(RUN)
    with pytest.raises(ProcessDied):
        asyncio.run(log.load(RUN))
    with pytest.raises(ProcessDied):
        log.submit([NewRun("another", "agent", "go")])
    assert [row.run_id for row in store.runs()] == [RUN]
    assert [(ref.step, live) for ref, _, live in store.open_steps(RUN)] == [(2, True)]
    log.bury()
    assert [(ref.step, live) for ref, _, live in store.open_steps(RUN)] == [(2, False)]
    (claimed,) = store.claim([Ask(RUN, 2, "t", "w", "inline")], 60.0)
    assert claimed is not None
    assert (claimed.attempt, claimed.crashes) == (2, 1)


class TestMisuse:
    def test_effects_that_show_nothing_prove_nothing(self, world: World) -> None:
        """A test that looks at the wrong place would pass whatever the tool does."""
        with pytest.raises(ValueError, match=r"effects\(\) shows nothing new"):
            crash_everywhere(paying(careless(world)), "pay", effects=list)

    def test_effects_must_be_values(self, world: World) -> None:
        """Two dicts cannot be counted as one."""
        with pytest.raises(TypeError, match=r"cannot be compared by value. Give texts or tuples"):
            crash_everywhere(paying(careless(world)), "pay", effects=lambda: [{"paid": 5}])

    def test_a_run_that_waits_for_a_person_needs_one(self, world: World) -> None:
        """It would be paused in every window, and prove nothing."""
        make = paying(careless(world), autonomy=Autonomy("assisted"))
        with pytest.raises(ValueError, match=r"the run is paused without a death. Pass approve=True"):
            crash_everywhere(make, "pay", effects=world.effects)

    def test_a_run_that_fails_without_a_death_raises(self, world: World) -> None:
        """There is nothing to learn from it, and its author wants to know why."""

        def make(store: Any) -> Agent:
            model = FakeModel([[("pay", {"amount": 5})]], by_turn=True, strict=True)
            return Agent(model, [careless(world)], store=store)

        with pytest.raises(AssertionError, match="asked for number 2") as caught:
            crash_everywhere(make, "pay", effects=world.effects)
        assert caught.value.__notes__ == ["raised by the run that crash_everywhere made without a death"]

    def test_a_model_that_counts_its_calls_is_refused(self, world: World) -> None:
        """A fresh one would begin its script again, and pay again, which says nothing about the tool."""
        with pytest.raises(ValueError, match="by_turn=True"):
            crash_everywhere(lambda store: Agent(FakeModel(["done"]), store=store), "pay", effects=world.effects)

    def test_an_agent_on_another_store_is_refused(self, world: World) -> None:
        """Its process would never die."""
        with pytest.raises(ValueError, match="on the store it is handed"):
            crash_everywhere(lambda store: paying(careless(world))(None), "pay", effects=world.effects)
        with pytest.raises(TypeError, match="make_agent is None; it must be a function that gives an Agent"):
            crash_everywhere(lambda store: None, "pay", effects=world.effects)  # type: ignore[arg-type, return-value]

    def test_a_running_event_loop_is_told_what_to_do(self, world: World) -> None:
        """Each process it plays has a loop of its own."""

        async def inside() -> CrashReport:
            with pytest.raises(RuntimeError, match=r"asyncio\.to_thread"):
                crash_everywhere(paying(careful(world)), "pay", effects=world.effects)
            return await asyncio.to_thread(crash_everywhere, paying(careful(world)), "pay", effects=world.effects)

        asyncio.run(inside()).assert_clean()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("tool-")]
