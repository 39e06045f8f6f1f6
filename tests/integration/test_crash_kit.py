"""`crash_everywhere` finds what happens twice when a process dies, and nothing where nothing does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drangue_worker import Agent, Autonomy, Guardrails, InMemoryStore, ModelResponse, OpenAIModel, tool
from drangue_worker.testing import CrashReport, FakeModel, Provider, Reply, crash_everywhere
from drangue_worker.testing.crash import DoubledEffect, Unfinished
from tests.kit.inline import PLACES, opened


class World:
    """What lies outside: it sees each effect, and forgets none."""

    def __init__(self) -> None:
        self.seen: list[Hashable] = []
        self.ledger: dict[str, int] = {}

    def effects(self) -> list[Hashable]:
        return [*self.seen, *self.ledger.items()]


@pytest.fixture
def world() -> World:
    return World()


def careless(world: World, **options: Any) -> Any:
    @tool(name="pay", **options)
    def pay(amount: int, idempotency_key: str) -> str:
        """Pays whenever it is called."""
        world.seen.append(("paid", amount))
        return "paid"

    return pay


def careful(world: World) -> Any:
    @tool(name="pay")
    def pay(amount: int, idempotency_key: str) -> str:
        """Pays once per key."""
        if idempotency_key not in world.ledger:
            world.ledger[idempotency_key] = amount
        return "paid"

    return pay


def waiting(world: World, **options: Any) -> Any:
    @tool(name="pay", **options)
    async def pay(amount: int) -> str:
        """Pays, and awaits the answer of the bank."""
        world.seen.append(("paid", amount))
        await asyncio.sleep(0)
        return "paid"

    return pay


def paying(*tools: Any, calls: int = 1, **options: Any) -> Callable[[Any], Agent]:
    """Makes agents that pay once, or several times at once, and are done."""
    script = [[("pay", {"amount": 5 + n}) for n in range(calls)], "done"]
    return lambda store: Agent(FakeModel(script, by_turn=True), tools, store=store, **options)


BEGINNING = (
    "before the run was submitted",
    "after the run was submitted, before it began",
    "before run_started was recorded",
    "after run_started was recorded",
    "before the model call (step 1) was claimed",
    "after the model call (step 1) was claimed, before it was done",
    "after the model call (step 1) was done, before model_decision was recorded",
    "after the model call (step 1) was done and model_decision was recorded",
    "before pay (step 2) was claimed",
    "after pay (step 2) was claimed, before it was done",
)
BEGUN = (
    "before the beginning of pay (step 2) was recorded",
    "after the beginning of pay (step 2) was recorded, before it was done",
)
KEPT = (
    "after pay (step 2) was done, before its outcome was kept",
    "after the outcome of pay (step 2) was kept, before it was judged",
)
UNRECORDED = "after pay (step 2) was done, before tool_result was recorded"
END = (
    UNRECORDED,
    "after pay (step 2) was done and tool_result was recorded",
    "before the model call (step 3) was claimed",
    "after the model call (step 3) was claimed, before it was done",
    "after the model call (step 3) was done, before model_decision and run_finished were recorded",
    "after the model call (step 3) was done and model_decision and run_finished were recorded",
)


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from opened(request.param, request, tmp_path)


def test_a_careless_tool_is_found_in_the_one_window_it_has(world: World, store: Any) -> None:
    """Done and not recorded: whoever goes on must do it again, and the tool did nothing to make that harmless."""
    report = crash_everywhere(paying(careless(world)), "pay", effects=world.effects, store=store)
    assert report == CrashReport((*BEGINNING, *END), (DoubledEffect(("paid", 5), 2, UNRECORDED),))
    with pytest.raises(AssertionError) as caught:
        report.assert_clean()
    assert str(caught.value) == (
        "a process died in 16 windows\n"
        "  ('paid', 5) happened 2 times: it died after pay (step 2) was done, before tool_result was recorded"
    )


def test_a_tool_that_is_never_run_twice_is_clean(world: World, store: Any) -> None:
    """What cannot be undone is begun once, and reported as unknown if nobody knows how it ended."""
    pay = careless(world, reversible=False)
    report = crash_everywhere(paying(pay), "pay", effects=world.effects, store=store)
    assert report == CrashReport((*BEGINNING, *BEGUN, *END))
    report.assert_clean()
    assert str(report) == "a process died in 18 windows\n  no effect was doubled, every run completed"


def test_a_tool_that_deduplicates_by_its_key_is_clean(world: World) -> None:
    """It is called twice in one window, with the same key."""
    report = crash_everywhere(paying(careful(world)), "pay", effects=world.effects)
    assert report == CrashReport((*BEGINNING, *END))


def test_a_careless_tool_that_awaits_is_found_as_well(world: World) -> None:
    """It runs on the loop that dies with its process."""
    report = crash_everywhere(paying(waiting(world)), "pay", effects=world.effects)
    assert report == CrashReport((*BEGINNING, *END), (DoubledEffect(("paid", 5), 2, UNRECORDED),))


def test_an_outcome_that_is_kept_closes_the_window_early(world: World) -> None:
    """Where results are judged, the outcome is kept first: the judgement is repeated, the call is not."""
    guards = Guardrails(result_guard=lambda name, content: None)
    report = crash_everywhere(paying(careless(world), guardrails=guards), "pay", effects=world.effects)
    assert report == CrashReport((*BEGINNING, *KEPT, *END), (DoubledEffect(("paid", 5), 2, KEPT[0]),))


def test_calls_of_one_decision_are_told_apart(world: World) -> None:
    """Each sibling has its own window, whichever of them dies first."""
    report = crash_everywhere(paying(careless(world), calls=3), "pay", effects=world.effects)
    assert report.unfinished == ()
    assert {one.effect for one in report.doubled} == {("paid", 5), ("paid", 6), ("paid", 7)}
    assert {one.times for one in report.doubled} == {2}
    assert {f"after pay (step {n}) was done, before tool_result was recorded" for n in (2, 3, 4)} <= set(report.windows)
    crash_everywhere(paying(careful(world), calls=3), "pay", effects=world.effects).assert_clean()


def test_what_also_happens_twice_without_a_death_may_happen_twice(world: World) -> None:
    """Two payments of one amount are not one payment made twice; a third is."""

    def pay_twice(pay: Any) -> Callable[[Any], Agent]:
        script = [[("pay", {"amount": 5})], [("pay", {"amount": 5})], "done"]
        return lambda store: Agent(FakeModel(script, by_turn=True), [pay], store=store)

    once = careless(world, reversible=False)
    crash_everywhere(pay_twice(once), "pay", effects=world.effects).assert_clean()
    report = crash_everywhere(pay_twice(careless(world)), "pay", effects=world.effects)
    later = "after pay (step 4) was done, before tool_result was recorded"
    assert report.doubled == (DoubledEffect(("paid", 5), 3, UNRECORDED), DoubledEffect(("paid", 5), 3, later))


def test_an_effect_may_hold_the_runs_id(world: World) -> None:
    """A world that looks at keys sees another key in every run; that makes two effects of none of them."""

    @tool(reversible=False)
    def pay(amount: int, idempotency_key: str) -> str:
        """Leaves two entries that read alike, by design."""
        world.seen += [("entry", idempotency_key), ("entry", idempotency_key), f"key {idempotency_key}"]
        return "paid"

    crash_everywhere(paying(pay), "pay", effects=world.effects).assert_clean()
    double = tool(name="pay")(pay.func)
    report = crash_everywhere(paying(double), "pay", effects=world.effects)
    assert sorted(one.times for one in report.doubled) == [2, 4]


@pytest.mark.parametrize("approve", [True, lambda request: request["arguments"] == {"amount": 5}])
def test_a_verdict_is_no_reason_to_do_it_twice(approve: Any, world: World) -> None:
    """The person's process dies as well: before the verdict is recorded, and after."""
    assisted = Autonomy(modes={"pay": "assisted"})
    make = paying(careless(world, reversible=False), autonomy=assisted)
    report = crash_everywhere(make, "pay", effects=world.effects, approve=approve)
    report.assert_clean()
    asked = "after the model call (step 1) was done and model_decision and approval_requested were recorded"
    assert {asked, "before approval_granted was recorded", "after approval_granted was recorded"} <= set(report.windows)


