"""A shop's agent, and what its model says. Each pool has a tool; effects go to the table of `tests.kit.agents`.

An order is a run whose input is {"order", "amount", "browse"}: it is looked up and reserved, its supplier's page is
read if it says so, and what costs something is charged once a person agrees.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from drangue_worker import Agent, OpenAIModel, tool
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.kit.agents import effect


@tool
async def look_up(order: str, idempotency_key: str) -> str:
    """What is known of an order; an async tool, so it is done where models are called."""
    await asyncio.to_thread(effect, idempotency_key, f"look_up {order}")
    return f"{order} is in stock"


@tool
def reserve(order: str, idempotency_key: str) -> str:
    """Put an order aside."""
    effect(idempotency_key, f"reserve {order}")
    return f"{order} is put aside"


@tool(queue="browser")
def browse(order: str, idempotency_key: str) -> str:
    """Read the supplier's page; needs a browser, which not every machine has."""
    effect(idempotency_key, f"browse {order}")
    return f"{order} is on page 4"


@tool(reversible=False, requires_approval=True)
def charge(order: str, amount: int, idempotency_key: str) -> str:
    """Charge the customer."""
    effect(idempotency_key, f"charge {order} {amount}")
    return f"charged {amount}"


clerk = Agent(OpenAIModel("scripted"), [look_up, reserve, browse, charge], "Settle the order.", name="clerk")


def script(call: ProviderCall) -> Reply:
    """The model: look on every side, then charge, then say how it ended."""
    asked = json.loads(call.last_user())
    order, amount = {"order": asked["order"]}, asked["amount"]
    if call.turn == 0:
        names = ["look_up", "reserve", *(["browse"] if asked["browse"] else [])]
        return Reply(tool_calls=tuple((name, order) for name in names))
    if call.turn == 1 and amount:
        return Reply(text=f"it costs {amount}", tool_calls=(("charge", {**order, "amount": amount}),))
    return Reply(text=_ending(call.results()[0]) if amount else "free of charge")


def model_calls(amount: int) -> int:
    """How often the model is asked about an order."""
    return 3 if amount else 2


def _ending(result: str) -> str:
    try:
        told: Any = json.loads(result)
    except ValueError:
        return result.splitlines()[-1]  # before it stands what a person has changed
    return f"declined: {told['error']['message']}"
