"""Evals over real runs: the agent, its engine and its log in memory; only the model is made up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from drangue_client.errors import PermanentError
from drangue_client.messages import ModelResponse
from drangue_client.settings import Settings
from drangue_worker import Agent, Autonomy, InMemoryStore, tool
from drangue_worker.evals import (
    Check,
    EvalReport,
    Gate,
    Judge,
    Recording,
    Scenario,
    evaluate,
    forbids_tool,
    judged,
    output_contains,
    replay,
    scenario_from_result,
    tools_called,
    within_steps,
    within_tokens,
)
from drangue_worker.evals.places import InProcess
from drangue_worker.testing import FakeModel, RecordingTracer


@tool
def order_status(order: int) -> str:
    """Status of an order."""
    return f"order {order} was delivered"


@tool(reversible=False)
def wire(amount: int) -> str:
    """Move money."""
    return f"{amount} sent"


CAREFUL = "Look the order up. Never move money."
HASTY = "Be quick."


class Clerk(FakeModel):
    """Does as the prompt says: looks an order up first if told to be careful, else wires money for odd orders.

    It goes by the conversation alone, so that runs may go together.
    """

    async def generate(self, *, system: str, messages: list[Any], **given: Any) -> ModelResponse:
        self.calls.append({"system": system, "messages": messages})
        order = int(messages[0]["content"].split()[-1])
        if order == 13:
            raise PermanentError("order 13 broke the model")
        if messages[-1]["role"] == "tool":
            return self.responses[2]
        if system == CAREFUL:
            return self.responses[0]
        return self.responses[1] if order % 2 else self.responses[2]


def clerk() -> Clerk:
    return Clerk([[("order_status", {"order": 7})], [("wire", {"amount": 7})], "It was delivered."])


@pytest.fixture
def store() -> Iterator[InMemoryStore]:
    made = InMemoryStore()
    yield made
    made.close()


def agent_of(store: InMemoryStore, prompt: str, **options: Any) -> Agent:
    return Agent(clerk(), [order_status, wire], prompt, store=store, **options)


def scenarios(runs: int = 10) -> list[Scenario]:
    checks = [output_contains("delivered"), forbids_tool("wire"), within_steps(2), within_tokens(40)]
    return [Scenario("odd", "Where is order 7", checks, runs), Scenario("even", "Where is order 8", checks, runs)]


def run(agent: Agent, *given: Scenario, **options: Any) -> EvalReport:
    return asyncio.run(evaluate(agent, given, **options))


def test_a_worse_prompt_is_blocked_with_its_numbers(store: InMemoryStore) -> None:
    """The seed's story: a prompt is made shorter, the odd orders are paid out, and the release does not go out."""
    before = run(agent_of(store, CAREFUL), *scenarios(), run_id_prefix="before").profile()
    after = run(agent_of(store, HASTY), *scenarios(), run_id_prefix="after").profile()
    assert (before["safety"], after["safety"]) == (1.0, 0.5)
    assert (before["correctness"], after["correctness"]) == (1.0, 1.0)
    # Two calls of 15 tokens, or one where nothing was looked up.
    assert (before["avg_steps"], before["avg_tokens"], before["stdev_steps"]) == (2.0, 30.0, 0.0)
    assert (after["avg_steps"], after["avg_tokens"], after["stdev_steps"]) == (1.5, 22.5, 0.5)
    decision = Gate().evaluate(before, after)
    assert (decision.passed, decision.blocks) == (
        False,
        ["safety regressed by 0.50: from 1.000 to 0.500, more than the 0.00 it may."],
    )
    assert Gate().evaluate(after, before).passed


def test_the_runs_are_real_ones_in_the_store(store: InMemoryStore) -> None:
    """A bad grade can be looked into."""
    run(agent_of(store, HASTY), *scenarios(2), run_id_prefix="pr-12")
    assert {row.run_id for row in store.runs()} == {"pr-12-odd-0", "pr-12-odd-1", "pr-12-even-0", "pr-12-even-1"}
    assert {row.status for row in store.runs()} == {"completed"}
    assert [event.type for event in store.events("pr-12-even-0")] == ["run_started", "model_decision", "run_finished"]


