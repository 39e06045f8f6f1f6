"""`AsyncClient`: the client for code with an event loop. The database is asked on threads, waiting is the loop's own.

The invariant: each method does what the one of `Client` does; what is said there of repeating and of errors holds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from drangue_client import checks
from drangue_client.aio_steering import AsyncSteering
from drangue_client.client import Client
from drangue_client.events import Event
from drangue_client.limits import Limits
from drangue_client.result import Result
from drangue_client.run import MOVING
from drangue_client.settings import Settings
from drangue_client.store.port import Log
from drangue_client.store.values import DEFAULT_PRIORITY, AgentRow, RunRow
from drangue_client.submission import Submission
from drangue_client.waiting import (
    Grown,
    Patience,
    Pieces,
    following,
    grown,
    log_of,
)
from drangue_client.wire.aio import AsyncSignals

THREADS = 8  # of this client's own: more would only wait for the pool of connections


class AsyncClient(AsyncSteering):
    """Runs, seen from an application with an event loop. One per loop is enough; `async with` closes it.

    Raises as `Client` does. `connection=` takes a SQLAlchemy AsyncConnection or AsyncSession.
    """

    def __init__(self, settings: Settings | None = None, *, log: Log | None = None) -> None:
        self._client = Client(settings, log=log)
        self._signals = AsyncSignals(self._client.settings.redis_url)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="drangue-client")

    @property
    def settings(self) -> Settings:
        """What it was made with, or found."""
        return self._client.settings

    async def submit(
        self,
        agent: str,
        input: str,
        *,
        run_id: str | None = None,
        priority: int = DEFAULT_PRIORITY,
        labels: Mapping[str, str] | None = None,
        output_schema: Any = None,
        turn_id: str | None = None,
        tokens: bool = False,
        deadline: float | None = None,
        not_before: float | None = None,
        limits: Limits | None = None,
        allow_unknown: bool = False,
        connection: Any = None,
    ) -> Submission:
        """Record a run, and tell the workers. As `Client.submit`."""
        return await self._do(
            self._client.submit,
            agent,
            input,
            run_id=run_id,
            priority=priority,
            labels=labels,
            output_schema=output_schema,
            turn_id=turn_id,
            tokens=tokens,
            deadline=deadline,
            not_before=not_before,
            limits=limits,
            allow_unknown=allow_unknown,
            connection=connection,
        )

    async def submit_many(
        self,
        agent: str,
        inputs: Mapping[str, str] | Iterable[str],
        *,
        priority: int = DEFAULT_PRIORITY,
        labels: Mapping[str, str] | None = None,
        output_schema: Any = None,
        turn_id: str | None = None,
        tokens: bool = False,
        deadline: float | None = None,
        not_before: float | None = None,
        limits: Limits | None = None,
        allow_unknown: bool = False,
        connection: Any = None,
    ) -> list[Submission]:
        """Record a run for each input, and tell the workers once. As `Client.submit_many`."""
        return await self._do(
            self._client.submit_many,
            agent,
            inputs,
            priority=priority,
            labels=labels,
            output_schema=output_schema,
            turn_id=turn_id,
            tokens=tokens,
            deadline=deadline,
            not_before=not_before,
            limits=limits,
            allow_unknown=allow_unknown,
            connection=connection,
        )

    async def get(self, run_id: str) -> RunRow:
        """The run's row. As `Client.get`."""
        return await self._do(self._client.get, run_id)

    async def result(self, run_id: str, timeout: float | None = None) -> Result:  # noqa: ASYNC109 - as Client has it
        """Wait until the run has stopped, and read it. As `Client.result`; a wait that is cancelled stops no run."""
        patience, log = Patience(run_id, timeout), self._client.log
        row = (await self._do(log.look, run_id)).row
        if row.status in MOVING:
            async with self._signals.listen(run_id) as listener:
                while (row := (await self._do(log.look, run_id)).row).status in MOVING:
                    await listener.wait(patience.left_s(row.status))
        return Result.from_events(run_id, await self._do(log_of, log, row))

    async def stream(
        self,
        run_id: str,
        *,
        after: int = -1,
        timeout: float | None = None,  # noqa: ASYNC109 - as Client has it
    ) -> AsyncIterator[Event]:
        """The run's events as they are written, and its answers while they are. As `Client.stream`."""
        asking = following(run_id, checks.place("after", after), timeout)
        answer: Any = None
        while True:
            try:
                asked = asking.send(answer)
            except StopIteration:
                return
            match asked:
                case Grown(place):
                    answer = await self._do(grown, self._client.log, run_id, place)
                case Pieces(place, wait_s):
                    answer = await self._signals.read(run_id, place, wait_s)
                case event:
                    answer = None
                    yield event

    async def events(self, run_id: str, after: int = -1) -> list[Event]:
        """The run's log after a place. As `Client.events`."""
        return await self._do(self._client.events, run_id, after)

    async def say(self, run_id: str, text: str, *, turn_id: str | None = None, connection: Any = None) -> Submission:
        """Begin another turn. As `Client.say`."""
        return await self._do(self._client.say, run_id, text, turn_id=turn_id, connection=connection)

    async def runs(
        self,
        *,
        status: str | None = None,
        agent: str | None = None,
        since: float | None = None,
        until: float | None = None,
        labels: Mapping[str, str] | None = None,
        unknown: bool = False,
        after: str | None = None,
        limit: int = 50,
    ) -> list[RunRow]:
        """Runs, newest first. As `Client.runs`."""
        return await self._do(
            self._client.runs,
            status=status,
            agent=agent,
            since=since,
            until=until,
            labels=labels,
            unknown=unknown,
            after=after,
            limit=limit,
        )

    async def agents(self) -> list[AgentRow]:
        """The agents that workers have registered. As `Client.agents`."""
        return await self._do(self._client.agents)

    async def queues(self) -> list[dict[str, Any]]:
        """What there is to do, by queue. As `Client.queues`."""
        return await self._do(self._client.queues)

    async def workers(self, timeout: float = 1.0) -> list[dict[str, Any]]:  # noqa: ASYNC109 - as Client has it
        """The worker processes that answer. As `Client.workers`."""
        return await self._do(self._client.workers, timeout)

    async def aclose(self) -> None:
        """Close the connections to Postgres and Redis. Repeating is safe."""
        await self._signals.close()
        self._threads.shutdown(wait=False)
        self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
