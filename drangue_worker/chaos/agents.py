"""The soak's agent: one of every kind of tool. Each call writes into the world first, then takes its time.

So a process that is killed during a call has always had the effect and never given the result: the hard case.
"""

from __future__ import annotations

import asyncio
import os
import time

from drangue_client.autonomy import Autonomy
from drangue_client.errors import TransientError
from drangue_worker.agent import Agent
from drangue_worker.chaos import world
from drangue_worker.chaos.plan import AGENT, ASSISTED
from drangue_worker.models.openai import OpenAIModel
from drangue_worker.tools.tool import Done, tool

RETRIES = 20  # more than the plan ever asks for: what fails for good would hide what is lost


def _act(key: str, name: str, subject: str) -> int:
    return world.act(os.environ[world.URL], world.Execution(key, name, subject))


@tool
def look(subject: str, seconds: float, idempotency_key: str) -> str:
    """A sync tool that may be repeated."""
    _act(idempotency_key, "look", subject)
    time.sleep(seconds)
    return f"done: {subject}"


@tool
async def fetch(subject: str, seconds: float, idempotency_key: str) -> str:
    """An async tool that may be repeated."""
    await asyncio.to_thread(_act, idempotency_key, "fetch", subject)
    await asyncio.sleep(seconds)
    return f"done: {subject}"


@tool(retries=RETRIES, backoff=0.1, max_backoff=0.5)
def flaky(subject: str, seconds: float, trips: int, idempotency_key: str) -> str:
    """A tool whose answer is lost `trips` times, after its effect."""
    earlier = _act(idempotency_key, "flaky", subject)
    if earlier < trips:
        raise TransientError(f"the answer got lost, as planned ({earlier + 1} of {trips})")
    time.sleep(seconds)
    return f"done: {subject}"


@tool(reversible=False)
def wire(subject: str, seconds: float, idempotency_key: str) -> str:
    """A sync tool that must not be repeated."""
    _act(idempotency_key, "wire", subject)
    time.sleep(seconds)
    return f"done: {subject}"


@tool(reversible=False)
async def send(subject: str, seconds: float, idempotency_key: str) -> str:
    """An async tool that must not be repeated."""
    await asyncio.to_thread(_act, idempotency_key, "send", subject)
    await asyncio.sleep(seconds)
    return f"done: {subject}"


def _became_of(key: str) -> Done | None:
    """What the world knows of a call that was interrupted: its effect, or nothing, which may be still to come."""
    found = world.find(os.environ[world.URL], key)
    return Done(f"done: {found.subject}") if found else None


@tool(reversible=False, reconcile=_became_of)
def transfer(subject: str, seconds: float, idempotency_key: str) -> str:
    """A sync tool that must not be repeated, and that can be asked what became of a call."""
    _act(idempotency_key, "transfer", subject)
    time.sleep(seconds)
    return f"done: {subject}"


@tool
def refund(subject: str, seconds: float, idempotency_key: str) -> str:
    """A tool that a person is asked about."""
    _act(idempotency_key, ASSISTED, subject)
    time.sleep(seconds)
    return f"done: {subject}"


mixed = Agent(
    OpenAIModel("scripted"),
    [look, fetch, flaky, wire, send, transfer, refund],
    "Do what you are asked.",
    autonomy=Autonomy(modes={ASSISTED: "assisted"}),
    model_retries=RETRIES,
    name=AGENT,
)
