"""A budget holds whatever a provider reports, leaves out or bills twice; a hard one is never overshot by a token."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import PermanentError, RateLimitError, RunFailedError, TransientError
from drangue_client.store.values import Ask
from drangue_worker import Agent, Budget, FallbackModel, ModelResponse, OpenAIModel, ToolCall, tool
from drangue_worker.engine import perform
from drangue_worker.testing.provider import Provider, ProviderCall, Reply
from tests.contract.log_scenes import elapse
from tests.kit.inline import PLACES, RUN, Scripted, calls, leave, opened

CEILING = 1000
PROMPT = 1500  # more than what a hard budget reserves for the prompts of these tests, and less than a half more


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from opened(request.param, request, tmp_path)


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drangue_worker.engine.model_step.MODEL_BACKOFF_S", 0.0)


@tool
def echo(text: str = "") -> str:
    """Gives back what it was given, größer."""
    return text * 2


class Stuck(Scripted):
    """A model that never answers; `asked` is set when it is asked."""

    def __init__(self, ceiling: int) -> None:
        super().__init__(ceiling=ceiling)
        self.asked = asyncio.Event()

    async def generate(self, **given: Any) -> ModelResponse:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")


class Bill:
    """A provider at its dearest within what was asked of it: every byte it is sent is a token, and every call is
    billed with its whole output ceiling, also those whose answer never arrives."""

    def __init__(self, script: Any) -> None:
        self.tokens = 0
        self._script = script

    def __call__(self, call: ProviderCall) -> Reply:
        reply: Reply = self._script(call)
        if reply.status == 429:
            return reply  # who refuses to do anything bills nothing
        said = [call.system, *(json.dumps(one, ensure_ascii=False) for one in call.body.get("tools") or ())]
        for message in call.body["messages"]:
            said += [message.get("content") or ""] if message["role"] != "system" else []
            for asked in message.get("tool_calls") or ():
                said += [asked["id"], asked["function"]["name"], asked["function"]["arguments"]]
        prompt = sum(len(text.encode()) for text in said)
        ceiling = int(call.body["max_tokens"])
        self.tokens += prompt + ceiling
        return Reply(
            reply.text,
            reply.tool_calls,
            input_tokens=prompt,
            output_tokens=ceiling,
            status=reply.status,
            hang_up=reply.hang_up,
        )


def model_of(provider: Provider, name: str = "scripted", ceiling: int = CEILING) -> OpenAIModel:
    return OpenAIModel(name, base_url=provider.base_url, api_key="k", max_tokens=ceiling)


def insist(agent: Agent, times: int, text: str | None = "go", **options: Any) -> Any:
    """Run, and resume after each failure, so many times; the result, if there is one in the end."""
    for attempt in range(times):
        with suppress(TransientError, PermanentError):
            return agent.run_sync(text, run_id=RUN, **options) if attempt == 0 else agent.run_sync(run_id=RUN)
    return None


@pytest.mark.parametrize("seed", range(10))
def test_a_hard_budget_is_never_overshot_by_any_course_of_things(seed: int) -> None:
    """Turns, siblings, corrections, other alphabets, and calls that fail after they were billed."""
    chance = random.Random(seed)
    letters = chance.choice(["a", "ü", '"\\', "\n"])

    def script(call: ProviderCall) -> Reply:
        kind = chance.random()
        if kind < 0.15:
            return Reply(hang_up=True)
        if kind < 0.25:
            return Reply(status=chance.choice([429, 500]), headers={"retry-after": "0"})
        if kind < 0.7:
            asked = tuple(("echo", {"text": letters * chance.randint(0, 80)}) for _ in range(chance.randint(1, 4)))
            return Reply(letters * chance.randint(0, 50), asked)
        return Reply(letters * chance.randint(0, 100))

    limit = chance.choice([3000, 10_000, 40_000])
    schema = chance.choice([None, {"type": "object", "required": ["n"]}])
    bill = Bill(script)
    with Provider(bill) as provider:
        budget = Budget(max_tokens=limit, hard=True)
        agent = Agent(model_of(provider, ceiling=200), [echo], letters * 100, budget=budget, output_schema=schema)
        with suppress(TransientError, RateLimitError):  # retries end too
            for turn in range(8):
                agent.run_sync(letters * 10, run_id=RUN, turn_id=f"t{turn}")
    assert 0 < bill.tokens <= limit


@pytest.mark.parametrize(
    "reply", [Reply(hang_up=True), Reply(status=500), Reply(status=400)], ids=["cut", "500", "400"]
)
@pytest.mark.parametrize("retries", [0, 1])
def test_resuming_a_failed_run_does_not_get_past_a_hard_budget(store: Any, reply: Reply, retries: int) -> None:
    """Whoever presses resume again and again pays for each of the calls whose answer did not come."""
    bill = Bill(lambda call: reply)
    with Provider(bill) as provider:
        budget = Budget(max_tokens=8000, hard=True)
        agent = Agent(model_of(provider), store=store, budget=budget, model_retries=retries)
        insist(agent, 12)
    assert bill.tokens <= 8000


@pytest.mark.parametrize(("on_transient", "failing"), [(True, Reply(hang_up=True)), (False, Reply(status=400))])
def test_the_models_that_failed_before_the_one_that_answered_count_against_a_hard_budget(
    on_transient: bool, failing: Reply
) -> None:
    """Each step asks two models, and both may bill."""
    bill = Bill(lambda call: failing if call.model == "first" else Reply(tool_calls=(("echo", {}),)))
    with Provider(bill) as provider:
        model = FallbackModel(*(model_of(provider, name) for name in ("first", "second")), on_transient=on_transient)
        agent = Agent(model, [echo], budget=Budget(max_tokens=30_000, hard=True), max_steps=100)
        assert agent.run_sync("go").reason == "budget"
    assert bill.tokens <= 30_000


@pytest.mark.parametrize("letter", ["ü", "語"])
def test_arguments_in_any_alphabet_fit_a_hard_budget(letter: str) -> None:
    """What is sent is counted as it is sent."""
    bill = Bill(lambda call: Reply(tool_calls=(("echo", {"text": letter * 5000}),)))
    with Provider(bill) as provider:
        for limit in range(30_000, 150_000, 10_000):
            bill.tokens = 0
            agent = Agent(model_of(provider), [echo], budget=Budget(max_tokens=limit, hard=True), max_steps=100)
            assert agent.run_sync("go").reason == "budget"
            assert bill.tokens <= limit


def test_calls_that_were_given_up_count_against_a_hard_budget(store: Any) -> None:
    """A caller that goes away in the middle of a call leaves a bill."""
    budget = Budget(max_tokens=3 * (PROMPT + CEILING), hard=True)
    for _ in range(3):
        model = Stuck(ceiling=CEILING)
        leave(Agent(model, store=store, budget=budget), model.asked)
    after = Scripted("one too many", ceiling=CEILING)
    result = Agent(after, store=store, budget=budget).run_sync(run_id=RUN)
    assert (result.reason, after.calls) == ("budget", [])


def test_calls_of_workers_that_died_count_against_a_hard_budget(store: Any) -> None:
    """Nobody knows whether they made theirs."""
    budget = Budget(max_tokens=3 * (PROMPT + CEILING), hard=True)
    model = Stuck(ceiling=CEILING)
    leave(Agent(model, store=store, budget=budget), model.asked)
    for number in range(2):
        (claimed,) = store.claim([Ask(RUN, 1, f"token {number}", "a worker that dies", "inline")], 15)
        assert claimed is not None
        elapse(store, 60)
    after = Scripted("one too many", ceiling=CEILING)
    result = Agent(after, store=store, budget=budget).run_sync(run_id=RUN)
    assert (result.reason, after.calls) == ("budget", [])


def test_a_step_that_took_down_its_workers_counts_against_a_hard_budget(store: Any) -> None:
    """It fails its run; whoever resumes that has paid for the calls of them all."""
    budget = Budget(max_tokens=5 * (PROMPT + CEILING), hard=True)
    model = Stuck(ceiling=CEILING)
    leave(Agent(model, store=store, budget=budget), model.asked)
    for number in range(5):
        assert store.claim([Ask(RUN, 1, f"token {number}", "a worker that dies", "inline")], 15)[0] is not None
        elapse(store, 60)
    after = Scripted("one too many", ceiling=CEILING)
    with pytest.raises(RunFailedError, match="took down 5 workers"):
        Agent(after, store=store, budget=budget).run_sync(run_id=RUN)
    result = Agent(after, store=store, budget=budget).run_sync(run_id=RUN)
    assert (result.reason, after.calls) == ("budget", [])


def test_an_answer_that_could_not_be_recorded_counts_against_a_hard_budget(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paid for all the same."""
    move_on, broken = perform.move_on, [True]

    def break_once(*given: Any, **more: Any) -> Any:
        if broken.pop() if broken else False:
            raise RuntimeError("nobody foresaw it")
        return move_on(*given, **more)

    monkeypatch.setattr(perform, "move_on", break_once)
    model = Scripted("paid for", ceiling=CEILING)
    agent = Agent(model, store=store, budget=Budget(max_tokens=PROMPT + CEILING, hard=True))
    with pytest.raises(RuntimeError, match="nobody foresaw it"):
        agent.run_sync("go", run_id=RUN)
    assert (agent.run_sync(run_id=RUN).reason, len(model.calls)) == ("budget", 1)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(
    "usage",
    [None, {}, {"total_tokens": 900}, {"input_tokens": "500"}, {"output_tokens": None}, {"input_tokens": -900}, [500]],
    ids=repr,
)
def test_usage_that_says_nothing_is_estimated_and_marked(usage: Any, hard: bool) -> None:
    """A server that leaves the counts out, or gives what is no count, is not free."""
    asking = ModelResponse(tool_calls=[ToolCall("a", "echo", {"text": "x" * 400})], usage=usage)
    budget = Budget(max_tokens=5000, hard=hard)
    result = Agent(Scripted(asking, ceiling=100), [echo], budget=budget, max_steps=100).run_sync("go")
    assert (result.reason, result.usage_estimated) == ("budget", True)
    assert result.steps < 20


def test_a_soft_budget_is_overshot_by_one_call_at_most() -> None:
    """It stops what comes after, over all turns."""
    dear = calls(("echo", {}), usage={"input_tokens": 900_000, "output_tokens": 100})
    model = Scripted(dear)
    agent = Agent(model, [echo], budget=Budget(max_tokens=1))
    for turn in range(3):
        result = agent.run_sync(f"turn {turn}", run_id=RUN)
        assert (result.status, result.reason, result.usage["input_tokens"]) == ("completed", "budget", 900_000)
    assert len(model.calls) == 1


@pytest.mark.parametrize(
    "budget",
    [
        Budget(max_tokens=0),
        Budget(max_tokens=0, hard=True),
        Budget(max_usd=0, prices={"fake": {"input": 1}}),
        Budget(max_usd=0.0, prices={"fake": {"input": 1, "output": 1}}, hard=True),
    ],
    ids=repr,
)
def test_a_budget_of_nothing_buys_nothing(budget: Budget) -> None:
    """Not even the first call, and a machine can tell why."""
    model = Scripted("never", ceiling=100)
    result = Agent(model, budget=budget).run_sync("go")
    assert (model.calls, result.reason, result.output) == ([], "budget", "(stopped: budget exhausted)")
