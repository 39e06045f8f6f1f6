"""The demo's agents: one that looks into incidents and files them, one that moves money and therefore asks first."""

from __future__ import annotations

import os
import time

import psycopg

from drangue_client.autonomy import Autonomy
from drangue_worker.agent import Agent
from drangue_worker.models.openai import OpenAIModel
from drangue_worker.tools.tool import tool

TABLES = (
    "create table if not exists demo_bookings (key text primary key, subject text not null, summary text not null)",
    "create table if not exists demo_calls (key text not null, tool text not null, process int not null)",
)
LOOK_S = 0.3  # a query against some monitoring system
READ_S = 0.8


def _write(statement: str, *values: object) -> None:
    """Write to the demo's own tables, which the runtime does not know."""
    with psycopg.connect(os.environ["DRANGUE_DATABASE_URL"], autocommit=True) as connection:
        connection.execute(statement, values)


def _note_call(key: str, name: str) -> None:
    _write("insert into demo_calls (key, tool, process) values (%s, %s, %s)", key, name, os.getpid())


def _book(key: str, subject: str, summary: str) -> None:
    """The side effect. Its key is the same for every attempt of a step, so a second attempt changes nothing."""
    booking = "insert into demo_bookings (key, subject, summary) values (%s, %s, %s) on conflict (key) do nothing"
    _write(booking, key, subject, summary)


_model = OpenAIModel(os.environ.get("OPENAI_MODEL", "gpt-4o-mini"), max_tokens=400)


@tool
def check_service(service: str, idempotency_key: str) -> dict[str, object]:
    """Current health of a service: error rate in percent and p99 latency in milliseconds."""
    _note_call(idempotency_key, "check_service")
    time.sleep(LOOK_S)
    bad = sum(map(ord, service)) % 3 == 0
    return {"service": service, "error_rate_percent": 7.5 if bad else 0.2, "p99_ms": 2400 if bad else 180}


@tool
def read_logs(service: str, idempotency_key: str, minutes: int = 15) -> list[str]:
    """The most telling log lines of a service.

    Args:
        service: which one
        minutes: how far back to look
    """
    _note_call(idempotency_key, "read_logs")
    time.sleep(READ_S)
    return [f"{service}: connection pool exhausted (waited {minutes * 100} ms)", f"{service}: retrying payment-db"]


@tool
def file_incident(service: str, summary: str, idempotency_key: str) -> str:
    """File an incident for a service; returns its number."""
    _note_call(idempotency_key, "file_incident")
    _book(idempotency_key, service, summary)
    return f"INC-{idempotency_key}"


@tool(reversible=False)
def wire_funds(to: str, amount_usd: float, idempotency_key: str) -> str:
    """Transfer money to an account. Cannot be undone."""
    _note_call(idempotency_key, "wire_funds")
    _book(idempotency_key, to, f"{amount_usd:.2f} USD")
    return f"transfer {idempotency_key} of {amount_usd:.2f} USD to {to} is done"


oncall = Agent(
    _model,
    [check_service, read_logs, file_incident],
    "You are on call. For the service in question call check_service, read_logs and file_incident, all three at once, "
    "then answer in one sentence.",
)
treasurer = Agent(
    _model,
    [wire_funds],
    "You settle what the company owes. Use wire_funds for the amount you are asked to pay and say in one sentence why. "
    "Then report what was done.",
    autonomy=Autonomy(modes={"wire_funds": "assisted"}),
)
