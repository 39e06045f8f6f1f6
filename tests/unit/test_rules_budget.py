"""Whether a run may afford its next model call: the limits of both kinds, and the worst case worked by hand."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drangue_client.budget import Budget, Spent
from drangue_client.errors import PermanentError, RateLimitError, TransientError
from drangue_client.folding import fold
from drangue_client.messages import ModelResponse
from drangue_client.run import Run
from drangue_client.store import InMemoryStore
from drangue_client.terms import Terms, ToolTerms
from drangue_worker import Agent, FallbackModel
from drangue_worker.rules.budget import EXHAUSTED, Reserve, reserve, stop
from drangue_worker.testing.fake import FakeModel
from tests.unit.made_logs import PRICES, SCHEMA, by_chance, decided, log_of, started

USD = {"fake": {"input": 4.0, "output": 20.0}}  # so that a cache write is 5


def run(budget: Budget | None, tokens: int = 0, usd: float = 0.0, unpriced: str | None = None, **terms: Any) -> Run:
    """A run with an empty conversation that has used so much."""
    recorded = Terms(models=("fake",), output_ceiling=100, budget=budget, **terms)
    return Run(seq=0, terms=recorded, turn=1, spent=Spent(tokens, usd, unpriced))


def reserved(one: Run) -> Reserve:
    assert one.terms is not None
    assert one.terms.budget is not None
    return reserve(one, one.terms, one.terms.budget)


# Soft limits


@pytest.mark.parametrize(
    "one", [Run(), run(None, tokens=10**9), run(Budget(), tokens=10**9)], ids=["new", "none", "open"]
)
def test_a_run_without_a_limit_is_never_stopped(one: Run) -> None:
    """Most runs have none."""
    assert stop(one) is None


@pytest.mark.parametrize(
    ("budget", "tokens", "usd", "stopped"),
    [
        (Budget(max_tokens=100), 99, 0.0, False),
        (Budget(max_tokens=100), 100, 0.0, True),
        (Budget(max_tokens=100), 5000, 0.0, True),
        (Budget(max_tokens=0), 0, 0.0, True),
        (Budget(max_usd=0.5, prices=PRICES), 10**9, 0.49, False),
        (Budget(max_usd=0.5, prices=PRICES), 0, 0.5, True),
        (Budget(max_usd=0, prices=PRICES), 0, 0.0, True),
        (Budget(max_tokens=100, max_usd=0.5, prices=PRICES), 100, 0.0, True),
        (Budget(max_tokens=100, max_usd=0.5, prices=PRICES), 0, 0.5, True),
        (Budget(max_tokens=100, max_usd=0.5, prices=PRICES), 99, 0.49, False),
    ],
)
def test_a_soft_limit_stops_once_it_is_reached(budget: Budget, tokens: int, usd: float, stopped: bool) -> None:
    """Not at the call that reaches it, and not one later than that."""
    assert stop(run(budget, tokens, usd)) == (EXHAUSTED if stopped else None)


def test_a_soft_limit_looks_at_no_worst_case() -> None:
    """It may be overshot by its last call, and a lost attempt is not charged to it."""
    assert stop(run(Budget(max_tokens=1)), lost=5) is None


def test_dollars_that_cannot_be_counted_stop_a_run_that_limits_them() -> None:
    """Going on blind is how a limit of a dollar becomes a bill of a thousand."""
    budget = Budget(max_usd=1.0, prices=PRICES)
    assert stop(run(budget, unpriced="mystery")) == (
        "(stopped: budget unenforceable: no price for model 'mystery'. Add it to prices.)"
    )


def test_a_limit_of_tokens_that_is_reached_needs_no_price_to_be_seen() -> None:
    """The plainer reason is told, and it is the true one."""
    budget = Budget(max_tokens=10, max_usd=1.0, prices=PRICES)
    assert stop(run(budget, tokens=10, unpriced="mystery")) == EXHAUSTED


def test_an_unpriced_model_is_no_matter_where_only_tokens_are_limited() -> None:
    """Prices may be given for the bill alone."""
    assert stop(run(Budget(max_tokens=10, prices=PRICES), unpriced="mystery")) is None


# The worst case


def test_the_least_a_call_can_reserve_is_the_providers_own_frame_and_the_ceiling() -> None:
    """1000 for what a provider adds by itself, 100 for the answer; 1000 at 5 and 100 at 20 dollars per million."""
    one = run(Budget(max_usd=1.0, prices=USD, hard=True))
    assert reserved(one) == Reserve(1100, pytest.approx(0.007))


def test_every_byte_of_the_instructions_is_a_token() -> None:
    """No tokenizer makes more of them; of `é` it may make two."""
    budget = Budget(max_tokens=1, hard=True)
    assert reserved(run(budget, instructions="Sé breve.")) == Reserve(1100 + 10, 0.0)


def test_every_byte_of_a_tool_as_it_is_offered_is_a_token() -> None:
    """Tools are sent with every prompt, whether they are called or not."""
    tool = ToolTerms("q", schema={"type": "object"}, description="Reads.")
    offered = {"name": "read", "description": "Reads.", "input_schema": {"type": "object"}}
    one = run(Budget(max_tokens=1, hard=True), tools={"read": tool})
    assert reserved(one) == Reserve(1100 + len(json.dumps(offered)) + 32, 0.0)


def test_the_form_of_the_answer_is_sent_as_a_tool_is() -> None:
    """A schema of ten thousand bytes is ten thousand tokens."""
    one = run(Budget(max_tokens=1, hard=True), output_schema=SCHEMA)
    assert reserved(one).tokens > 1100 + len(json.dumps(SCHEMA)) + 32


def test_every_byte_of_the_conversation_is_a_token() -> None:
    """It is sent whole, again, with every call."""
    terms = Terms(models=("fake",), output_ceiling=100, budget=Budget(max_tokens=1, hard=True))
    first = fold(log_of(started(terms, "hello")))
    assert reserved(first) == Reserve(1100 + len('{"role": "user", "content": "hello"}') + 16, 0.0)
    assert reserved(fold(log_of(started(terms, "hello"), decided(1, text="x")))).tokens > reserved(first).tokens


def test_what_a_models_own_settings_add_to_a_prompt_is_reserved_for() -> None:
    """A schema or a prefix that every request of it carries is in no message."""
    one = run(Budget(max_tokens=1, hard=True), prompt_overhead=70, asked_per_step=2)
    assert reserved(one) == Reserve(2 * 1170, 0.0)


def test_a_step_that_may_ask_several_models_reserves_for_all_of_them() -> None:
    """A fallback asks the second after the first one has been paid for."""
    one = run(Budget(max_usd=1.0, prices=USD, hard=True), asked_per_step=3)
    assert reserved(one) == Reserve(3300, pytest.approx(0.021))


def test_the_dearest_model_that_may_be_asked_is_reserved_for() -> None:
    """A router chooses after the budget has let the step pass."""
    prices = {**USD, "dear": {"input": 8.0, "output": 40.0}}
    one = run(Budget(max_usd=1.0, prices=prices, hard=True))
    assert one.terms is not None
    dear = replace(one, terms=replace(one.terms, models=("fake", "dear")))
    assert reserved(dear).usd == pytest.approx(0.014)


# Hard limits


@pytest.mark.parametrize(
    ("budget", "tokens", "usd", "stopped"),
    [
        (Budget(max_tokens=1100, hard=True), 0, 0.0, False),
        (Budget(max_tokens=1099, hard=True), 0, 0.0, True),
        (Budget(max_tokens=2000, hard=True), 900, 0.0, False),
        (Budget(max_tokens=2000, hard=True), 901, 0.0, True),
        (Budget(max_usd=0.008, prices=USD, hard=True), 10**9, 0.0009, False),
        (Budget(max_usd=0.008, prices=USD, hard=True), 0, 0.0011, True),
        (Budget(max_tokens=1100, max_usd=0.006, prices=USD, hard=True), 0, 0.0, True),
        (Budget(max_tokens=1099, max_usd=1.0, prices=USD, hard=True), 0, 0.0, True),
    ],
)
def test_a_hard_limit_lets_a_call_pass_only_if_its_worst_case_fits(
    budget: Budget, tokens: int, usd: float, stopped: bool
) -> None:
    """To the last token: what fits exactly is within the limit."""
    assert stop(run(budget, tokens, usd)) == (EXHAUSTED if stopped else None)


@pytest.mark.parametrize(
    ("limit", "lost", "stopped"), [(3300, 2, False), (3299, 2, True), (3300, 3, True), (1100, 0, False)]
)
def test_an_attempt_whose_answer_never_came_is_reserved_for_again(limit: int, lost: int, stopped: bool) -> None:
    """The provider may have answered, and billed, and the connection broken."""
    assert stop(run(Budget(max_tokens=limit, hard=True)), lost) == (EXHAUSTED if stopped else None)


@by_chance
@given(
    st.integers(0, 20_000),
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1), st.floats(0, 1)), max_size=8),
)
def test_no_series_of_calls_gets_past_a_hard_limit(limit: int, calls: list[tuple[int, float, float]]) -> None:
    """Whatever part of its worst case each call uses, and however many attempts are lost on the way."""
    budget = Budget(max_tokens=limit, max_usd=limit * 6e-6, prices=USD, hard=True)
    one = run(budget)
    for lost, of_prompt, of_answer in calls:
        if stop(one, lost):
            continue
        most = reserved(one)
        spent = one.spent.plus_lost({"tokens": lost * most.tokens, "usd": lost * most.usd})
        usage = {"input_tokens": int(1000 * of_prompt), "output_tokens": int(100 * of_answer)}
        one = replace(one, spent=spent.plus(usage, "fake", USD))
        assert one.spent.tokens <= limit
        assert one.spent.usd <= limit * 6e-6 * (1 + 1e-9)


class Silent(FakeModel):
    """A model whose answers never come."""

    max_tokens = 100

    async def generate(self, **asked: Any) -> Any:
        await super().generate(**asked)
        raise TransientError("the connection broke")


@pytest.mark.parametrize("retries", [0, 2])
def test_resuming_a_failed_run_does_not_get_past_a_hard_limit(retries: int) -> None:
    """Each resume asked the model once more for nothing, on a budget that had room for one call."""
    model = Silent()
    agent = Agent(model, budget=Budget(max_tokens=1500, hard=True), model_retries=retries, store=InMemoryStore())

    async def insist() -> str:
        for _ in range(3):
            try:
                return (await agent.run(run_id="r")).output
            except TransientError:
                continue
        return "failed three times"

    assert asyncio.run(insist()) == EXHAUSTED
    assert len(model.calls) == 1


class Refusing(FakeModel):
    """A model that fails in a way of its own."""

    max_tokens = 100

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def generate(self, **asked: Any) -> Any:
        await super().generate(**asked)
        raise self.error


def test_a_rate_limit_behind_a_failure_that_was_paid_for_is_no_free_attempt() -> None:
    """The first model answered something unusable, the second was busy; the step was tried again for nothing."""
    first, second = Refusing(PermanentError("garbled")), Refusing(RateLimitError(retry_after=0))
    agent = Agent(FallbackModel(first, second), budget=Budget(max_tokens=2500, hard=True), model_retries=5)
    assert agent.run_sync("hi").output == EXHAUSTED
    assert len(first.calls) == 1


@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": 0, "output_tokens": 0}, {"note": "x"}], ids=str)
def test_a_model_that_does_not_say_what_it_used_trips_the_limit_all_the_same(usage: dict[str, int] | None) -> None:
    """Many servers behind an OpenAI-compatible address report nothing."""
    model = FakeModel([ModelResponse(text="x" * 400, usage=usage)])
    result = Agent(model, budget=Budget(max_tokens=50)).run_sync("hello")
    assert result.usage_estimated
    assert result.run.spent.tokens > 50
