"""What a person's word is for, and for how long: the arguments they saw, the people and the time their policy wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from drangue_client.errors import ChangedArgumentsError, NotPendingError, RunFailedError, SamePersonError
from drangue_worker import Agent, Approval, Autonomy, Guardrails, InMemoryStore, Tool, tool
from drangue_worker.testing import FakeModel
from tests.kit.inline import RUN, Scripted, calls, kinds

ASSISTED = {"wire": "assisted"}


@pytest.fixture
def store() -> Iterator[InMemoryStore]:
    made = InMemoryStore()
    yield made
    made.close()


@pytest.fixture
def sent() -> list[int]:
    return []


@pytest.fixture
def wire(sent: list[int]) -> Tool:
    @tool(reversible=False)
    def wire(amount: int) -> str:
        """Send money."""
        sent.append(amount)
        return f"{amount} sent"

    return wire


def asking(store: Any, wire: Tool, policy: Approval, model: Any = None) -> Agent:
    """An agent that wants to wire 1, under this policy."""
    model = model or FakeModel([[("wire", {"amount": 1})], "end"])
    return Agent(model, [wire], store=store, autonomy=Autonomy(modes=ASSISTED, approval=policy))  # type: ignore[arg-type]


def test_a_word_does_not_pass_to_arguments_that_its_giver_has_not_seen(store: Any, wire: Tool, sent: list[int]) -> None:
    """Bob looked at 1, Mallory made it a million, Bob clicked: his word counts for nothing but what he names."""
    agent = asking(store, wire, Approval(people=2))
    (seen_by_bob,) = agent.run_sync("go", run_id=RUN).pending_approvals
    asyncio.run(agent.approve(RUN, by="mallory", arguments={"amount": 1_000_000}))
    for seen in ({}, {"arguments_hash": seen_by_bob["arguments_hash"]}):
        with pytest.raises(ChangedArgumentsError):
            asyncio.run(agent.approve(RUN, by="bob", **seen))
    (now,) = asyncio.run(agent.pending_approvals(RUN))
    assert now["granted_by"] == ["mallory"]
    assert agent.run_sync(run_id=RUN).status == "paused"
    asyncio.run(agent.approve(RUN, by="bob", arguments_hash=now["arguments_hash"]))
    agent.run_sync(run_id=RUN)
    assert sent == [1_000_000]  # what he has named, knowingly


@pytest.mark.parametrize("again", ["ann", "Ann", " ann "])
def test_one_person_is_not_two_by_another_spelling(store: Any, wire: Tool, again: str) -> None:
    """Names are taken at their word; case and blanks are not another person."""
    agent = asking(store, wire, Approval(people=2))
    agent.run_sync("go", run_id=RUN)
    asyncio.run(agent.approve(RUN, by="ann"))
    with pytest.raises(SamePersonError):
        asyncio.run(agent.approve(RUN, by=again))


def test_nobody_decides_after_a_request_has_expired(store: Any, wire: Tool, sent: list[int]) -> None:
    """Also where nothing has noticed it yet: the time that was given is over."""
    agent = asking(store, wire, Approval(expires_s=0.05))
    (request,) = agent.run_sync("go", run_id=RUN).pending_approvals
    while store.look(RUN).now < request["expires_at"]:
        time.sleep(0.01)
    with pytest.raises(NotPendingError):
        asyncio.run(agent.approve(RUN, by="ann"))
    assert agent.run_sync(run_id=RUN).status == "completed"
    assert (sent, "approval_expired" in kinds(store)) == ([], True)


def test_a_request_has_its_whole_time_from_when_it_is_made(store: Any, wire: Tool) -> None:
    """Not from when the thought began that asked for it, which may have taken longer."""

    class Slow(FakeModel):
        async def generate(self, **asked: Any) -> Any:
            await asyncio.sleep(0.6)
            return await super().generate(**asked)

    agent = asking(store, wire, Approval(expires_s=0.5), Slow([[("wire", {"amount": 1})], "end"]))
    request = next(e for e in agent.run_sync("go", run_id=RUN).events if e.type == "approval_requested")
    assert request.ts is not None
    assert 0 < request.payload["expires_at"] - request.ts <= 0.6


def test_the_stricter_of_then_and_now_says_how_many_must_grant(store: Any, wire: Tool, sent: list[int]) -> None:
    """One was enough when the run began; two are needed since yesterday, and the one's word is not lost."""
    model = FakeModel([[("wire", {"amount": 1})], "end"])
    asking(store, wire, Approval(), model).run_sync("go", run_id=RUN)
    today = asking(store, wire, Approval(people=2), model)
    asyncio.run(today.approve(RUN, by="ann"))
    result = today.run_sync(run_id=RUN)
    assert (result.status, sent) == ("paused", [])
    assert result.pending_approvals[0]["granted_by"] == ["ann"]
    with pytest.raises(SamePersonError):
        asyncio.run(today.approve(RUN, by="ann"))
    asyncio.run(today.approve(RUN, by="bob"))
    assert today.run_sync(run_id=RUN).status == "completed"
    assert sent == [1]


