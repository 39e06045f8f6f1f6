"""Budgets: what can be enforced, and the arithmetic of what was used, worked by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drangue_client.budget import Budget, Spent, checked_prices, cost_usd, spent, worst_usd
from drangue_client.events import Event
from drangue_client.folding import fold
from tests.unit.made_logs import PRICES, by_chance, decided, finished, log_of, said, started, turns

# USD per million tokens: cache writes are then 3.75, cache reads 0.3.
USAGE = {
    "input_tokens": 1000,
    "output_tokens": 200,
    "cache_creation_input_tokens": 400,
    "cache_read_input_tokens": 10_000,
}
HUGE = 10**309
USED = log_of(started(), decided(1, text="x", usage=USAGE))


# Construction


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"max_tokens": 1.5}, TypeError, "max_tokens is 1.5; it must be a whole number"),
        ({"max_tokens": True}, TypeError, "max_tokens is True"),
        ({"max_tokens": "10"}, TypeError, "max_tokens is '10'"),
        ({"max_tokens": -1}, ValueError, "max_tokens is -1; it must be at least 0"),
        ({"max_usd": "1", "prices": PRICES}, TypeError, "max_usd is '1'"),
        ({"max_usd": True, "prices": PRICES}, TypeError, "max_usd is True"),
        ({"max_usd": math.nan, "prices": PRICES}, ValueError, "max_usd is nan"),
        ({"max_usd": math.inf, "prices": PRICES}, ValueError, "max_usd is inf"),
        ({"max_usd": -0.01, "prices": PRICES}, ValueError, "max_usd is -0.01"),
        ({"max_usd": 1.0}, ValueError, "price table"),
        ({"max_usd": 0.0}, ValueError, "price table"),
        ({"max_usd": 1.0, "prices": {}}, ValueError, "price table"),
        ({"hard": True}, ValueError, "hard=True has nothing to hold"),
        ({"hard": True, "prices": PRICES}, ValueError, "hard=True has nothing to hold"),
        ({"prices": [("fake", 3)]}, TypeError, "prices is "),
        ({"prices": {"fake": {"inptu": 3}}}, ValueError, "names 'inptu'"),
        ({"max_tokens": 1, "hard": "no"}, TypeError, "hard is 'no'"),
        ({"max_tokens": 1, "hard": 1}, TypeError, "hard is 1"),
        pytest.param({"max_usd": HUGE, "prices": PRICES}, ValueError, "max_usd is 1000", id="more than any float"),
    ],
    ids=str,
)
def test_a_limit_that_cannot_be_enforced_is_refused_by_name(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Where the agent is written; a limit that silently held nothing once spent nine hundred thousand tokens."""
    with pytest.raises(error, match=message):
        Budget(**given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"max_tokens": 0},
        {"max_usd": 0, "prices": PRICES},
        {"max_tokens": 10, "max_usd": 0.5, "prices": PRICES, "hard": True},
        {"prices": {"free": {}}},
    ],
    ids=str,
)
def test_a_budget_survives_being_recorded(given: dict[str, Any]) -> None:
    """It rules the run to its end, read back by whichever program comes then."""
    budget = Budget(**given)
    assert Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget


def test_a_budget_does_not_change_with_the_table_it_was_made_from() -> None:
    """What was checked must be what is charged."""
    prices = {"fake": {"input": 3.0}}
    budget = Budget(max_usd=1.0, prices=prices)
    prices["fake"]["input"] = -1.0
    prices["other"] = {}
    assert budget.prices == {"fake": {"input": 3.0}}


# Prices


@pytest.mark.parametrize(
    ("prices", "error", "message"),
    [
        (None, TypeError, "prices is None"),
        ({"fake": 3}, TypeError, r"prices\['fake'\] is 3"),
        ({"fake": {"output": "15"}}, TypeError, r"prices\['fake'\]\['output'\] is '15'"),
        ({"fake": {"output": -1}}, ValueError, r"prices\['fake'\]\['output'\] is -1"),
        ({"fake": {"output": math.nan}}, ValueError, "is nan"),
        ({"fake": {"output": None}}, TypeError, "is None"),
        ({"fake": {"output": True}}, TypeError, "is True"),
        ({"fake": {"cached": 1}}, ValueError, "it can name input, output, cache_write, cache_read"),
    ],
    ids=str,
)
def test_a_price_that_cannot_be_charged_is_named(prices: Any, error: type[Exception], message: str) -> None:
    """A misspelt kind is free, and a run without a bill looks cheap."""
    with pytest.raises(error, match=message):
        checked_prices(prices)


