"""Tools that do not end when their time is over, each in a way of its own."""

from __future__ import annotations

import re
import time

from drangue_worker import Agent, Done, OpenAIModel, tool
from tests.kit.agents import effect

TIMEOUT_S = 1.0


@tool(timeout=TIMEOUT_S)
def spin(idempotency_key: str) -> str:
    """A busy loop of Python."""
    effect(idempotency_key, "spin")
    while True:
        pass


@tool(timeout=TIMEOUT_S)
def wait(idempotency_key: str) -> str:
    """A blocking call that lets others run meanwhile."""
    effect(idempotency_key, "wait")
    time.sleep(600)
    return "never"


@tool(timeout=TIMEOUT_S)
def freeze(idempotency_key: str) -> str:
    """A call into C that lets nobody else run: an expression that backtracks for years."""
    effect(idempotency_key, "freeze")
    return str(re.match(r"(a+)+$", "a" * 64 + "b"))


@tool(timeout=TIMEOUT_S, reversible=False)
def wire(idempotency_key: str) -> str:
    """The same, and it cannot be undone."""
    effect(idempotency_key, "wire")
    return str(re.match(r"(a+)+$", "a" * 64 + "b"))


@tool(timeout=TIMEOUT_S, reversible=False, reconcile=lambda key: Done(f"wired under {key}"))
def traced_wire(idempotency_key: str) -> str:
    """The same, at a bank that can be asked what became of it."""
    effect(idempotency_key, "traced_wire")
    return str(re.match(r"(a+)+$", "a" * 64 + "b"))


@tool
def endless(idempotency_key: str) -> str:
    """The same, without a timeout."""
    effect(idempotency_key, "endless")
    return str(re.match(r"(a+)+$", "a" * 64 + "b"))


stuck = Agent(OpenAIModel("scripted"), [spin, wait, freeze, wire, traced_wire, endless], "Do it.", name="stuck")
