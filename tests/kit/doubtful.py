"""Irreversible tools at a bank that may be asked what became of a call, and agents that are in a hurry or have time.

What the world saw stands in the tests' table of effects; that a call was made at all stands there under another name,
so that a process can be killed after its call has begun and before it has had its effect.
"""

from __future__ import annotations

import os
import re
import time

import psycopg

from drangue_worker import Agent, Autonomy, Done, NotDone, OpenAIModel, tool
from tests.kit.agents import effect

LONG_S = 60.0


def transfer(key: str, name: str, *, first: str) -> str:
    """The first attempt stays where it is, `before` its effect or `after`; a later one comes through."""
    attempt = count(key, f"{name} made")
    effect(key, f"{name} made")
    if attempt == 0 and first == "before":
        time.sleep(LONG_S)
    effect(key, name)
    if attempt == 0 and first == "after":
        time.sleep(LONG_S)
    return f"{name} sent in attempt {attempt + 1}"


def look_up(name: str) -> object:
    """What the bank says of a call of this tool: that it has it, or that it has not."""

    def reconcile(key: str) -> Done | NotDone:
        effect(key, f"{name} looked up")
        return Done(f"found {name}") if count(key, name) else NotDone()

    return reconcile


def count(key: str, name: str) -> int:
    """How often the world saw this of a call."""
    with psycopg.connect(os.environ["DRANGUE_DATABASE_URL"], autocommit=True) as connection:
        row = connection.execute("select count(*) from effects where key = %s and tool = %s", (key, name)).fetchone()
    return int(row[0]) if row else 0


@tool(reversible=False, reconcile=look_up("early"))
def early(idempotency_key: str) -> str:
    """Is interrupted before its effect; the bank can tell."""
    return transfer(idempotency_key, "early", first="before")


@tool(reversible=False, reconcile=look_up("late"))
def late(idempotency_key: str) -> str:
    """Is interrupted after its effect; the bank can tell."""
    return transfer(idempotency_key, "late", first="after")


@tool(reversible=False)
def mute(idempotency_key: str) -> str:
    """Is interrupted before its effect, and nobody can tell."""
    return transfer(idempotency_key, "mute", first="before")


@tool(reversible=False, on_unknown="ask")
def doubtful(idempotency_key: str) -> str:
    """The same; a person is to be asked."""
    return transfer(idempotency_key, "doubtful", first="before")


@tool(reversible=False, reconcile=look_up("brief"), timeout=1.0)
def brief(idempotency_key: str) -> str:
    """Is killed at its timeout before its effect; the bank can tell."""
    attempt = count(idempotency_key, "brief made")
    effect(idempotency_key, "brief made")
    if attempt == 0:
        re.match(r"(a+)+$", "a" * 64 + "b")  # lets nobody else run
    effect(idempotency_key, "brief")
    return "brief sent"


@tool
def sleep(idempotency_key: str) -> str:
    """A sync tool that takes its time."""
    effect(idempotency_key, "sleep")
    time.sleep(LONG_S)
    return "slept"


@tool(queue="nowhere")
def unserved() -> str:
    """Nobody serves its queue."""
    return "never"


@tool
def ask_first(idempotency_key: str) -> str:
    """Needs leave."""
    effect(idempotency_key, "ask_first")
    return "done"


TOOLS = [early, late, mute, doubtful, brief, sleep, unserved, ask_first]
bank = Agent(OpenAIModel("scripted"), TOOLS, "Do it.", name="bank", autonomy=Autonomy(modes={"ask_first": "assisted"}))