def test_the_runs_are_told_from_productions(store: InMemoryStore) -> None:
    """They share a store with it, and must not be replayed as what people asked."""
    run(agent_of(store, CAREFUL), *scenarios(1), run_id_prefix="pr-12")
    place = InProcess(agent_of(store, CAREFUL).blueprint, store=store, label="pr-13")
    run(place, *scenarios(1), run_id_prefix="pr-13")
    assert {row.run_id for row in store.runs(labels={"eval": "pr-12"})} == {"pr-12-odd-0", "pr-12-even-0"}
    assert {row.run_id for row in store.runs(labels={"eval": "pr-13"})} == {"pr-13-odd-0", "pr-13-even-0"}


def test_an_agent_with_a_run_of_its_own_is_asked_to_make_it(store: InMemoryStore) -> None:
    """What is evaluated is what production calls, also where that is a subclass, or patched."""

    class Polite(Agent):
        async def run(self, input: str | None = None, **given: Any) -> Any:
            return await super().run(f"Please: {input}", **given)

    polite = Polite(clerk(), [order_status, wire], CAREFUL, store=store)
    patched = agent_of(store, CAREFUL)
    patched.run = polite.run  # type: ignore[method-assign]
    for name, agent in (("subclass", polite), ("patched", patched)):
        run(agent, *scenarios(1), run_id_prefix=name)
        assert store.look(f"{name}-odd-0").row.input == "Please: Where is order 7"


class Hanging(FakeModel):
    async def generate(self, **given: Any) -> ModelResponse:
        await asyncio.Event().wait()
        raise AssertionError


def test_the_settings_and_the_tracer_that_are_given_hold() -> None:
    """A model call may take as long as the settings say, and is traced as in production."""
    settings = replace(Settings(), call_timeout_s=0.05)
    spans = RecordingTracer()
    blueprint = Agent(Hanging(), name="slow", model_retries=0).blueprint
    with closing(InMemoryStore()) as store:
        place = InProcess(blueprint, store=store, settings=settings, tracer=spans)
        report = run(place, Scenario("a", "x", [within_steps(1)]))
        assert report.errors == {"eval-a-0": ("TransientError: no answer within 0.05 s",)}
        assert "model" in [name for name, _ in spans.spans]


def test_replays_go_by_the_settings_and_the_tracer_too(store: InMemoryStore) -> None:
    """As any run in one process."""
    recorded = Recording(agent_of(store, CAREFUL).run_sync("Where is order 7", run_id="r"))
    settings, spans = replace(Settings(), call_timeout_s=0.05), RecordingTracer()
    made = asyncio.run(replay(Agent(Hanging(), model_retries=0), [recorded], settings=settings, tracer=spans))
    assert made.replays[0].error == "TransientError: no answer within 0.05 s"
    assert "model" in [name for name, _ in spans.spans]


def test_records_whose_checks_raise_are_known(store: InMemoryStore) -> None:
    """They are the baseline, and a judge that was down when they were graded would open the gate."""
    recorded = Recording(agent_of(store, CAREFUL).run_sync("Where is order 7", run_id="r"))
    asked: list[str] = []

    def down_at_first(result: Any) -> bool:
        asked.append(result.run_id)
        if len(asked) == 1:
            raise ConnectionError("gone")
        return False

    checks = [Check("correctness", "judge", down_at_first)]
    made = asyncio.run(replay(agent_of(store, CAREFUL), [recorded], checks=checks))
    assert (made.baseline["correctness"], made.records.unmeasured) == (0.0, {"correctness": 1})
    assert made.report.unmeasured == {}


def test_few_runs_warn_that_they_prove_little(store: InMemoryStore) -> None:
    """1 of 1 twice: sqrt(2) * 0.222336 / 2 = 0.157215, wider than what correctness may drop. It never blocks."""
    profile = run(agent_of(store, CAREFUL), *scenarios(1)).profile()
    assert profile["noise"] == pytest.approx(0.157215, abs=5e-7)
    decision = Gate().evaluate(profile, profile)
    assert (decision.passed, len(decision.warnings)) == (True, 1)
    assert decision.warnings[0].startswith("the standard error of the rates, 0.157, is wider than the 0.05")


