"""Who holds a step: one at a time, as long as it works, and what is left when it seems to be gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drangue_client.errors import LeaseHeldError
from drangue_worker import Agent, Settings, tool
from drangue_worker.testing import FakeModel
from tests.contract.log_scenes import elapse, open_rows
from tests.kit.inline import PLACES, RUN, calls, contents, kinds, opened, until


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from opened(request.param, request, tmp_path)


def test_a_step_that_takes_longer_than_its_lease_keeps_it(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewal goes on while the step does; otherwise whoever looks next would run the tool a second time."""
    monkeypatch.setattr("drangue_worker.agent.Settings", lambda: Settings(lease_s=1.8, sweep_s=0.6))
    ran: list[str] = []
    refused: list[type] = []

    @tool
    async def long() -> str:
        """Lasts until its first lease would be over, and is looked for meanwhile."""
        ran.append("long")
        first = open_rows(store)[2]["lease_until"]
        await until(lambda: (open_rows(store)[2]["lease_until"] - first) > 1.8)
        try:
            await Agent(FakeModel(), [long], store=store).resume(RUN)
        except LeaseHeldError as error:
            refused.append(type(error))
        return "done"

    result = Agent(FakeModel([[("long", {})], "done"]), [long], store=store).run_sync("go", run_id=RUN)
    assert (result.output, ran, refused) == ("done", ["long"], [LeaseHeldError])


def test_the_true_outcome_takes_the_place_of_an_unknown_one(store: Any) -> None:
    """Taken for dead, and yet the money was sent: the log must say so in the end, or nobody ever knows."""
    sent = asyncio.Event()

    @tool(reversible=False)
    async def wire() -> str:
        """Ends after somebody else has taken its step over."""
        sent.set()
        await until(lambda: "tool_result" in kinds(store))
        return "sent"

    agent = Agent(FakeModel([[("wire", {})], "done"]), [wire], store=store)

    async def work() -> None:
        first = asyncio.create_task(agent.run("go", run_id=RUN))
        await sent.wait()
        elapse(store, 60)  # it seems dead
        for one in (agent.resume(RUN), first):
            with suppress(LeaseHeldError):  # each may find the other one at the next step
                await one

    asyncio.run(work())
    corrections = [event.payload["content"] for event in store.events(RUN) if event.type == "outcome_corrected"]
    assert corrections == ["sent"]


def test_of_two_callers_at_once_one_works_and_the_other_is_told(store: Any) -> None:
    """Two processes that resume one run must not both do its steps."""
    asked: list[str] = []

    class Slow:
        async def generate(self, **given: Any) -> Any:
            asked.append(given["idempotency_key"])
            await until(lambda: other_is_done)
            return calls()

    async def work() -> None:
        nonlocal other_is_done
        first = asyncio.create_task(Agent(Slow(), store=store).run("go", run_id=RUN))
        await until(lambda: asked)
        with pytest.raises(LeaseHeldError):
            await Agent(Slow(), store=store).run("go", run_id=RUN)
        other_is_done = True
        await first

    other_is_done = False
    asyncio.run(work())
    assert asked == ["r:1"]
    assert kinds(store) == ["run_started", "model_decision", "run_finished"]


def test_a_database_that_drops_every_connection_costs_no_step(
    database_url: str, request: pytest.FixtureRequest
) -> None:
    """A failover while a tool runs: its result is recorded over new connections, and it does not run again."""
    ran: list[str] = []

    @tool
    def fail_over() -> str:
        """Ends every other connection to the database."""
        ran.append("fail_over")
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where pid <> pg_backend_pid() and datname = current_database() and backend_type = 'client backend'"
            )
        return "over"

    for store in opened("postgres", request, Path()):
        result = Agent(FakeModel([[("fail_over", {})], "done"]), [fail_over], store=store).run_sync("go", run_id=RUN)
        assert (result.output, ran, contents(store)) == ("done", ["fail_over"], ["over"])
