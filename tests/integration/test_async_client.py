"""`AsyncClient` on a real fleet: what `Client` does, from an event loop, without holding it up."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from drangue_client import AsyncClient, Client
from drangue_client.errors import RunExistsError, UnknownRunError, WaitTimeout
from drangue_worker.testing.provider import Reply
from tests.kit.fleet import Fleet, calls_then_answer

Make = Callable[..., Fleet]


def test_each_method_takes_what_the_clients_does() -> None:
    """A method that is added to one must not be missing from the other, nor differ."""
    ours = dict(inspect.getmembers(AsyncClient, inspect.isfunction))
    for name, theirs in inspect.getmembers(Client, inspect.isfunction):
        if name[0] == "_" or name == "close":
            continue
        given, expected = inspect.signature(ours[name]).parameters, inspect.signature(theirs).parameters
        assert {key: (one.kind, one.default) for key, one in given.items()} == {
            key: (one.kind, one.default) for key, one in expected.items()
        }, name


def test_a_run_is_submitted_watched_and_taken_further(make_fleet: Make) -> None:
    """Tokens, events, the result and another turn; two readers see the same."""

    def script(call: Any) -> Reply:
        return calls_then_answer(("ping", {}), answer="all is well today")(call)

    fleet = make_fleet(script)
    fleet.start("model-1")

    async def story() -> None:
        async with AsyncClient(fleet.settings) as client:
            submitted = await client.submit("tester", "go", run_id="r", tokens=True, labels={"team": "a"})
            assert (submitted.created, submitted.sent) == (True, True)

            async def read() -> list[Any]:
                return [event async for event in client.stream("r", timeout=30)]

            first, second = await asyncio.gather(read(), read())
            kept = [event for event in first if event.seq >= 0]
            assert kept == [event for event in second if event.seq >= 0] == await client.events("r")
            assert "".join(e.payload["text"] for e in first if e.type == "model_delta") == "all is well today"
            assert [event async for event in client.stream("r", after=kept[-2].seq)][-1] == kept[-1]
            result = await client.result("r", timeout=30)
            assert (result.status, result.output) == ("completed", "all is well today")
            assert (await client.say("r", "and now?", turn_id="2")).created
            assert (await client.result("r", timeout=30)).run.turn == 2
            assert [row.run_id for row in await client.runs(labels={"team": "a"})] == ["r"]
            with pytest.raises(RunExistsError):
                await client.submit("tester", "other", run_id="r")
            with pytest.raises(UnknownRunError):
                await client.result("nonesuch")

    asyncio.run(story())


def test_waiting_holds_up_neither_the_loop_nor_each_other(make_fleet: Make) -> None:
    """Forty waiters and no thread for each; what they wait for is far beyond what the threads could carry."""
    fleet = make_fleet(calls_then_answer(delay_s=1.0))
    fleet.start("model-1")

    async def story() -> int:
        async with AsyncClient(fleet.settings) as client:
            ids = [(await client.submit("tester", f"go {number}")).run_id for number in range(40)]
            with pytest.raises(WaitTimeout):
                await client.result(ids[0], timeout=0)
            turns = 0
            waiting = asyncio.gather(*(client.result(one, timeout=60) for one in ids))
            while not waiting.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert {result.status for result in await waiting} == {"completed"}
            return turns

    turns = asyncio.run(story())
    assert turns >= 10  # a loop that waited with one of them would have stood still for all of it


def test_it_rides_on_an_async_session_and_connection(make_fleet: Make) -> None:
    """An application on asyncio commits its own rows and the run at once, or neither."""
    fleet = make_fleet(calls_then_answer())
    fleet.start("model-1")
    engine = create_async_engine(make_url(fleet.settings.database_url).set(drivername="postgresql+psycopg"))

    async def story() -> None:
        async with AsyncClient(fleet.settings) as client:
            async with AsyncSession(engine) as session:
                await client.submit("tester", "go", run_id="rolled-back", connection=session)
                await session.rollback()
                submitted = await client.submit("tester", "go", run_id="of-a-session", connection=session)
                assert not submitted.sent
                await session.commit()
            async with engine.connect() as connection:
                await client.submit("tester", "go", run_id="of-a-connection", connection=connection)
                assert len(await client.runs()) == 1
                await connection.commit()
            for run_id in ("of-a-session", "of-a-connection"):
                assert (await client.result(run_id, timeout=30)).status == "completed"
            with pytest.raises(TypeError, match="AsyncSession"):
                await client.submit("tester", "go", connection=object())
        await engine.dispose()

    asyncio.run(story())


def test_a_database_that_lets_a_submission_wait_holds_up_nobody_else(make_fleet: Make) -> None:
    """On the caller's connection, too: a query of the client's own would stand on the loop until it is answered."""
    fleet = make_fleet(calls_then_answer())
    url = fleet.settings.database_url
    engine = create_async_engine(make_url(url).set(drivername="postgresql+psycopg"))

    async def story() -> None:
        async with AsyncClient(fleet.settings) as client, AsyncSession(engine) as session:
            with psycopg.connect(url) as other:
                other.execute("lock table agents in access exclusive mode")
                waiting = asyncio.create_task(client.submit("tester", "go", run_id="r", connection=session))
                for _ in range(20):
                    await asyncio.sleep(0.01)
                assert not waiting.done()
            assert (await waiting).created
            await session.commit()
        await engine.dispose()

    asyncio.run(story())


def test_a_run_begins_no_earlier_than_it_may(make_fleet: Make) -> None:
    """It is there at once, queued, and nobody has to come back to start it."""
    fleet = make_fleet(calls_then_answer())
    fleet.start("model-1")

    async def story() -> None:
        async with AsyncClient(fleet.settings) as client:
            begins_at = time.time() + 2
            assert (await client.submit("tester", "go", run_id="r", not_before=begins_at, deadline=5)).sent
            fleet.sender.coordinate([await client.get("r")])  # a message that somebody sent too early
            result = await client.result("r", timeout=30)
            (started, *_) = result.events
            assert result.status == "completed"
            assert started.ts is not None
            assert started.ts >= begins_at
            assert started.payload["deadline_at"] == pytest.approx(begins_at + 5, abs=0.01)

    asyncio.run(story())