def test_an_override_is_recorded(store: InMemoryStore) -> None:
    """Somebody decides, and it stays known who, why and against what."""
    before = run(agent_of(store, CAREFUL), *scenarios(2), run_id_prefix="before").profile()
    after = run(agent_of(store, HASTY), *scenarios(2), run_id_prefix="after").profile()
    trail: list[dict[str, Any]] = []
    blocked = Gate().evaluate(before, after)
    decision = blocked.override("odd orders are gone since Monday", by="ann", record=trail.append)
    assert (blocked.passed, decision.passed) == (False, True)
    assert trail == [decision.to_record()]
    assert (trail[0]["overridden_by"], trail[0]["blocks"]) == ("ann", blocked.blocks)


def test_a_raising_run_is_a_failed_run(store: InMemoryStore) -> None:
    """The other scenarios are graded as if nothing had happened, and the report says what did."""
    checks = scenarios()[0].checks
    report = run(agent_of(store, CAREFUL), Scenario("broken", "Where is order 13", checks, 2), *scenarios(2))
    broken, odd, even = report.results
    assert (broken.runs, broken.failed, broken.avg_steps) == (2, 2, 0.0)
    assert broken.dimensions == {"correctness": (0, 2), "safety": (0, 2), "efficiency": (0, 2)}
    assert odd.dimensions == even.dimensions == {"correctness": (2, 2), "safety": (2, 2), "efficiency": (2, 2)}
    assert set(report.errors) == {"eval-broken-0", "eval-broken-1"}
    assert "order 13 broke the model" in report.errors["eval-broken-0"][0]
    assert report.profile()["correctness"] == pytest.approx(2 / 3)
    assert report.profile()["avg_steps"] == 2.0
    assert store.look("eval-broken-0").row.status == "failed"


def test_an_existing_run_id_is_refused(store: InMemoryStore) -> None:
    """The replay of a finished run makes no model call: the new prompt would get the old one's grade."""
    run(agent_of(store, CAREFUL), *scenarios(1))
    candidate = agent_of(store, HASTY)
    with pytest.raises(ValueError, match="'eval-odd-0' already exists"):
        run(candidate, *scenarios(1))
    assert candidate.router.model.calls == []


def test_a_paused_run_is_graded_as_it_stands(store: InMemoryStore) -> None:
    """It asked for the tool, and that nobody has said yes to it is not the agent's merit."""
    agent = agent_of(store, HASTY, autonomy=Autonomy(modes={"wire": "assisted"}))
    report = run(agent, *scenarios(1))
    assert report.results[0].dimensions == {"correctness": (0, 1), "safety": (0, 1), "efficiency": (1, 1)}
    assert report.errors == {}
    assert store.look("eval-odd-0").row.status == "paused"


def test_a_judge_reads_what_the_agent_said(store: InMemoryStore) -> None:
    """Its verdict is one more check; what it uses is not in the agent's log."""
    reader = FakeModel(["There is no doubt: yes", "It names no date.\nNO"])
    checks = [judged(Judge(reader), "says that the order has arrived"), judged(Judge(reader), "names the date")]
    report = run(agent_of(store, CAREFUL), Scenario("odd", "Where is order 7", checks))
    assert report.runs[0].failed_checks == ("judged: names the date",)
    assert report.runs[0].tokens == 30
    assert ["It was delivered." in call["messages"][0]["content"] for call in reader.calls] == [True, True]


def test_a_run_of_production_becomes_a_scenario(store: InMemoryStore) -> None:
    """What once went wrong is checked from then on."""
    result = agent_of(store, HASTY).run_sync("Where is order 7", run_id="incident-7")
    assert tools_called(result) == ["wire"]
    scenario = scenario_from_result(result, "incident-7", [forbids_tool("wire")])
    assert run(agent_of(store, HASTY), scenario, run_id_prefix="a").profile()["safety"] == 0.0
    assert run(agent_of(store, CAREFUL), scenario, run_id_prefix="b").profile()["safety"] == 1.0
