"""Nothing runs without leave, and leave is for one call, from somebody, for a reason."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import InFlightError, NotPendingError
from drangue_worker import Agent, Autonomy, Guardrails, MemoryItem, tool
from drangue_worker.testing import FakeModel
from tests.kit.inline import PLACES, RUN, Scripted, calls, categories, contents, copy_of, kinds, leave, opened

ASSISTED = Autonomy(modes={"wire": "assisted"})
GUARDS = ("input_guard", "output_guard", "result_guard")


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from opened(request.param, request, tmp_path)


@pytest.fixture
def sent() -> list[int]:
    """The amounts that were wired in this test."""
    return []


@pytest.fixture
def wire(sent: list[int]) -> Any:
    @tool
    def wire(amount: int) -> str:
        """Move money."""
        sent.append(amount)
        return f"{amount} sent"

    return wire


def test_an_approval_does_not_pass_to_a_later_call_of_the_same_id(store: Any, wire: Any, sent: list[int]) -> None:
    """Providers repeat their ids; a million must not go out because somebody once agreed to one, nor because somebody
    agrees to it late: the later call is recorded under an id of its own."""
    model = FakeModel(
        [calls(("wire", {"amount": 1}, "call_0")), calls(("wire", {"amount": 1_000_000}, "call_0")), "end"]
    )
    agent = Agent(model, [wire], store=store, autonomy=ASSISTED)
    agent.run_sync("go", run_id=RUN)
    asyncio.run(agent.approve(RUN, "call_0"))
    second = agent.run_sync(run_id=RUN)
    assert (second.status, sent) == ("paused", [1])
    assert [request["arguments"] for request in second.pending_approvals] == [{"amount": 1_000_000}]
    with pytest.raises(NotPendingError):
        asyncio.run(agent.approve(RUN, "call_0"))
    asyncio.run(agent.reject(RUN, second.pending_approvals[0]["call_id"]))
    assert (agent.run_sync(run_id=RUN).output, sent) == ("end", [1])


def test_a_verdict_says_who_gave_it_when_and_why(store: Any, wire: Any) -> None:
    """Whoever audits a payment asks exactly this."""
    model = FakeModel([[("wire", {"amount": 1}), ("wire", {"amount": 2})], "end"])
    agent = Agent(model, [wire], store=store, autonomy=ASSISTED)
    asked = agent.run_sync("go", run_id=RUN).pending_approvals
    asyncio.run(agent.approve(RUN, asked[0]["call_id"], by="ann", reason="the invoice is here"))
    asyncio.run(agent.reject(RUN, asked[1]["call_id"], by="bob", reason="paid already"))
    granted, denied = [event for event in store.events(RUN) if event.type in ("approval_granted", "approval_denied")]
    told = [(event.type, event.step, event.payload) for event in (granted, denied)]
    assert told == [
        (
            verdict,
            request["step"],
            {
                "call_id": request["call_id"],
                "arguments_hash": request["arguments_hash"],
                "by": by,
                "reason": reason,
            },
        )
        for verdict, request, by, reason in (
            ("approval_granted", asked[0], "ann", "the invoice is here"),
            ("approval_denied", asked[1], "bob", "paid already"),
        )
    ]
    assert store.events(RUN)[0].ts <= granted.ts <= denied.ts


def test_of_verdicts_given_at_once_one_holds(store: Any, wire: Any, sent: list[int]) -> None:
    """Two people press at the same moment: the second is told, and what the first said is what happens."""
    agent = Agent(FakeModel([[("wire", {"amount": 1})], "end"]), [wire], store=store, autonomy=ASSISTED)
    agent.run_sync("go", run_id=RUN)

    async def all_at_once() -> list[Any]:
        verdicts = [decide(RUN) for decide in (agent.approve, agent.reject) * 3]
        return await asyncio.gather(*verdicts, return_exceptions=True)

    answers = asyncio.run(all_at_once())
    assert sorted(type(answer).__name__ for answer in answers) == ["NoneType"] + ["NotPendingError"] * 5
    verdicts = [kind for kind in kinds(store) if kind in ("approval_granted", "approval_denied")]
    agent.run_sync(run_id=RUN)
    assert (verdicts, sent) in [(["approval_granted"], [1]), (["approval_denied"], [])]


def test_a_failed_run_asks_nobody_until_it_is_resumed(store: Any, wire: Any, sent: list[int]) -> None:
    """A verdict on a run that stands still would be given for a moment that may never come."""
    down = [True]

    @tool
    def look() -> str:
        """Needs nobody."""
        return "seen"

    def guard(name: str, content: str) -> None:
        if down:
            raise ConnectionError(down.pop())

    guards = Guardrails(result_guard=guard)
    model = FakeModel([[("wire", {"amount": 1}), ("look", {})], "end"])
    agent = Agent(model, [wire, look], store=store, autonomy=ASSISTED, guardrails=guards)
    with pytest.raises(ConnectionError):
        agent.run_sync("go", run_id=RUN)
    assert asyncio.run(agent.pending_approvals(RUN)) == []
    with pytest.raises(NotPendingError):
        asyncio.run(agent.approve(RUN))
    with pytest.raises(InFlightError):
        agent.run_sync("something else", run_id=RUN)
    assert agent.run_sync(run_id=RUN).status == "paused"
    asyncio.run(agent.approve(RUN))
    assert (agent.run_sync(run_id=RUN).output, sent) == ("end", [1])


def verdict_of(point: str, verdict: Any, wire: Any, **more: Any) -> tuple[Agent, Any]:
    """An agent whose guard at this point always says this, and its run as it stopped."""
    tools = [copy_of(wire, requires_approval=True)] if point == "approver" else [wire]
    guards = Guardrails(**{point: lambda *about: verdict})
    agent = Agent(FakeModel([[("wire", {"amount": 1})], "end"]), tools, guardrails=guards, **more)
    return agent, agent.run_sync("go", run_id=RUN)


@pytest.mark.parametrize("nothing", [None, False, "", 0, [], {}], ids=repr)
def test_what_is_not_true_refuses_nothing_and_grants_nothing(wire: Any, sent: list[int], nothing: Any) -> None:
    """One rule of truth for every guard: what returns nothing has found nothing, and has agreed to nothing."""
    for point in GUARDS:
        agent, result = verdict_of(point, nothing, wire)
        assert (result.reason, contents(agent.store)) == ("answered", ["1 sent"])
    assert sent == [1] * len(GUARDS)
    agent, _ = verdict_of("approver", nothing, wire)
    assert (sent, categories(agent.store)) == ([1] * len(GUARDS), ["blocked"])


@pytest.mark.parametrize(
    ("something", "reason"),
    [
        (True, "refused by the {}"),
        ("too much", "too much"),
        (7, "7"),
        (ValueError("over the limit"), "over the limit"),
        (PermissionError(), ""),
    ],
    ids=repr,
)
def test_what_is_true_refuses(wire: Any, sent: list[int], something: Any, reason: str) -> None:
    """Whatever a guard returns to refuse with, even without words, refuses."""
    _, blocked = verdict_of("input_guard", something, wire)
    assert (blocked.reason, sent) == ("blocked", [])
    assert reason.format("input guard") in blocked.output
    refused, _ = verdict_of("output_guard", something, wire)
    assert (categories(refused.store), sent) == (["blocked"], [])
    withheld, _ = verdict_of("result_guard", something, wire)
    assert (categories(withheld.store), sent) == (["result_blocked"], [1])
    assert reason.format("result guard") in contents(withheld.store)[0]


@pytest.mark.parametrize("point", [*GUARDS, "approver"])
def test_a_guard_that_keeps_failing_leaves_a_failed_run_each_time_and_then_a_mended_one(
    store: Any, wire: Any, sent: list[int], point: str
) -> None:
    """What failed is recorded with its reason, one record for each time it was tried, and nothing passes meanwhile."""
    failures = [ValueError("first"), ConnectionError("second"), OSError()]

    def guard(*about: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return point == "approver"

    tools = [copy_of(wire, requires_approval=True)] if point == "approver" else [wire]
    model = FakeModel([[("wire", {"amount": 1})], "end"])
    agent = Agent(model, tools, store=store, guardrails=Guardrails(**{point: guard}))
    for kind in (ValueError, ConnectionError, OSError):
        with pytest.raises(kind):
            agent.run_sync("go", run_id=RUN)
        row = store.look(RUN).row
        assert (row.status, sent) == ("failed", [1] if point == "result_guard" else [])
    failed = [event.payload for event in store.events(RUN) if event.type == "run_failed"]
    assert failed == [{"error": error, "category": "error"} for error in ("first", "second", "OSError")]
    assert agent.run_sync(run_id=RUN).output == "end"
    assert (sent, contents(store)) == ([1], ["1 sent"])


def test_a_message_that_was_not_judged_yet_is_judged_before_anybody_sees_it(store: Any) -> None:
    """The process dies between writing a message down and judging it: it must not slip through when resumed."""
    model = FakeModel(["hello"])
    queries: list[str] = []
    asked = asyncio.Event()

    class Memory:
        async def recall(self, query: str, *, limit: int = 5) -> list[Any]:
            queries.append(query)
            return []

        async def remember(self, item: Any) -> None:
            raise AssertionError("nothing is remembered by itself")

    async def guard(text: str) -> str | None:
        if "bad" in text and not asked.is_set():
            asked.set()
            await asyncio.Event().wait()
        return "bad" if "bad" in text else None

    def agent() -> Agent:
        return Agent(model, store=store, memory=Memory(), guardrails=Guardrails(input_guard=guard))

    leave(agent(), asked, "a bad thing")
    assert kinds(store) == ["run_started"]
    blocked = agent().run_sync(run_id=RUN)
    assert (blocked.reason, model.calls, queries) == ("blocked", [], [])
    good = agent().run_sync("a good thing", run_id=RUN)
    assert (good.output, queries) == ("hello", ["a good thing"])
    assert model.calls[0]["messages"] == [{"role": "user", "content": "a good thing"}]


def test_log_lines_hold_nothing_of_what_is_said_done_or_refused(caplog: pytest.LogCaptureFixture, wire: Any) -> None:
    """Log lines are shipped where prompts and customers' data must not be, whatever goes wrong and at any level."""
    secret = "hunter2"

    class Memory:
        async def recall(self, query: str, *, limit: int = 5) -> list[MemoryItem]:
            return [MemoryItem("k", secret)]

        async def remember(self, item: Any) -> None:
            raise AssertionError("nothing is remembered by itself")

    class Forgetful(Memory):
        async def recall(self, query: str, *, limit: int = 5) -> list[MemoryItem]:
            raise ValueError(secret)

    @tool(timeout=5)
    def fail(text: str) -> str:
        """Fails."""
        raise RuntimeError(text)

    def refuse(*about: Any) -> str:
        return secret

    def broken(*about: Any) -> str:
        raise ValueError(secret)

    asked = [("wire", {"amount": 1, secret: secret}), ("fail", {"text": secret}), (secret, {}), ("wire", secret)]
    with caplog.at_level(logging.DEBUG):
        for memory in (Memory(), Forgetful()):
            for point in (None, *GUARDS):
                for guard in (refuse, broken):
                    guards = Guardrails(**{point: guard}) if point else None
                    model = Scripted(calls(*asked, text=secret, reasoning=secret), secret)
                    agent = Agent(model, [wire, fail], secret, memory=memory, guardrails=guards)
                    with suppress(ValueError):  # the broken guard's
                        agent.run_sync(secret)
    ours = [record for record in caplog.records if record.name.startswith("drangue")]
    assert {"tool_failed", "step_failed", "recall_failed", "run_stopped"} <= {record.getMessage() for record in ours}
    assert [record for record in caplog.records if secret in f"{record.getMessage()} {record.__dict__}"] == []