def test_a_question_put_anew_is_about_the_arguments_as_they_stand(store: Any, wire: Tool, sent: list[int]) -> None:
    """Ann made it 3 and was enough then; today Bob is asked as well, and about 3."""
    model = FakeModel([[("wire", {"amount": 1})], "end"])
    asking(store, wire, Approval(), model).run_sync("go", run_id=RUN)
    today = asking(store, wire, Approval(people=2), model)
    asyncio.run(today.approve(RUN, arguments={"amount": 3}, by="ann"))
    (request,) = today.run_sync(run_id=RUN).pending_approvals
    assert (request["arguments"], request["asked_arguments"]) == ({"amount": 3}, {"amount": 1})
    with pytest.raises(ChangedArgumentsError):
        asyncio.run(today.approve(RUN, by="bob"))
    asyncio.run(today.approve(RUN, by="bob", arguments_hash=request["arguments_hash"]))
    assert today.run_sync(run_id=RUN).status == "completed"
    assert sent == [3]


def test_an_unknown_outcome_shows_the_arguments_that_ran(store: Any) -> None:
    """Who asks the bank about 1,000 when 3 were sent finds nothing, and lets it be sent again."""

    @tool(reversible=False, timeout=0.05)
    async def wire(amount: int) -> str:
        """Send money, and never hear of it again."""
        await asyncio.Event().wait()
        return ""

    agent = asking(store, wire, Approval(), FakeModel([[("wire", {"amount": 1000})], "end"]))
    agent.run_sync("go", run_id=RUN)
    asyncio.run(agent.approve(RUN, arguments={"amount": 3}))
    (unknown,) = agent.run_sync(run_id=RUN).unknown_outcomes
    assert (unknown["arguments"], unknown["asked_arguments"]) == ({"amount": 3}, {"amount": 1000})
    asyncio.run(agent.give_outcome(RUN, happened=True, note="entry 7", by="ann"))
    corrected = store.events(RUN)[-1].payload["content"]
    assert corrected == '(a person approved this call with other arguments: {"amount": 3})\nentry 7'


def test_a_call_that_had_not_begun_when_its_run_failed_is_made_after_the_resumption(store: Any) -> None:
    """A sibling fails the run while this call's guard still thinks: nothing of it has happened, and nothing is lost."""
    made: list[str] = []

    @tool(reversible=False)
    def pay() -> str:
        """Pay."""
        made.append("paid")
        return "paid"

    @tool
    def other() -> str:
        """Something else."""
        return "done"

    async def guard(name: str, arguments: dict[str, Any]) -> str | None:
        if name == "pay":
            await asyncio.sleep(0.3)
            return None
        raise ValueError("the guard broke")

    model = Scripted(calls(("pay", {}), ("other", {})), "end")
    with pytest.raises((RunFailedError, ValueError)):
        Agent(model, [pay, other], store=store, guardrails=Guardrails(output_guard=guard)).run_sync("go", run_id=RUN)
    assert "unknown_outcome" not in str([event.payload for event in store.events(RUN)])
    mended = Agent(
        Scripted("end"), [pay, other], store=store, guardrails=Guardrails(output_guard=lambda name, arguments: None)
    )
    assert mended.run_sync(run_id=RUN).status == "completed"
    assert made == ["paid"]


@pytest.mark.parametrize("policy", ["model", "ask"])
def test_a_beginning_whose_answer_is_lost_is_known_to_be_unknown(store: Any, policy: Any) -> None:
    """It is recorded and was perhaps followed by the call: an operator finds it where unknown outcomes are listed."""

    @tool(reversible=False, on_unknown=policy)
    def pay() -> str:
        """Pay."""
        return "paid"

    begin = store.begin

    def lost(ask: Any, fact: Any, *, again: bool = False) -> bool:
        begin(ask, fact, again=again)
        return bool(begin(ask, fact, again=again))  # as whoever repeats a call whose answer was lost

    store.begin = lost
    result = Agent(Scripted(calls(("pay", {})), "end"), [pay], store=store).run_sync("go", run_id=RUN)
    assert [item["tool"] for item in result.unknown_outcomes] == ["pay"]
    assert [row.run_id for row in store.runs(unknown=True)] == [RUN]
