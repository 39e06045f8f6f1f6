"""Tools: a signature is what the model is shown, and what its arguments must pass before anything is called.

Functions, async functions and bound methods are tools as they are; `@tool` is for options. A wrong argument goes back
to the model by its name, a right one arrives converted.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/tools.py
"""

import json
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Annotated

from _model import MODEL, scripted
from pydantic import Field

from drangue_worker import Agent, tool


class Speed(Enum):
    NORMAL = "normal"
    EXPRESS = "express"


@dataclass
class Address:
    street: str
    city: str


class Shop:
    def __init__(self, stock: dict[str, int]) -> None:
        self.stock = stock

    def in_stock(self, item: str) -> int:
        """How many of an item are there."""
        return self.stock.get(item, 0)


async def price(item: str, currency: str = "EUR") -> str:
    """The price of an item."""
    return f"4.20 {currency}"


@tool(name="send_order")
def send(
    item: str,
    count: Annotated[int, Field(ge=1, le=10)],
    to: Address,
    on: date,
    idempotency_key: str,
    speed: Speed = Speed.NORMAL,
) -> dict[str, object]:
    """Send an order.

    Args:
        item: what to send
        on: the day it leaves the house
    """
    return {"number": idempotency_key, "to": to.city, "leaves": f"{on:%A}", "speed": speed.name}


agent = Agent(MODEL, [Shop({"tea": 3}).in_stock, price, send], "You sell tea.")

ORDER = {"item": "tea", "to": {"street": "Rua Nova 1", "city": "Lisbon"}}
SCRIPT = [
    [("in_stock", {"item": "tea"}), ("price", {"item": "tea"})],
    [("send_order", {**ORDER, "count": 20, "day": "Monday"})],
    [("send_order", {**ORDER, "count": "2", "on": "2030-01-07", "speed": "express"})],
    "Two packets of tea leave for Lisbon on Monday.",
]

if __name__ == "__main__":
    print("send_order, as the model is shown it:")
    for name, schema in agent.tools["send_order"].parameters["properties"].items():
        print(f"  {name:<6} {json.dumps(schema)}")
    with scripted(SCRIPT):
        question = "Send two packets of tea to Rua Nova 1 in Lisbon, express, on 7 January 2030."
        result = agent.run_sync(question, run_id="order-1")
        for message in result.messages:
            if message["role"] == "tool":
                print(f"{message['name']:<10} {message['content']}")
        print(result.output)
