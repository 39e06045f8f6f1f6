"""The programs of an application: two that take orders and one that decides. They use `drangue_client` and no more.

    python -m tests.kit.application script 18        takes orders one by one, with Client, in psycopg's transactions
    python -m tests.kit.application asyncio 18       takes them all at once, with AsyncClient, in AsyncSession's
    python -m tests.kit.application approver 12      decides on so many requests

Their own tables are `orders_taken` and `decisions`. Each writes its rows and tells drangue in one transaction.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from drangue_client import AsyncClient, Client

TABLES = (
    "create table orders_taken (id text primary key, run_id text not null, status text, answer text);"
    "create table decisions (run_id text not null, verdict text not null, by text not null)"
)
MOST = 50  # what the approver lets pass at most
TOO_MUCH = 100  # what it does not even lower
AMOUNTS = (20, 500, 90)
LOOK_S = 0.05  # between two looks at what a person has to do something about
LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Order:
    """The order with this number of a producer, and whether its customer walks away before it is committed."""

    producer: str
    number: int

    @property
    def id(self) -> str:
        return f"{self.producer}-{self.number}"

    @property
    def amount(self) -> int:
        return AMOUNTS[self.number // 2 % 3] if self.number % 2 else 0

    @property
    def browse(self) -> bool:
        return self.number % 3 == 0

    @property
    def dropped(self) -> bool:
        return self.number % 6 == 4

    @property
    def input(self) -> str:
        return json.dumps({"order": self.id, "amount": self.amount, "browse": self.browse})


def orders(producer: str, count: int) -> list[Order]:
    return [Order(producer, number) for number in range(count)]


def produce(count: int) -> None:
    """A plain script."""
    client, kept = Client(), []
    with psycopg.connect(client.settings.database_url) as connection:
        for order in orders("script", count):
            run_id = client.submit("clerk", order.input, labels={"by": "script"}, connection=connection).run_id
            connection.execute("insert into orders_taken values (%s, %s)", (order.id, run_id))
            if order.dropped:
                connection.rollback()
                continue
            connection.commit()
            kept.append(run_id)
        for run_id in kept:
            result = client.result(run_id, timeout=LIMIT_S)
            while result.status == "paused":
                time.sleep(LOOK_S)
                result = client.result(run_id, timeout=LIMIT_S)
            row = (result.status, result.output, run_id)
            connection.execute("update orders_taken set status = %s, answer = %s where run_id = %s", row)
            connection.commit()
    client.close()


async def produce_at_once(count: int) -> None:
    """The same with an event loop: nothing waits for the order before it."""
    async with AsyncClient() as client:
        engine = create_async_engine(make_url(client.settings.database_url).set(drivername="postgresql+psycopg"))
        session_of = async_sessionmaker(engine)

        async def take(order: Order) -> None:
            async with session_of() as session:
                taken = await client.submit("clerk", order.input, labels={"by": "asyncio"}, connection=session)
                await _write(session, "insert into orders_taken values (:id, :run)", id=order.id, run=taken.run_id)
                if order.dropped:
                    await session.rollback()
                    return
                await session.commit()
            result = await client.result(taken.run_id, timeout=LIMIT_S)
            while result.status == "paused":
                await asyncio.sleep(LOOK_S)
                result = await client.result(taken.run_id, timeout=LIMIT_S)
            async with session_of() as session:
                row = {"status": result.status, "answer": result.output, "run": taken.run_id}
                await _write(
                    session, "update orders_taken set status = :status, answer = :answer where run_id = :run", **row
                )
                await session.commit()

        await asyncio.gather(*map(take, orders("asyncio", count)))
        await engine.dispose()


async def _write(session: AsyncSession, statement: str, **values: Any) -> None:
    await session.execute(text(statement), values)


def approve(count: int) -> None:
    """Somebody who decides: little is granted, much is denied, and what is in between is lowered."""
    client, began = Client(), time.monotonic()
    with psycopg.connect(client.settings.database_url) as connection:
        while count:
            assert time.monotonic() < began + LIMIT_S, f"{count} requests have not come"
            for request in client.pending_approvals():
                decide(client, request, connection)
                count -= 1
            time.sleep(LOOK_S)
    client.close()


def decide(client: Client, request: dict[str, Any], connection: psycopg.Connection[Any]) -> None:
    which, amount = (request["run_id"], request["call_id"]), request["arguments"]["amount"]
    if amount <= MOST:
        by, verdict = "ann", "granted"
        client.approve(*which, by=by, reason="little", connection=connection)
    elif amount > TOO_MUCH:
        by, verdict = "bob", "denied"
        client.reject(*which, by=by, reason=f"{amount} is too much", connection=connection)
    else:
        by, verdict = "cat", "lowered"
        lower = {**request["arguments"], "amount": MOST}
        client.approve(*which, arguments=lower, by=by, reason="a part of it", connection=connection)
    connection.execute("insert into decisions values (%s, %s, %s)", (request["run_id"], verdict, by))
    connection.commit()


if __name__ == "__main__":
    program, number = sys.argv[1], int(sys.argv[2])
    if program == "script":
        produce(number)
    elif program == "asyncio":
        asyncio.run(produce_at_once(number))
    else:
        assert program == "approver", program
        approve(number)