def test_a_checked_table_is_a_copy_of_its_own() -> None:
    """It is recorded with the run."""
    prices = {"fake": {"input": 3, "output": 15.5, "cache_write": 0, "cache_read": 1e-3}}
    checked = checked_prices(prices)
    assert checked == prices
    assert (checked is prices, checked["fake"] is prices["fake"]) == (False, False)


# What a call costs


@pytest.mark.parametrize(
    ("price", "usd"),
    [
        ({"input": 3.0, "output": 15.0}, 0.0105),  # 3000 + 3000 + 400 * 3.75 + 10_000 * 0.3
        ({"input": 3.0, "output": 15.0, "cache_write": 6.0, "cache_read": 0.0}, 0.0084),  # 3000 + 3000 + 2400
        ({"input": 3.0}, 0.0075),  # 3000 + 1500 + 3000
        ({"output": 15.0}, 0.003),
        ({"cache_read": 1.0}, 0.01),
        ({}, 0.0),
    ],
    ids=str,
)
def test_a_call_is_billed_by_kind_of_token(price: dict[str, float], usd: float) -> None:
    """Cached tokens have prices of their own; left out, they are the providers' usual multiples of the input's."""
    assert Spent().plus(USAGE, "m", {"m": price}) == Spent(11_600, pytest.approx(usd))
    assert cost_usd([*USED], {"fake": price}) == pytest.approx(usd)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, 0),
        ({}, 0),
        ("much", 0),
        ({"input_tokens": 3}, 3),
        ({"input_tokens": 3, "output_tokens": 4, "reasoning_tokens": 90, "note": "x"}, 7),
        ({"input_tokens": -5, "output_tokens": 4}, 4),
        ({"input_tokens": 2.2, "output_tokens": None}, 3),
        ({"input_tokens": True, "output_tokens": "4"}, 0),
        ({"input_tokens": "nan", "output_tokens": math.inf}, 0),
        pytest.param({"input_tokens": HUGE}, HUGE, id="more than any float"),
    ],
    ids=str,
)
def test_whatever_a_provider_reports_can_be_counted(usage: Any, tokens: int) -> None:
    """It is folded with every step for as long as the run lives: what is no count must not stop it, nor refund it."""
    assert Spent().plus(usage, "fake", None) == Spent(tokens)


def test_the_first_model_without_a_price_is_remembered() -> None:
    """Dollars cannot be limited any more, and somebody will ask because of whom."""
    total = Spent()
    for model in ("fake", "mystery", "fake", "riddle"):
        total = total.plus({"input_tokens": 1_000_000}, model, PRICES)
    assert total == Spent(4_000_000, 6.0, "mystery")


def test_a_model_without_a_price_that_used_nothing_needs_none() -> None:
    """A fake in a test, a cached answer of a proxy."""
    assert Spent().plus({"input_tokens": 0}, "mystery", PRICES).unpriced is None
    assert Spent().plus(None, "mystery", PRICES).unpriced is None
    assert Spent().plus({"input_tokens": 1}, "mystery", None).unpriced is None


def test_a_model_without_a_name_can_be_priced_by_the_name_it_is_reported_under() -> None:
    """`no price for model 'None'. Add it to prices.` must be advice that helps."""
    total = Spent().plus({"input_tokens": 1}, None, PRICES)
    assert total.unpriced is not None
    assert Spent().plus({"input_tokens": 1}, None, {total.unpriced: {"input": 1.0}}).unpriced is None


def test_what_was_lost_counts_as_used() -> None:
    """An answer that never came may have been billed."""
    assert Spent(10, 0.5, "x").plus_lost({"tokens": 7, "usd": 0.25}) == Spent(17, 0.75, "x")


@pytest.mark.parametrize(
    ("price", "usd"),
    [
        ({"input": 3.0, "output": 15.0}, 0.00525),  # 1000 at 3.75, the cache's price of writing, and 100 at 15
        ({"input": 3.0, "output": 15.0, "cache_write": 0.0}, 0.0045),  # 1000 at 3
        ({"input": 1.0, "cache_read": 9.0}, 0.009),
        ({"output": 15.0}, 0.0015),
        ({}, 0.0),
    ],
    ids=str,
)
def test_the_worst_case_takes_the_dearest_price_there_is(price: dict[str, float], usd: float) -> None:
    """Whether a prompt is written to a cache is the provider's to decide, after the budget has let it pass."""
    assert worst_usd(1000, 100, price) == pytest.approx(usd)


