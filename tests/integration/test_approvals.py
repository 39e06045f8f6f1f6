"""Approvals people trust: expiry, escalation, two people, changed arguments, on real workers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import redis

from drangue_client.errors import ChangedArgumentsError, NotPendingError, SamePersonError, ValidationError
from drangue_client.result import Result
from drangue_client.wire.signals import APPROVALS
from drangue_worker import Agent, Approval, Autonomy, Guardrails, InMemoryStore, tool
from drangue_worker.testing import FakeModel
from tests.kit.fleet import Fleet, calls_then_answer, wait_until

Make = Callable[..., Fleet]
WIRE = ("wire", {"amount": 5})


@pytest.fixture
def fleet(make_fleet: Make) -> Fleet:
    made = make_fleet(calls_then_answer(WIRE), agents=("tests.kit.approving",))
    made.start("model-1", "tool-1")
    return made


def paused(fleet: Fleet, agent: str) -> str:
    """A run that waits for leave to wire 5."""
    run_id = fleet.client.submit(agent, "pay").run_id
    wait_until(lambda: fleet.client.get(run_id).status == "paused", 20)
    return run_id


def contents(result: Result) -> list[str]:
    return [event.payload["content"] for event in result.events if event.type == "tool_result"]


def test_an_expired_request_is_refused_without_anyone_touching_it(fleet: Fleet) -> None:
    """Nobody was there: the declared outcome comes by itself, and the tool has not run."""
    run_id = paused(fleet, "expiring")
    asked = fleet.client.pending_approvals(run_id)[0]
    wait_until(lambda: fleet.client.get(run_id).status == "completed", 20)
    result = fleet.client.result(run_id)
    (expired,) = [event for event in result.events if event.type == "approval_expired"]
    assert expired.payload["outcome"] == "reject"
    assert expired.ts is not None
    assert 0 <= expired.ts - asked["expires_at"] < 10
    assert json.loads(contents(result)[0])["error"]["category"] == "denied"
    assert fleet.effects() == []
    with pytest.raises(NotPendingError):
        fleet.client.approve(run_id, by="ann")


def test_an_expired_request_may_take_the_fallback_of_its_tool(fleet: Fleet) -> None:
    """What to do instead is the tool's business; the call itself is not made."""
    run_id = paused(fleet, "falling-back")
    wait_until(lambda: fleet.client.get(run_id).status == "completed", 20)
    told = json.loads(contents(fleet.client.result(run_id))[0])
    assert (told["error"]["category"], told["fallback"]) == ("expired", "parked for tomorrow")
    assert fleet.effects() == []


def test_a_request_that_nobody_decides_is_put_to_a_second_group(fleet: Fleet, redis_url: str) -> None:
    """Who is asked stands in the request; bots hear of it as of a new one. The first group may still decide."""
    heard: list[bytes] = []
    with closing(redis.Redis.from_url(redis_url)) as server, server.pubsub(ignore_subscribe_messages=True) as bot:
        bot.subscribe(APPROVALS)
        wait_until(lambda: bot.get_message(timeout=0.1) is None, 5)
        run_id = paused(fleet, "escalating")
        request = fleet.client.pending_approvals(run_id)[0]
        assert (request["group"], "escalated_to" in request) == ("ops", False)

        def rings() -> int:
            message = bot.get_message(timeout=0.05)
            heard.extend([message["data"]] if message else [])
            return len(heard) >= 2

        wait_until(rings, 20)
    assert heard == [run_id.encode()] * 2
    assert fleet.client.pending_approvals(run_id)[0]["escalated_to"] == "leads"
    fleet.client.approve(run_id, by="ann")
    assert fleet.finish([run_id])[0].status == "completed"
    assert len(fleet.effects()) == 1


