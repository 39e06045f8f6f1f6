"""A run is gone on with by an agent that was changed meanwhile: what was recorded rules, and the stricter rule wins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import RunFailedError
from drangue_worker import Agent, Autonomy, Budget, Guardrails, MemoryItem, tool
from drangue_worker.testing import FakeModel
from tests.kit.inline import PLACES, RUN, Scripted, calls, categories, contents, copy_of, kinds, leave, opened

ASSISTED = Autonomy(default="assisted")
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from opened(request.param, request, tmp_path)


class Change:
    """A run that was paused under one agent and is resumed, approved, under another one. `ran` counts the calls."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.ran = 0
        self.model = FakeModel([[("pay", {"amount": 1})], "end"])

        def pay(amount: int) -> str:
            """Move money."""
            self.ran += 1
            return "paid"

        self.pay = tool(pay)

    def agent(self, tools: Any = None, **options: Any) -> Agent:
        model = options.pop("model", self.model)
        return Agent(model, [self.pay] if tools is None else tools, store=self.store, **options)

    def paused_under(self, **options: Any) -> None:
        assert self.agent(**{"autonomy": ASSISTED, **options}).run_sync("go", run_id=RUN).status == "paused"

    def approved_under(self, **options: Any) -> Any:
        asyncio.run(self.agent(**options).approve(RUN))
        return self.agent(**options).run_sync(run_id=RUN)


@pytest.fixture
def change(store: Any) -> Change:
    return Change(store)


def never(*about: Any) -> Any:
    raise AssertionError("nobody asks")


def allow(*about: Any) -> None:
    """Nothing against it."""


def test_a_pause_holds_under_an_agent_that_gives_more_leave(change: Change) -> None:
    """Loosening the rules is for runs to come; this one was begun under the promise that somebody is asked."""
    change.paused_under()
    again = change.agent(autonomy=None).run_sync(run_id=RUN)
    assert (again.status, change.ran) == ("paused", 0)
    assert change.approved_under(autonomy=None).output == "end"
    assert change.ran == 1


@pytest.mark.parametrize(
    ("today", "came_to"),
    [
        ({"autonomy": Autonomy(default="shadow")}, '"shadow": true'),
        ({"guardrails": Guardrails(deny={"pay"})}, '"blocked"'),
        ({"guardrails": Guardrails(allow={"other"})}, '"blocked"'),
        ({"guardrails": Guardrails(output_guard=lambda name, arguments: "not today")}, "not today"),
        ({"tools": []}, '"unknown_tool"'),
    ],
    ids=["shadow", "denied", "not allowed", "guarded", "gone"],
)
def test_an_approved_call_does_not_run_under_an_agent_that_forbids_it(
    change: Change, today: dict[str, Any], came_to: str
) -> None:
    """The reason to tighten a rule may be the very call that waits."""
    change.paused_under()
    assert change.approved_under(**today).output == "end"
    assert change.ran == 0
    assert came_to in contents(change.store)[0]


def test_an_approved_call_whose_tool_takes_other_arguments_by_now_is_refused(change: Change) -> None:
    """What was approved is not what the function would understand today."""

    @tool(name="pay")
    def pay_in(currency: str) -> str:
        """Move money."""
        return never()

    change.paused_under()
    assert change.approved_under(tools=[pay_in]).output == "end"
    assert categories(change.store) == ["invalid_arguments"]


@pytest.mark.parametrize(("recorded", "today"), [(False, True), (True, False), (False, False)])
def test_what_was_irreversible_or_is_so_today_announces_its_beginning(
    change: Change, recorded: bool, today: bool
) -> None:
    """Either of them may be the one who knows that it cannot be undone."""
    change.paused_under(tools=[copy_of(change.pay, reversible=recorded)])
    change.approved_under(tools=[copy_of(change.pay, reversible=today)])
    assert (kinds(change.store).count("step_started"), change.ran) == (1, 1)


@pytest.mark.parametrize("guard", ["output_guard", "result_guard"])
def test_a_call_does_not_pass_without_a_guard_that_the_run_was_started_with(change: Change, guard: str) -> None:
    """A deploy that forgets a guard must not be the way around it. With the guard back, nothing runs twice."""
    guards = Guardrails(**{guard: allow})
    change.paused_under(guardrails=guards)
    with pytest.raises(RunFailedError, match="which the agent no longer has"):
        change.approved_under()
    assert (contents(change.store), change.ran) == ([], 1 if guard == "result_guard" else 0)
    assert change.agent(guardrails=guards).run_sync(run_id=RUN).output == "end"
    assert (contents(change.store), change.ran) == (["paid"], 1)


