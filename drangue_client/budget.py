"""Budgets: what tokens and dollars a run may use, and the arithmetic that says what it has used.

The arithmetic is one fold over model decisions, so the rules, a `Result` and an operator all count alike. Nothing here
decides what happens when a limit is reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from drangue_client import checks
from drangue_client.events import Event

Prices = Mapping[str, Mapping[str, float]]  # {model: {"input", "output", "cache_write"?, "cache_read"?}} in USD per 1e6

_MOST = 10**15  # tokens that can be multiplied with a price; nobody has ever sent as many
_KINDS = ("input", "output", "cache_write", "cache_read")
INPUT_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
OUTPUT_COUNTS = ("output_tokens",)


@dataclass(frozen=True, slots=True)
class Budget:
    """What one run may use over all its turns: `max_tokens`, `max_usd`, or both.

    `prices` is {model: {"input", "output", "cache_write"?, "cache_read"?}} in USD per million tokens; `cache_write`
    is 1.25 times `input` and `cache_read` 0.1 times, unless given: Anthropic's factors, for its cache of five
    minutes. Other providers' differ, so give theirs; a hard budget takes `input` for a `cache_read` that is not
    given. A limit is looked at before every model call. A soft one (the default) stops the run once it is reached,
    so the last call may overshoot it. With `hard=True` a call is made only if the most it can use still fits: every
    byte sent as one token, and the whole output ceiling. A call whose answer never came counts as much then, since
    it may have been billed.

    Raises TypeError or ValueError, naming the argument, for what cannot be enforced.
    """

    max_tokens: int | None = None
    max_usd: float | None = None
    prices: Prices | None = None
    hard: bool = False

    def __post_init__(self) -> None:
        checks.count("max_tokens", self.max_tokens, optional=True)
        checks.number("max_usd", self.max_usd, "a number of US dollars, at least 0", least=0, optional=True)
        checks.flag("hard", self.hard)
        if self.max_usd is not None and not self.prices:
            raise ValueError("max_usd needs a price table: pass prices={model: {'input': ..., 'output': ...}}.")
        if self.hard and self.max_tokens is None and self.max_usd is None:
            raise ValueError("hard=True has nothing to hold: pass max_tokens or max_usd with it.")
        if self.prices is not None:
            prices = checked_prices(self.prices)
            if self.hard:  # discounts differ between providers; without one, no limit is passed
                prices = {model: {"cache_read": price.get("input", 0.0), **price} for model, price in prices.items()}
            object.__setattr__(self, "prices", prices)

    def tokens(self, events: Iterable[Event]) -> int:
        """Tokens a log has used, cached ones included."""
        return spent(events, None).tokens

    def usd(self, events: Iterable[Event]) -> float:
        """US dollars a log has used. ValueError where a model that was used has no price."""
        total = spent(events, self.prices or {})
        if total.unpriced is not None:
            raise ValueError(no_price(total.unpriced))
        return total.usd

    def exceeded(self, events: Iterable[Event]) -> bool:
        """Whether a log has reached a limit. ValueError as `usd`, where dollars are limited."""
        events = list(events)
        if self.max_tokens is not None and self.tokens(events) >= self.max_tokens:
            return True
        return self.max_usd is not None and self.usd(events) >= self.max_usd

    def remaining_tokens(self, events: Iterable[Event]) -> int | None:
        """Tokens left, at least 0; None without a limit on them."""
        return None if self.max_tokens is None else max(0, self.max_tokens - self.tokens(events))

    def to_json(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens, "max_usd": self.max_usd, "prices": self.prices, "hard": self.hard}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Budget:
        return cls(**{name: value[name] for name in cls.__dataclass_fields__ if name in value})


@dataclass(frozen=True, slots=True)
class Spent:
    """What model calls have used: `usd` by a price table, `unpriced` the first model that has no price in it."""

    tokens: int = 0
    usd: float = 0.0
    unpriced: str | None = None

    def plus(self, usage: object, model: str | None, prices: Prices | None) -> Spent:
        """With one more call's usage, {"input_tokens", "output_tokens", ...}; what is no count is ignored."""
        counts = {name: _count(usage, name) for name in (*INPUT_COUNTS, *OUTPUT_COUNTS)}
        total = replace(self, tokens=self.tokens + sum(counts.values()))
        if prices is None or not any(counts.values()):
            return total
        price = prices.get(str(model))
        if price is None:
            return total if total.unpriced else replace(total, unpriced=str(model))
        return replace(total, usd=self.usd + _price_of(counts, price))

    def plus_lost(self, lost: Mapping[str, Any]) -> Spent:
        """With what was reserved for calls whose answers never came, {"tokens", "usd"}: they may have been billed."""
        return replace(self, tokens=self.tokens + lost["tokens"], usd=self.usd + lost["usd"])


