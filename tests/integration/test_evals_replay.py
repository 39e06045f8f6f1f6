"""Replays of recorded runs: today's agent thinks anew, and nothing else in the world is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from drangue_client.errors import PermanentError
from drangue_client.messages import ModelResponse
from drangue_worker import (
    Agent,
    AgentRegistry,
    Budget,
    Check,
    Gate,
    InMemoryStore,
    Result,
    forbids_tool,
    output_contains,
    tool,
)
from drangue_worker.evals import Account, Difference, Recording, ReplayReport, replay
from drangue_worker.testing import FakeModel

ran: list[tuple[str, Any]] = []

CAREFUL = "Look the order up, then pay what is owed."
HASTY = "Pay."


@tool
def order_status(order: int) -> str:
    """Status of an order."""
    ran.append(("order_status", order))
    return f"order {order} was lost: we owe 5"


@tool(reversible=False)
async def refund(amount: int, idempotency_key: str) -> str:
    """Move money."""
    ran.append(("refund", amount))
    return f"{amount} sent"


class Clerk(FakeModel):
    """Goes by the prompt and the conversation alone, so that runs may go together, and may be done again."""

    async def generate(self, *, system: str, messages: list[Any], **given: Any) -> ModelResponse:
        self.calls.append({"messages": messages})
        order = int(messages[0]["content"].split()[-1])
        said = [message["content"] for message in messages if message["role"] == "tool"]
        if order == 13:
            raise PermanentError("order 13 broke the model")
        if said and said[-1].endswith("sent"):
            return self.responses[2]
        if said and "not_recorded" in said[-1]:
            return self.responses[3]
        if said or (system == HASTY and order % 2 == 0):
            return self.responses[1]
        return FakeModel([[("order_status", {"order": order if system == CAREFUL else 0})]]).responses[0]


def clerk(name: str = "clerk", prompt: str = CAREFUL, **options: Any) -> Agent:
    model = Clerk(["", [("refund", {"amount": 5})], "Done: 5 sent.", "I cannot tell."])
    return Agent(model, [order_status, refund], prompt, name=name, **options)


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    ran.clear()
    yield
    ran.clear()


def record(agent: Agent, *orders: int) -> list[Recording]:
    """Runs of an agent, as production recorded them; what they did is forgotten."""
    found = [agent.run_sync(f"Mend order {order}", run_id=f"run-{order}") for order in orders]
    ran.clear()
    return [Recording(result, agent.name) for result in found]


def again(agent: Any, recordings: list[Recording], **options: Any) -> ReplayReport:
    return asyncio.run(replay(agent, recordings, **options))


def test_an_agent_that_did_not_change_passes() -> None:
    """And nobody's order is looked up, and no money moves, however often it is replayed."""
    made = again(clerk(), record(clerk(), 7, 8), runs=3)
    assert ran == []
    assert [(one.run_id, one.same_calls, one.same_answer, one.differences) for one in made.replays] == [
        *[("run-7", True, True, ())] * 3,
        *[("run-8", True, True, ())] * 3,
    ]
    account = Account("completed", "Done: 5 sent.", ("order_status", "refund"), 3, 45, None)
    assert made.replays[0].recorded == made.replays[0].replayed == account
    assert [result.dimensions for result in made.report.results] == [{"correctness": (3, 3), "efficiency": (3, 3)}] * 2
    decision = Gate().evaluate(made.baseline, made.report.profile())
    assert (decision.passed, decision.blocks) == (True, [])


def test_the_records_are_no_sample() -> None:
    """Only replays have noise: with enough of them the gate is quiet, however few runs were recorded."""
    made = again(clerk(), record(clerk(), 8), runs=1)
    assert (made.baseline["correctness"], made.baseline["stderr"], made.baseline["noise"]) == (1.0, {}, 0.0)
    assert made.report.profile()["noise"] == pytest.approx(0.222335, abs=5e-7)  # 1 of 1, by Agresti and Coull