def test_an_input_does_not_pass_without_a_guard_that_the_run_was_started_with(change: Change) -> None:
    """The same for what is said to it."""

    def broken(text: str) -> None:
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        change.agent(guardrails=Guardrails(input_guard=broken)).run_sync("go", run_id=RUN)
    with pytest.raises(RunFailedError, match="input guard"):
        change.agent().run_sync(run_id=RUN)
    assert change.model.calls == []


def test_a_gated_call_whose_approver_is_gone_waits_for_a_person(change: Change) -> None:
    """There is always somebody to ask."""

    def broken(name: str, arguments: Any) -> bool:
        raise ConnectionError("down")

    gated = [copy_of(change.pay, requires_approval=True)]
    with pytest.raises(ConnectionError):
        change.agent(tools=gated, guardrails=Guardrails(approver=broken)).run_sync("go", run_id=RUN)
    assert change.agent().run_sync(run_id=RUN).status == "paused"  # today's tool is not even gated any more
    assert change.ran == 0
    assert change.approved_under().output == "end"
    assert change.ran == 1


def test_a_tool_that_is_gated_since_waits_for_a_person(change: Change) -> None:
    """The call was asked for under the old rule, and is made under the new one."""
    down = [True]

    def guard(name: str, arguments: Any) -> None:
        if down:
            raise ConnectionError(down.pop())

    with pytest.raises(ConnectionError):
        change.agent(guardrails=Guardrails(output_guard=guard)).run_sync("go", run_id=RUN)
    today = {"tools": [copy_of(change.pay, requires_approval=True)], "guardrails": Guardrails(output_guard=guard)}
    assert change.agent(**today).run_sync(run_id=RUN).status == "paused"
    assert change.approved_under(**today).output == "end"
    assert change.ran == 1


@pytest.mark.parametrize(
    ("began", "today", "reason"),
    [
        ({"budget": Budget(max_tokens=15)}, {}, "budget"),
        ({}, {"budget": Budget(max_tokens=1)}, "answered"),
        ({"max_steps": 1}, {"max_steps": 9}, "max_steps"),
        ({"max_steps": 9}, {"max_steps": 1}, "answered"),
        ({"output_schema": SCHEMA, "max_steps": 9}, {}, "schema"),
        ({}, {"output_schema": SCHEMA}, "answered"),
    ],
    ids=["budget gone", "budget new", "ceiling higher", "ceiling lower", "schema gone", "schema new"],
)
def test_the_recorded_terms_decide_how_the_run_ends(
    change: Change, began: dict[str, Any], today: dict[str, Any], reason: str
) -> None:
    """What a run may use and has to answer is settled when it begins."""
    change.paused_under(**{"max_steps": 3, **began})
    assert change.approved_under(**today).reason == reason


def test_the_model_is_told_what_was_recorded(change: Change) -> None:
    """Instructions, tools and memories of the beginning: what was said so far was said under them."""

    class Memory:
        def __init__(self, value: str) -> None:
            self.value = value

        async def recall(self, query: str, *, limit: int = 5) -> list[MemoryItem]:
            return [MemoryItem("k", self.value)]

        async def remember(self, item: Any) -> None:
            never()

    @tool
    def other() -> str:
        """Is new."""
        return never()

    change.paused_under(instructions="Be brief.", memory=Memory("then"))
    change.approved_under(instructions="Be verbose.", memory=Memory("now"), tools=[change.pay, other])
    first, second = change.model.calls
    assert (second["system"], second["tools"]) == (first["system"], first["tools"]) == (first["system"], ["pay"])
    assert ("Be brief." in first["system"], "then" in first["system"]) == (True, True)


def test_a_memory_that_is_gone_is_gone_on_without(store: Any) -> None:
    """It was interrupted before it had remembered anything, and now there is nothing to remember it by."""
    asked = asyncio.Event()

    class Memory:
        async def recall(self, query: str, *, limit: int = 5) -> list[MemoryItem]:
            asked.set()
            await asyncio.Event().wait()
            return []

        async def remember(self, item: Any) -> None:
            never()

    model = FakeModel(["done"])
    leave(Agent(model, store=store, memory=Memory()), asked)
    assert Agent(model, store=store).run_sync(run_id=RUN).output == "done"
    assert kinds(store) == ["run_started", "memory_recalled", "model_decision", "run_finished"]


def test_a_hard_budget_holds_for_a_model_with_a_higher_ceiling(change: Change) -> None:
    """The new model may answer at more length than the old one could; the limit is still the limit."""
    budget = Budget(max_tokens=5000, hard=True)
    asking = calls(("pay", {"amount": 1}), usage={"input_tokens": 1000, "output_tokens": 100})
    change.paused_under(budget=budget, model=Scripted(asking, ceiling=100))
    talkative = Scripted(calls(usage={"input_tokens": 1000, "output_tokens": 50_000}), ceiling=50_000)
    result = change.approved_under(budget=budget, model=talkative)
    assert (sum(result.usage.values()), result.reason) == (1100, "budget")