def spent(events: Iterable[Event], prices: Prices | None) -> Spent:
    """What the model calls of a log have used, as the rules count it; calls without usage count nothing."""
    total = Spent()
    for event in events:
        total = counted(total, event, prices)
    return total


def counted(total: Spent, event: Event, prices: Prices | None) -> Spent:
    """`total` with what one more event of a log says was used."""
    if event.type == "model_decision":
        total = total.plus(event.payload.get("usage"), event.payload.get("model"), prices)
    return total.plus_lost(event.payload["lost"]) if "lost" in event.payload else total


def cost_usd(events: Iterable[Event], prices: Prices, *, strict: bool = True) -> float:
    """US dollars by `prices`, of what models reported. A used model without a price is a ValueError, or free with
    `strict=False`."""
    table, total = checked_prices(prices), Spent()
    for event in events:
        if event.type == "model_decision":
            total = total.plus(event.payload.get("usage"), event.payload.get("model"), table)
    if strict and total.unpriced is not None:
        raise ValueError(no_price(total.unpriced))
    return total.usd


def no_price(model: str) -> str:
    """What to say of a model that was used and is not in the price table."""
    return f"no price for model {model!r}. Add it to prices."


def spent_on(usage: object, counts: Iterable[str]) -> int:
    """The sum of some counts of a usage; what is no count is ignored."""
    return sum(_count(usage, name) for name in counts)


def worst_usd(input_tokens: int, output_tokens: int, price: Mapping[str, float]) -> float:
    """The most a call can cost: its input at the dearest input price there is, its output as given."""
    dearest = max(price.get("input", 0.0), _cache_write(price), _cache_read(price))
    return (input_tokens * dearest + output_tokens * price.get("output", 0.0)) / 1e6


def checked_prices(prices: Any) -> dict[str, dict[str, float]]:
    """A copy of a price table. TypeError or ValueError names the entry that cannot be used."""
    of_a_model = "{'input': ..., 'output': ...}"
    table = checks.kind("prices", prices, Mapping, f"{{model: {of_a_model}}}")
    for model, price in table.items():
        checks.text("a model in prices", model, "a model's name")
        checks.kind(f"prices[{model!r}]", price, Mapping, f"{of_a_model} in USD per 1e6")
        for kind, amount in price.items():
            if kind not in _KINDS:
                raise ValueError(f"prices[{model!r}] names {kind!r}; it can name {', '.join(_KINDS)}.")
            checks.number(f"prices[{model!r}][{kind!r}]", amount, "USD per million tokens", least=0)
    return {str(model): dict(price) for model, price in table.items()}


def _price_of(counts: Mapping[str, int], price: Mapping[str, float]) -> float:
    # As Anthropic's and OpenAI's price lists have it: cache writes and reads are billed beside the uncached input, at
    # prices of their own. Adapters report counts that do not overlap.
    kinds = {
        "input_tokens": price.get("input", 0.0),
        "output_tokens": price.get("output", 0.0),
        "cache_creation_input_tokens": _cache_write(price),
        "cache_read_input_tokens": _cache_read(price),
    }
    return sum(min(counts[name], _MOST) * usd for name, usd in kinds.items()) / 1e6


def _cache_write(price: Mapping[str, float]) -> float:
    return price.get("cache_write", 1.25 * price.get("input", 0.0))


def _cache_read(price: Mapping[str, float]) -> float:
    return price.get("cache_read", 0.1 * price.get("input", 0.0))


def _count(usage: object, name: str) -> int:
    value: Any = usage.get(name) if isinstance(usage, Mapping) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return max(0, value)
    return max(0, math.ceil(value)) if checks.is_number(value) else 0