def test_two_people_must_grant_and_never_one_twice(fleet: Fleet) -> None:
    """The second word of one person is refused, nobody's word counts, and between the two nothing has run."""
    run_id = paused(fleet, "double")
    with pytest.raises(ValueError, match="by is ''"):
        fleet.client.approve(run_id)
    assert fleet.client.approve(run_id, by="ann", reason="seen it")["missing"] == 1
    with pytest.raises(SamePersonError):
        fleet.client.approve(run_id, by="ann")
    assert fleet.client.pending_approvals(run_id)[0]["granted_by"] == ["ann"]
    assert (fleet.client.get(run_id).status, fleet.effects()) == ("paused", [])
    assert fleet.client.approve(run_id, by="bob")["missing"] == 0
    result = fleet.finish([run_id])[0]
    assert [event.payload["by"] for event in result.events if event.type == "approval_granted"] == ["ann", "bob"]
    assert len(fleet.effects()) == 1


def test_of_two_words_of_one_person_at_once_one_counts(fleet: Fleet) -> None:
    """Two clicks, two browsers: the lock of the run decides, and the other is told."""
    run_id = paused(fleet, "double")
    outcomes: list[Any] = []

    def grant() -> None:
        try:
            outcomes.append(fleet.client.approve(run_id, by="ann")["missing"])
        except SamePersonError as error:
            outcomes.append(error.by)

    clicks = [threading.Thread(target=grant) for _ in range(2)]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    assert sorted(map(str, outcomes)) == ["1", "ann"]
    assert fleet.client.get(run_id).status == "paused"


def test_changed_arguments_are_what_runs_and_both_versions_are_kept(fleet: Fleet) -> None:
    """Five were asked for, three are wired; the model is told, and the log shows who changed what."""
    run_id = paused(fleet, "plain")
    fleet.client.approve(run_id, arguments={"amount": 3}, by="ann", reason="that is enough")
    result = fleet.finish([run_id])[0]
    assert [name for (name,) in fleet.execute("select tool from effects")] == ["wire 3"]
    asked = next(event for event in result.events if event.type == "approval_requested")
    granted = next(event for event in result.events if event.type == "approval_granted")
    assert (asked.payload["arguments"], granted.payload["arguments"]) == ({"amount": 5}, {"amount": 3})
    assert (granted.payload["by"], granted.payload["reason"]) == ("ann", "that is enough")
    assert contents(result) == ['(a person approved this call with other arguments: {"amount": 3})\nwired 3']


def test_true_in_place_of_one_is_a_change() -> None:
    """Python takes them for equal; the other side of the tool does not, and the change was approved."""
    made: list[Any] = []

    @tool(requires_approval=True)
    def send(urgent: Any) -> str:
        """Send."""
        made.append(urgent)
        return "sent"

    agent = Agent(FakeModel([[("send", {"urgent": 1})], "done"]), [send], store=InMemoryStore())
    assert agent.run_sync("send", run_id="r").status == "paused"

    async def go_on() -> Result:
        await agent.approve("r", arguments={"urgent": True}, by="ann")
        return await agent.resume("r")

    granted = [event for event in asyncio.run(go_on()).events if event.type == "approval_granted"]
    assert [(one.payload["edited"], one.payload["arguments"]["urgent"] is True) for one in granted] == [(True, True)]
    assert made[0] is True


@pytest.mark.parametrize("wrong", [{"amount": "much"}, {}, {"amount": 3, "to": "me"}])
def test_changed_arguments_that_break_the_schema_are_refused_and_the_run_still_waits(
    fleet: Fleet, wrong: dict[str, Any]
) -> None:
    """A slip of the finger must neither run nor lose the request."""
    run_id = paused(fleet, "plain")
    with pytest.raises(ValidationError, match="do not fit wire"):
        fleet.client.approve(run_id, arguments=wrong, by="ann")
    assert (fleet.client.get(run_id).status, len(fleet.client.pending_approvals(run_id))) == ("paused", 1)
    assert "approval_granted" not in [event.type for event in fleet.client.events(run_id)]


