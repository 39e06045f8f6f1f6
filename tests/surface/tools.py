"""The tools that the agents of this folder have. Each counts what it does; nothing here knows a case."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any, Literal

from drangue_worker import (
    AuthError,
    PermanentError,
    RateLimitError,
    ToolError,
    TransientError,
    ValidationError,
    harden,
    tool,
)
from tests.surface.effects import count, counted, pass_gate, pass_gate_async

HANG_S = 3.0  # how long a hanging sync tool hangs: its thread must end before the test run does


@tool
def look(what: str, idempotency_key: str) -> str:
    """Look at something.

    Args:
        what: the thing to look at
    """
    count("look", idempotency_key, what)
    return f"{what} is fine"


@tool
async def listen(what: str, idempotency_key: str) -> str:
    """Listen to something."""
    await asyncio.sleep(0)
    count("listen", idempotency_key, what)
    return f"{what} hums"


@tool(reversible=False)
def wire(amount: int, idempotency_key: str, gate: str = "") -> str:
    """Move money."""
    count("wire", idempotency_key, amount)
    pass_gate(gate)
    count("wired", idempotency_key, amount)
    return f"{amount} sent"


@tool(reversible=False)
async def wire_async(amount: int, idempotency_key: str, gate: str = "") -> str:
    """Move money, without blocking."""
    count("wire", idempotency_key, amount)
    await pass_gate_async(gate)
    count("wired", idempotency_key, amount)
    return f"{amount} sent"


@tool(reversible=False)
def wire_to(whom: str, idempotency_key: str) -> str:
    """Move money to somebody."""
    count("wire", idempotency_key)
    return f"sent to {whom}"


@tool(requires_approval=True)
def pay(amount: int, idempotency_key: str) -> str:
    """Pay somebody."""
    count("pay", idempotency_key, amount)
    return f"{amount} paid"


@tool
def hold(gate: str) -> str:
    """A sync tool that returns when the test says so."""
    pass_gate(gate)
    return f"{gate} passed"


@tool
async def hold_async(gate: str) -> str:
    """An async tool that returns when the test says so."""
    await pass_gate_async(gate)
    return f"{gate} passed"


class Size(Enum):
    """How much."""

    SMALL = "s"
    LARGE = "l"


@dataclass
class Address:
    """Where to."""

    street: str
    number: int


@tool
def order(
    item: str,
    address: Address,
    count: int = 1,
    size: Size = Size.SMALL,
    speed: Literal["slow", "fast"] = "slow",
    note: str | None = None,
    on: date | None = None,
    tags: list[str] = [],  # noqa: B006 - never changed, and a schema without a default to show
) -> dict[str, str]:
    """Order something.

    Args:
        item: what to order
        count (int): how many of them,
            at least one
    """
    return {name: repr(value) for name, value in locals().items()}


class Scale:
    """A tool may be a method of an object."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def weigh(self, grams: int) -> int:
        """Weigh something."""
        return self.factor * grams


def _give(how: str) -> Any:
    """Results of every kind."""
    kinds = {
        "text": "plain text",
        "none": None,
        "number": 7,
        "list": [1, "zwei", None],
        "object": {"a": (1, 2), "när": 1.5},
        "nul": "a\x00b",
        "nan": {"x": float("nan"), "y": float("inf")},
        "surrogate": "\ud800",
        "unknown": object,
    }
    return kinds[how]


give = tool(name="give", description="Results of every kind.")(_give)
weigh = Scale(2).weigh  # a plain callable: the agent makes a tool of it


class Sayer:
    """A tool may be an object with an async `__call__`."""

    async def __call__(self, word: str) -> str:
        """Say something."""
        return f"said {word}"


say = tool(name="say")(Sayer())

FAILURES: dict[str, BaseException] = {
    "error": RuntimeError("it broke"),
    "tool_error": ToolError("it said so"),
    "silent": RuntimeError(),
    "permanent": PermanentError("never again"),
    "auth": AuthError("who are you"),
    "validation": ValidationError("not like this"),
    "transient": TransientError("not now"),
    "rate_limit": RateLimitError("slow down"),
    "timeout": TimeoutError("too late"),
    "exit": SystemExit(3),
    "leak": RuntimeError("the password was wrong"),
}


@tool
def fail(kind: str) -> str:
    """Fails, in a way of your choice."""
    raise FAILURES[kind]


@tool
async def fail_async(kind: str) -> str:
    """Fails, without blocking."""
    raise FAILURES[kind]


@tool(retries=3, backoff=0)
def flaky(failures: int, idempotency_key: str) -> str:
    """Works once it has failed often enough."""
    count("flaky", idempotency_key)
    attempt = len(counted(idempotency_key))
    if attempt <= failures:
        raise TransientError(f"attempt {attempt} of {failures} that fail")
    return f"worked at attempt {attempt}"


@tool(retries=1, retry_on=(ConnectionError,))
def fussy(reconnect: bool, idempotency_key: str) -> str:
    """Is tried again after a lost connection, and after nothing else."""
    count("fussy", idempotency_key)
    raise ConnectionError("cut") if reconnect else TransientError("in the default list, which was replaced")


fussy = harden(fussy, retries=1, retry_on=(ConnectionError,), backoff=0)


@tool(retries=1, fallback={"cached": 7})
def limited(idempotency_key: str) -> str:
    """Always refused by a server that names its wait, as the header has it."""
    count("limited", idempotency_key)
    raise RateLimitError("429", retry_after="0")


async def _checked(result: int) -> int | bool | None:
    if result < 0:
        raise ValidationError("negative")
    return {1: 10, 3: False}.get(result)


def _broken() -> str:
    raise RuntimeError("no cache either")


async def _cached() -> str:
    return "yesterday's"


def measure(value: int) -> int:
    """Gives back what is given."""
    return value


checked = tool(name="checked", validate=_checked)(measure)
softened = tool(name="softened", validate=_checked, fallback=_cached)(measure)
brittle = tool(name="brittle", validate=_checked, fallback=_broken)(measure)
nothing = tool(name="nothing", validate=_checked, fallback=None)(measure)


@tool(timeout=0.1)
def hang() -> str:
    """A sync tool that takes too long."""
    threading.Event().wait(HANG_S)
    return "too late"


@tool(timeout=0.1)
async def hang_async() -> str:
    """An async tool that never returns."""
    await asyncio.Event().wait()
    return "never"


@tool(timeout=0.1, reversible=False)
async def launch(idempotency_key: str) -> str:
    """Cannot be undone, and does not say whether it happened."""
    count("launch", idempotency_key)
    await asyncio.Event().wait()
    return "never"


@tool(reversible=False, retries=3, backoff=0)
def fire(idempotency_key: str) -> str:
    """Cannot be undone, and fails in a way that would be tried again otherwise."""
    count("fire", idempotency_key)
    raise TransientError("jammed")


USUAL = [look, listen, wire, wire_async, hold, hold_async, fail]
EVERYTHING = [
    *(look, listen, wire, wire_async, hold, hold_async, order, weigh, give, say, fail, fail_async, flaky, fussy),
    *(limited, checked, softened, brittle, nothing, hang, hang_async, launch, fire),
]
