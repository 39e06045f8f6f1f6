"""Agents that tests serve from real worker processes. Their side effects go to a table that drangue does not own."""

from __future__ import annotations

import asyncio
import os
import time

import psycopg

from drangue_client.autonomy import Autonomy
from drangue_worker import Agent, OpenAIModel, tool

EFFECTS = (
    "create table if not exists effects (id bigserial, key text not null, tool text not null, process int not null)"
)


def effect(key: str, name: str) -> None:
    """Count one execution of a tool, durably and at once."""
    with psycopg.connect(os.environ["DRANGUE_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("insert into effects (key, tool, process) values (%s, %s, %s)", (key, name, os.getpid()))


@tool
def note(text: str, idempotency_key: str, seconds: float = 0.0) -> str:
    """A sync tool: leaves its effect, then takes its time."""
    effect(idempotency_key, "note")
    time.sleep(seconds)
    return f"noted {text}"


@tool
async def ping(idempotency_key: str, seconds: float = 0.0) -> str:
    """An async tool."""
    await asyncio.to_thread(effect, idempotency_key, "ping")
    await asyncio.sleep(seconds)
    return "pong"


@tool(reversible=False)
def wire(amount: int, idempotency_key: str, seconds: float = 0.0) -> str:
    """An irreversible tool."""
    effect(idempotency_key, "wire")
    time.sleep(seconds)
    return f"wired {amount}"


@tool
def suicide(idempotency_key: str) -> str:
    """A tool that takes its process down, every time."""
    effect(idempotency_key, "suicide")
    os.kill(os.getpid(), 9)
    return "never"


model = OpenAIModel("scripted")
worker_agent = Agent(model, [note, ping, wire, suicide], "Do it.", name="tester")
careful = Agent(model, [note, wire], "Do it.", autonomy=Autonomy(modes={"wire": "assisted"}), name="careful")
