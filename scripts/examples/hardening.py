"""Hardening: tools that hang, stumble, are told to wait, or answer nonsense, and what the model gets to hear of it.

`timeout`, `retries` with backoff, `Retry-After`, `validate` and `fallback` are options of a tool; `harden` gives a copy
other ones. Every attempt is on record.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/hardening.py
"""

import asyncio
from collections import Counter

from _model import MODEL, scripted

from drangue_worker import DEFAULT_RETRY_ON, Agent, RateLimitError, TransientError, ValidationError, harden, tool

asked: Counter[str] = Counter()


@tool(timeout=0.2, fallback="the forecast of yesterday")
async def forecast() -> str:
    """Tomorrow's weather. Its server hangs."""
    await asyncio.sleep(60)
    return "never"


@tool(retries=2, backoff=0.1)
def rate(currency: str) -> float:
    """How much a euro is worth. Its server drops every first and second call."""
    asked["rate"] += 1
    if asked["rate"] <= 2:
        raise TransientError("connection reset")
    return 1.09


@tool(retries=1)
def news() -> str:
    """The headlines. Its server wants a second between two calls, and says so as HTTP does."""
    asked["news"] += 1
    if asked["news"] == 1:
        headers = {"retry-after": "1"}  # a number, or a date
        raise RateLimitError(retry_after=headers["retry-after"])
    return "calm"


def sane(price: float) -> float:
    if price < 0:
        raise ValidationError(f"a price of {price:g} cannot be")
    return round(price, 2)


@tool(validate=sane)
def price(item: str) -> float:
    """What an item costs. The database holds nonsense about hats."""
    return -1.0 if item == "hat" else 4.199


def slow_price(item: str) -> float:
    """What an item costs, according to a slow catalogue."""
    asked["slow_price"] += 1
    raise TimeoutError("the catalogue did not answer")


# A timeout is not tried again unless you say so: nobody knows what the first attempt did.
catalogue = harden(slow_price, retries=1, backoff=0, retry_on=(*DEFAULT_RETRY_ON, TimeoutError), fallback=lambda: 4.0)

agent = Agent(MODEL, [forecast, rate, news, price, catalogue], "Ask every tool once, all at once; price for both.")

SCRIPT = [
    [
        *[("forecast", {}), ("rate", {"currency": "USD"}), ("news", {}), ("slow_price", {"item": "tea"})],
        *[("price", {"item": "tea"}), ("price", {"item": "hat"})],
    ],
    "Done what could be done.",
]

if __name__ == "__main__":
    with scripted(SCRIPT):
        result = agent.run_sync("Ask all of them, about tea and about a hat.")
        for event in sorted(result.events, key=lambda event: event.step or 0):
            if event.type == "tool_result":
                failed = event.payload.get("retries", [])
                waits = ", ".join(f"{one['delay_s']:.1f} s after {one['category']}" for one in failed)
                print(f"{event.payload['name']}{f', waited {waits}' if waits else ''}\n    {event.payload['content']}")
