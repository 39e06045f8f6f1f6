"""Producers that do not end well: each takes orders and submits their runs in transactions of its own.

    python -m tests.kit.producers psycopg dies-after-commit order-1

takes one order and ends as it is told; `for-ever` takes order-1-0, order-1-1 and so on until somebody kills it. An
order is a row of `taken`, which drangue does not own, and its id is the id of its run.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import Any

import psycopg
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session

from drangue_client import Client

TAKEN = "create table if not exists taken (id text primary key, at timestamptz not null)"
TAKE = "insert into taken values ('{}', clock_timestamp())"
DRIVERS = ("psycopg", "session")
PRODUCER = "a producer"  # the name of their connections in Postgres


def connect(driver: str, url: str) -> Any:
    """What is given to the client; both execute, commit and roll back."""
    if driver == "psycopg":
        return psycopg.connect(url, application_name=PRODUCER)
    place = make_url(url).set(drivername="postgresql+psycopg")
    return Session(create_engine(place, connect_args={"application_name": PRODUCER}))


def take(client: Client, connection: Any, order: str) -> None:
    """The order and its run, neither of them committed yet."""
    statement = TAKE.format(order)
    connection.execute(text(statement) if isinstance(connection, Session) else statement)
    submitted = client.submit("tester", f"deliver {order}", run_id=order, connection=connection)
    assert (submitted.created, submitted.sent) == (True, False), submitted


def die() -> None:
    """Without another instruction of ours: no rollback, no close, nothing is sent."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(driver: str, end: str, order: str) -> None:
    client = Client()
    connection = connect(driver, client.settings.database_url)
    if end == "for-ever":
        for number in itertools.count():
            take(client, connection, f"{order}-{number}")
            connection.commit()
    take(client, connection, order)
    if end == "dies-before-commit":
        die()
    if end == "dies-after-commit":
        connection.commit()
        die()
    assert end == "rolls-back", end
    connection.rollback()


if __name__ == "__main__":
    main(*sys.argv[1:])