def test_a_worse_prompt_is_blocked_with_its_numbers() -> None:
    """Even orders are paid without a look: another choice of tools. Odd ones are looked up under a wrong number."""
    made = again(clerk(prompt=HASTY), record(clerk(), 7, 8))
    assert ran == []
    odd, even = made.replays
    assert (odd.recorded.tools, odd.replayed.tools) == (("order_status", "refund"), ("order_status",))
    assert odd.differences == (Difference("missing", "order_status", {"order": 0}),)
    assert (odd.replayed.answer, odd.same_answer, odd.same_calls) == ("I cannot tell.", False, False)
    assert (even.replayed.tools, even.differences, even.same_answer, even.same_calls) == (("refund",), (), True, False)
    assert [one.failed_checks for one in made.report.runs] == [
        ("same tool calls as recorded", "every call is in the record"),
        ("same tool calls as recorded",),
    ]
    decision = Gate().evaluate(made.baseline, made.report.profile())
    assert decision.blocks == ["correctness regressed by 1.00: from 1.000 to 0.000, more than the 0.05 it may."]


def test_a_stub_answers_what_the_record_cannot() -> None:
    """By choice: the run goes on with something plausible, and a judgement of its answer means something again."""
    asked: list[Any] = []

    async def stub(tool: str, arguments: dict[str, Any]) -> Any:
        asked.append((tool, arguments))
        return {"order": arguments["order"], "owed": 5}

    recordings = record(clerk(), 7)
    checks = [output_contains("5 sent"), forbids_tool("close_account")]
    made = again(clerk(prompt=HASTY), recordings, checks=checks, stub=stub)
    assert asked == [("order_status", {"order": 0})]
    assert made.replays[0].differences == (Difference("stubbed", "order_status", {"order": 0}),)
    assert made.report.runs[0].dimensions == {"correctness": True, "safety": True, "efficiency": True}
    assert made.baseline["safety"] == 1.0
    assert ran == []


def test_a_call_that_cannot_be_answered_fails_whatever_the_checks_say() -> None:
    """A model that was told of no result has not shown what it would have done with one."""
    made = again(clerk(prompt=HASTY), record(clerk(), 7), checks=[output_contains("I cannot tell")])
    assert made.report.runs[0].failed_checks == ("every call is in the record",)


def test_checks_can_be_made_of_each_record() -> None:
    """What is right for one run is not for another; the records are graded by the same checks."""
    recordings = record(clerk(), 7, 8)
    made = again(
        clerk(prompt=HASTY),
        recordings,
        checks=lambda recorded: [
            Check("correctness", "says the same", lambda result: result.output == recorded.output),
            Check("tone", "brief", lambda result: recorded.run_id == "run-8"),
        ],
    )
    assert [one.dimensions["correctness"] for one in made.report.runs] == [False, True]
    assert (made.baseline["correctness"], made.baseline["tone"]) == (1.0, 0.5)


@pytest.mark.parametrize(("tolerance", "efficient"), [(0.0, False), (0.49, False), (0.5, True)])
def test_more_work_than_recorded_is_less_efficient(tolerance: float, efficient: bool) -> None:
    """The record took 2 calls and 30 tokens, today's prompt takes 3 and 45: half as much again."""
    made = again(clerk(), record(clerk(prompt=HASTY), 8), tolerance=tolerance, checks=[], stub=lambda *call: "found")
    assert (made.replays[0].recorded.steps, made.replays[0].replayed.steps) == (2, 3)
    assert made.report.runs[0].dimensions["efficiency"] is efficient


@pytest.mark.parametrize(("tokens", "tolerance", "most"), [(100, 0.15, 115), (10, 0.1, 11), (7, 0.2, 8)])
def test_the_limit_is_the_number_one_works_out(tokens: int, tolerance: float, most: int) -> None:
    """In floats 100 * 1.15 is a bit less than 115."""

    def using(tokens: int) -> Agent:
        return Agent(FakeModel([ModelResponse(text="hi", usage={"input_tokens": tokens, "output_tokens": 0})]))

    recordings = [Recording(using(tokens).run_sync("hello", run_id="r"))]
    within, beyond = (again(using(most + more), recordings, tolerance=tolerance).report.runs[0] for more in (0, 1))
    assert within.failed_checks == ()
    assert beyond.failed_checks == (f"within {most} tokens",)


def test_where_no_usage_was_recorded_none_is_compared() -> None:
    """Any number is more than none."""
    recorded = Agent(FakeModel([ModelResponse(text="hi")])).run_sync("hello", run_id="r")
    assert again(Agent(FakeModel(["hi"])), [Recording(recorded)]).report.runs[0].failed_checks == ()