def test_a_store_that_forgets_beginnings_is_found(world: World) -> None:
    """It is not only tools that can be careless: whatever stands between a tool and its log is put to the test."""

    class Forgetful(InMemoryStore):
        def begin(self, ask: Any, fact: Any, *, again: bool = False) -> bool:
            return True

    pay = careless(world, reversible=False)
    assert crash_everywhere(paying(pay), "pay", effects=world.effects, store=Forgetful()).doubled == (
        DoubledEffect(("paid", 5), 2, UNRECORDED),
    )


def test_a_run_that_does_not_end_is_told(world: World) -> None:
    """A tool that waits for a reply to the first call for ever, the second time, is stuck in production too."""
    called: list[str] = []

    @tool
    async def pay(amount: int, idempotency_key: str) -> str:
        """Waits for what only the first attempt was sent."""
        called.append(idempotency_key)
        if called.count(idempotency_key) > 1:
            await asyncio.Event().wait()
        world.seen.append(idempotency_key)
        return "paid"

    report = crash_everywhere(paying(pay), "pay", effects=world.effects, lives=2, timeout_s=3.0)
    assert (report.doubled, report.unfinished) == ((), (Unfinished(UNRECORDED, "running", "TimeoutError()"),))
    with pytest.raises(AssertionError, match=r"the run did not complete, it is running \(TimeoutError\(\)\): it died "):
        report.assert_clean()