def test_who_changes_arguments_asks_the_others_again(fleet: Fleet) -> None:
    """Ann granted five; what Bob makes of it is another question, and he cannot answer it alone."""
    run_id = paused(fleet, "double")
    fleet.client.approve(run_id, by="ann")
    assert fleet.client.approve(run_id, arguments={"amount": 4}, by="bob")["missing"] == 1
    request = fleet.client.pending_approvals(run_id)[0]
    assert (request["arguments"], request["asked_arguments"]) == ({"amount": 4}, {"amount": 5})
    assert request["granted_by"] == ["bob"]
    with pytest.raises(ChangedArgumentsError):
        fleet.client.approve(run_id, by="ann")
    assert fleet.client.approve(run_id, arguments_hash=request["arguments_hash"], by="ann")["missing"] == 0
    fleet.finish([run_id])
    assert [name for (name,) in fleet.execute("select tool from effects")] == ["wire 4"]


def test_a_guard_looks_at_changed_arguments_too() -> None:
    """A person may decide, but not past the author's own guard."""
    made: list[int] = []

    @tool(reversible=False, requires_approval=True)
    def pay(amount: int) -> str:
        """Pay."""
        made.append(amount)
        return "paid"

    def at_most_ten(name: str, arguments: dict[str, Any]) -> str | None:
        return "too much" if arguments["amount"] > 10 else None

    store = InMemoryStore()
    model = FakeModel([[("pay", {"amount": 5})], "done"])
    agent = Agent(model, [pay], store=store, guardrails=Guardrails(output_guard=at_most_ten))
    assert agent.run_sync("pay", run_id="r").status == "paused"

    async def go_on() -> Result:
        await agent.approve("r", arguments={"amount": 50}, by="ann")
        return await agent.resume("r")

    result = asyncio.run(go_on())
    assert made == []
    assert json.loads(contents(result)[0])["error"] == {"category": "blocked", "message": "too much"}


def test_a_policy_is_recorded_with_the_run_and_rules_it() -> None:
    """Whatever is deployed meanwhile: two people were needed when it began."""
    model = FakeModel([[("read", {})], "done"])

    @tool
    def read() -> str:
        """Read."""
        return "read"

    store = InMemoryStore()
    strict = Autonomy("assisted", approvals={"read": Approval(people=2, expires_s=60.0)})
    Agent(model, [read], store=store, autonomy=strict).run_sync("go", run_id="r")
    recorded = store.events("r")[0].payload["config"]["autonomy"]
    assert recorded["approvals"]["read"]["people"] == 2
    assert Autonomy.from_json(recorded) == strict

    async def grant() -> None:
        await Agent(model, [read], store=store, autonomy=Autonomy("assisted")).approve("r", by="ann")

    asyncio.run(grant())
    assert store.look("r").row.status == "paused"


def test_what_waits_is_told_although_something_else_of_its_run_goes_on(make_fleet: Make) -> None:
    """Its time may be over before a slow sibling has ended: whoever decides must hear of it at once."""
    slow = ("note", {"text": "tea", "seconds": 4.0})
    fleet = make_fleet(calls_then_answer(slow, WIRE))
    fleet.start("model-1", "tool-1")
    with closing(redis.Redis.from_url(fleet.settings.redis_url)) as client, client.pubsub() as heard:
        heard.subscribe(APPROVALS)
        run_id = fleet.client.submit("careful", "pay", allow_unknown=True).run_id
        watching = fleet.client.watch_approvals(timeout=20)
        request = next(watching)
        assert (request["run_id"], request["tool"]) == (run_id, "wire")
        assert [one["call_id"] for one in fleet.client.pending_approvals()] == [request["call_id"]]
        assert fleet.client.get(run_id).status == "running"
        wait_until(lambda: (heard.get_message() or {}).get("data") == run_id.encode(), 20)
    fleet.client.approve(run_id, request["call_id"], arguments_hash=request["arguments_hash"], by="ann")
    assert fleet.finish([run_id], 30)[0].status == "completed"
    assert sorted(fleet.effects()) == [f"{run_id}:2", f"{run_id}:3"]
    assert fleet.client.pending_approvals() == []