def test_a_replay_that_fails_is_a_failed_run() -> None:
    """It is compared as far as it came, and the others are replayed."""
    recordings = record(clerk(), 7, 8)
    broken = Clerk(["", [("refund", {"amount": 5})]])  # which has no answer
    made = again(Agent(broken, [order_status, refund], CAREFUL), recordings)
    assert [one.error for one in made.replays] == ["IndexError: list index out of range"] * 2
    assert made.replays[0].replayed == Account("failed", "", ("order_status", "refund"), 2, 30, None)
    assert made.report.results[0].failed == 1


def test_a_recorded_run_that_failed_is_no_reason_to_block() -> None:
    """Its record passes nothing, so nothing can get worse."""
    store = InMemoryStore()
    agent = clerk(store=store)
    with pytest.raises(PermanentError):
        agent.run_sync("Mend order 13", run_id="r")
    made = again(clerk(), [Recording(Result.from_events("r", store.events("r")))])
    assert made.baseline["correctness"] == 0.0
    assert Gate().evaluate(made.baseline, made.report.profile()).passed


def test_a_replay_has_a_limit_of_time() -> None:
    """A model that hangs fails its run, and not the evaluation."""

    class Hanging(FakeModel):
        async def generate(self, **given: Any) -> ModelResponse:
            await asyncio.Event().wait()
            raise AssertionError

    made = again(Agent(Hanging()), record(clerk(), 7), timeout_s=0.1)
    assert made.replays[0].error == "TimeoutError: no answer within 0.1 s"


PRICES = {"fake": {"input": 1.0, "output": 2.0}}  # a call of 10 + 5 tokens costs 20 millionths


def test_cost_is_compared_by_the_prices_of_each_side() -> None:
    """The record by those it was run under, the replay by today's; a table of one's own holds for both."""

    def priced(factor: float) -> Agent:
        table = {"fake": {kind: usd * factor for kind, usd in PRICES["fake"].items()}}
        return clerk(budget=Budget(max_usd=1.0, prices=table))

    def costs(agent: Agent, recordings: list[Recording], **options: Any) -> tuple[float | None, float | None]:
        (one,) = again(agent, recordings, **options).replays
        return one.recorded.usd, one.replayed.usd

    dear = record(priced(10), 7)
    assert costs(priced(1), dear) == pytest.approx((600e-6, 60e-6))
    assert costs(clerk(), dear) == pytest.approx((600e-6, 600e-6))
    assert costs(priced(1), dear, prices=PRICES) == pytest.approx((60e-6, 60e-6))
    assert costs(clerk(), record(clerk(), 7)) == (None, None)
    assert costs(priced(1), dear, prices={"other": {"input": 1.0}}) == (None, None)


def test_each_run_is_replayed_by_the_agent_that_made_it() -> None:
    """A registry holds today's; a run of an agent that is gone is refused before anything is replayed."""
    one, other = clerk("one"), clerk("other", prompt=HASTY)
    recordings = [*record(one, 7), *record(other, 8)]
    made = again(AgentRegistry([one, other]), recordings)
    assert [(replayed.agent, replayed.same_calls) for replayed in made.replays] == [("one", True), ("other", True)]
    with pytest.raises(ValueError, match="of agent 'other'"):
        again(AgentRegistry([one]), recordings)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"runs": 0}, ValueError, "runs is 0"),
        ({"concurrency": 0}, ValueError, "concurrency is 0"),
        ({"tolerance": -0.1}, ValueError, "tolerance is -0.1"),
        ({"tolerance": float("nan")}, ValueError, "tolerance is nan"),
        ({"prices": {"fake": 3}}, TypeError, r"prices\['fake'\]"),
        ({"recordings": []}, ValueError, "recordings is empty"),
        ({"recordings": ["run-7"]}, TypeError, "recordings holds 'run-7'"),
    ],
)
def test_what_cannot_be_replayed_is_refused_by_name(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Before a model is asked."""
    agent = clerk()
    recordings = options.pop("recordings", None)
    with pytest.raises(error, match=message):
        again(agent, record(clerk(), 7) if recordings is None else recordings, **options)
    assert agent.router.model.calls == []