def test_a_run_that_fails_after_a_death_is_told(world: World) -> None:
    """An agent that cannot live with an unknown outcome has not thought of the one window that remains."""

    class Strict(FakeModel):
        async def generate(self, *, messages: Any, **asked: Any) -> Any:
            if "unknown_outcome" in messages[-1]["content"]:
                raise LookupError("no such payment")
            return await super().generate(messages=messages, **asked)

    pay = careless(world, reversible=False)
    report = crash_everywhere(
        lambda store: Agent(Strict([[("pay", {"amount": 5})], "done"], by_turn=True), [pay], store=store),
        "pay",
        effects=world.effects,
    )
    error = "LookupError('no such payment')"
    assert report.unfinished == (Unfinished(BEGUN[1], "failed", error), Unfinished(UNRECORDED, "failed", error))


class Moody(FakeModel):
    """Pays in some runs only, by their number; whoever resumes a run is told the same."""

    def __init__(self, pays: Callable[[int], bool]) -> None:
        super().__init__([[("pay", {"amount": 5})], "done"], by_turn=True)
        self.pays = pays

    async def generate(self, *, idempotency_key: str | None = None, **asked: Any) -> Any:
        run_id, _, step = str(idempotency_key).rpartition(":")
        answer = await super().generate(idempotency_key=idempotency_key, **asked)
        return answer if step != "1" or self.pays(int(run_id.rpartition("-")[2])) else ModelResponse("not today")


def moody(world: World, pays: Callable[[int], bool]) -> Callable[[Any], Agent]:
    """Makes agents of that mood, and careless."""
    return lambda store: Agent(Moody(pays), [careless(world)], store=store)


def test_a_window_that_was_missed_is_tried_again(world: World) -> None:
    """Siblings race, and models waver: once is no reason to give a window up."""
    report = crash_everywhere(moody(world, lambda run: run % 3 == 1), "pay", effects=world.effects)
    assert report.missed == report.untried == ()
    assert report == CrashReport((*BEGINNING, *END), (DoubledEffect(("paid", 5), 2, UNRECORDED),))


def test_a_call_that_was_never_made_again_is_not_clean(world: World) -> None:
    """The careless tool ran in the first run alone. No effect was doubled, and nothing is known."""
    report = crash_everywhere(moody(world, lambda run: run == 1), "pay", effects=world.effects)
    assert (report.doubled, report.unfinished, report.untried) == ((), (), ("pay (step 2)",))
    assert set(report.missed) == {*BEGINNING[8:], *END}
    assert f"not tried, since no run came to it again: {UNRECORDED}" in str(report)
    with pytest.raises(AssertionError, match=r"what a death does to pay \(step 2\) is not known"):
        report.assert_clean()


def test_it_goes_through_the_real_sdk(world: World) -> None:
    """A provider's answers depend on the conversation alone, so no by_turn is needed."""
    with Provider([Reply(tool_calls=(("pay", {"amount": 5}),)), Reply(text="done")]) as provider:

        def make(store: Any) -> Agent:
            return Agent(OpenAIModel("gpt-4o", base_url=provider.base_url), [careful(world)], store=store)

        report = crash_everywhere(make, "pay", effects=world.effects)
    report.assert_clean()
    assert report.windows == (*BEGINNING, *END)
