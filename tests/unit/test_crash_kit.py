"""What `crash_everywhere` refuses to conclude anything from, and what it takes for a dead process."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest

from drangue_client.store.values import Ask, NewRun
from drangue_worker import Agent, Autonomy, InMemoryStore, tool
from drangue_worker.testing import CrashReport, FakeModel, crash_everywhere
from drangue_worker.testing.crash import DoubledEffect
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


class TestBlindSpots:
    """What a report did not see, it says."""

    MISSED = "after pay (step 2) was done, before tool_result was recorded"

    def test_a_window_that_was_missed_is_printed(self) -> None:
        """Whoever reads "clean" wants to know of what."""
        report = CrashReport(("before the run was submitted",), missed=("before pay (step 2) was claimed",))
        assert str(report) == (
            "a process died in 1 window\n"
            "  no effect was doubled, every run completed\n"
            "  not tried, since no run came to it again: before pay (step 2) was claimed"
        )
        report.assert_clean()

    def test_a_call_in_which_no_process_died_is_not_clean(self) -> None:
        """It is the window that everybody looks for."""
        report = CrashReport(("before the run was submitted",), missed=(self.MISSED,), untried=("pay (step 2)",))
        with pytest.raises(AssertionError) as caught:
            report.assert_clean()
        assert str(caught.value) == (
            "a process died in 1 window\n"
            "  what a death does to pay (step 2) is not known: none came between its end and its recording\n"
            f"  not tried, since no run came to it again: {self.MISSED}"
        )

    def test_what_happened_without_a_death_is_not_laid_to_one(self) -> None:
        """A run that did not come to its death may go wrong all the same."""
        report = CrashReport((), (DoubledEffect("paid", 2, self.MISSED),), missed=(self.MISSED,))
        assert f"'paid' happened 2 times: it did not die {self.MISSED}" in str(report)

    def test_an_outcome_that_is_kept_must_be_lost_once(self) -> None:
        """Where outcomes are kept, a death before the recording repeats nothing: it is the one before that counts."""
        log = MortalLog(cast(Any, None))
        log.names, log.tools = {2: "pay (step 2)"}, {2}
        kept, asked, settled = Call("keep", 2, 1), Call("settle", 2, 1), Call("settle", 2, 2)
        log.calls = {
            Call("settle", 1, 1): ("model_decision",),
            asked: ("approval_requested",),
            settled: ("tool_result",),
        }
        assert log.ends() == {2: settled}
        log.calls = {kept: (), settled: ("tool_result",)}
        assert log.ends() == {2: kept}


class TestMisuse:
    def test_effects_that_show_nothing_prove_nothing(self, world: World) -> None:
        """A test that looks at the wrong place would pass whatever the tool does."""
        with pytest.raises(ValueError, match=r"effects\(\) shows nothing new"):
            crash_everywhere(paying(careless(world)), "pay", effects=list)

    def test_effects_must_be_values(self, world: World) -> None:
        """Two dicts cannot be counted as one."""
        with pytest.raises(TypeError, match=r"cannot be compared by value. Give texts or tuples"):
            crash_everywhere(paying(careless(world)), "pay", effects=lambda: [{"paid": 5}])

    @pytest.mark.parametrize(
        "hidden", [set, frozenset, dict.fromkeys, lambda seen: dict.fromkeys(seen).keys(), Counter]
    )
    def test_what_shows_an_effect_once_is_refused(self, world: World, hidden: Callable[[list[Any]], Any]) -> None:
        """A set of two payments of 5 is a set of one: a careless tool would be called clean."""
        with pytest.raises(TypeError, match=r"effects\(\) gives .*; it must give a list of everything seen"):
            crash_everywhere(paying(careless(world)), "pay", effects=lambda: hidden(world.effects()))
        assert world.seen == [], "refused before anything was done"

    def test_a_list_of_a_set_is_found_out(self, world: World) -> None:
        """It is a list, and still shows of every run after the first nothing at all."""
        with pytest.raises(
            ValueError, match=r"effects\(\) shows nothing new of the run that died before the run was sub"
        ):
            crash_everywhere(paying(careless(world)), "pay", effects=lambda: list(set(world.seen)))

    def test_a_set_beside_keys_is_found_out(self, world: World) -> None:
        """What differs from run to run is there each time; what does not is there in the first run alone."""

        @tool
        def pay(amount: int, idempotency_key: str) -> str:
            """Pays, and is logged."""
            world.seen += [("paid", amount), ("log", idempotency_key)]
            return "paid"

        with pytest.raises(
            ValueError, match=r"effects\(\) shows 2 effects of the run without a death and never more than 1"
        ):
            crash_everywhere(paying(pay), "pay", effects=lambda: list(set(world.seen)))

    def test_a_ledger_that_each_process_clears_is_found_out(self, world: World) -> None:
        """What the one that died did is gone when the next has done it again."""

        def make(store: Any) -> Agent:
            world.seen.clear()
            return paying(careless(world))(store)

        with pytest.raises(ValueError, match=r"shows nothing new .* Clear nothing"):
            crash_everywhere(make, "pay", effects=world.effects)

    def test_a_ledger_that_shrinks_is_found_out(self, world: World) -> None:
        """Here every run does leave something new, and each takes away what the one before left."""

        @tool
        def pay(amount: int, idempotency_key: str) -> str:
            """Pays, and begins a new page."""
            world.seen[:] = [idempotency_key]
            return "paid"

        with pytest.raises(ValueError, match=r"effects\(\) no longer shows 'crash-.*-1:2'.* Clear nothing"):
            crash_everywhere(paying(pay), "pay", effects=world.effects)

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