counts = st.integers(0, 10**6)


@by_chance
@given(counts, counts, counts, counts, st.dictionaries(st.sampled_from(["input", "cache_write"]), st.floats(0, 99)))
def test_no_call_costs_more_than_its_worst_case(
    fresh: int, written: int, read: int, output: int, price: dict[str, float]
) -> None:
    """However its prompt is split between fresh, written and cached tokens."""
    usage = {
        "input_tokens": fresh,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": output,
    }
    usd = Spent().plus(usage, "m", {"m": price}).usd
    assert usd <= worst_usd(fresh + written + read, output, price) * (1 + 1e-9)


# Logs


def test_a_budget_reads_off_a_log_what_it_used_and_what_is_left() -> None:
    """Over all turns: what an operator looks at before saying more to a run."""
    log = log_of(started(), decided(1, text="x", usage=USAGE), finished("x"), said(), decided(2, usage=USAGE))
    budget = Budget(max_tokens=23_201, max_usd=0.03, prices=PRICES)
    assert (budget.tokens(log), budget.remaining_tokens(log)) == (23_200, 1)
    assert budget.usd(log) == pytest.approx(0.021)
    assert not budget.exceeded(iter(log))


@pytest.mark.parametrize(
    ("given", "exceeded"),
    [
        ({"max_tokens": 11_601}, False),
        ({"max_tokens": 11_600}, True),
        ({"max_tokens": 0}, True),
        ({"max_usd": 0.0106, "prices": PRICES}, False),
        ({"max_usd": 0.0104, "prices": PRICES}, True),
        ({"max_usd": 9.0, "max_tokens": 1, "prices": PRICES}, True),
        ({}, False),
    ],
    ids=str,
)
def test_a_limit_that_is_reached_is_exceeded(given: dict[str, Any], exceeded: bool) -> None:
    """The next call would only go further beyond it."""
    assert Budget(**given).exceeded(USED) is exceeded


def test_nothing_is_left_of_a_limit_that_was_overshot() -> None:
    """Less than nothing would be a number nobody asked for; without a limit there is none to give."""
    assert Budget(max_tokens=5).remaining_tokens(USED) == 0
    assert Budget(max_usd=1.0, prices=PRICES).remaining_tokens(USED) is None


@pytest.mark.parametrize(
    "budget", [Budget(), Budget(max_usd=1.0, prices={"other": {}})], ids=["no prices", "another's"]
)
def test_dollars_that_cannot_be_counted_are_an_error(budget: Budget) -> None:
    """Zero would read as free."""
    with pytest.raises(ValueError, match="no price for model 'fake'"):
        budget.usd(USED)


@by_chance
@given(turns())
def test_an_operator_counts_as_the_rules_do(log: list[Event]) -> None:
    """Whoever asks why a run stopped must find the number it stopped at."""
    for event in log:
        event.payload.pop("lost", None)
    assert fold(log).spent == spent(log, PRICES)


def test_an_operator_counts_what_was_lost_as_the_rules_do() -> None:
    """A run that stopped because of lost answers otherwise looks as if it had stopped for nothing."""
    log = log_of(started(), decided(1, text="x", usage=USAGE, lost={"tokens": 100, "usd": 0.5}))
    budget = Budget(max_tokens=11_700, hard=True, prices=PRICES)
    soft = Budget(max_tokens=11_700, prices=PRICES)
    assert (budget.tokens(log), soft.usd(log)) == (fold(log).spent.tokens, pytest.approx(0.5105))
    assert budget.exceeded(log)


def test_a_hard_budget_counts_on_no_discount_that_it_was_not_told_of() -> None:
    """A provider that bills half for cached input would be a fifth of the bill by another one's rule."""
    log = log_of(started(), decided(1, text="x", usage={"input_tokens": 0, "cache_read_input_tokens": 1_000_000}))
    told = {"input": 0.15, "output": 0.60}
    assert Budget(max_usd=1, prices={"fake": told}, hard=True).usd(log) == pytest.approx(0.15)
    assert Budget(max_usd=1, prices={"fake": told | {"cache_read": 0.075}}, hard=True).usd(log) == pytest.approx(0.075)
    assert Budget(max_usd=1, prices={"fake": told}).usd(log) == pytest.approx(0.015)
