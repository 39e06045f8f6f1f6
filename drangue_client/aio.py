"""`AsyncClient`: the client for code with an event loop. The database is asked on threads, waiting is the loop's own.

The invariant: each method does what the one of `Client` does; what is said there of repeating and of errors holds.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from drangue_client import checks
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
    Asked,
    Grown,
    Patience,
    Pieces,
    Requests,
    Ring,
    asked_runs,
    following,
    grown,
    log_of,
    requests_of,
    watching,
)
from drangue_client.wire.aio import AsyncSignals

T = TypeVar("T")

THREADS = 8  # of this client's own: more would only wait for the pool of connections


class AsyncClient:
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

    async def resume(self, run_id: str, *, by: str = "", reason: str = "") -> Submission:
        """Take a failed run up again. As `Client.resume`."""
        return await self._do(self._client.resume, run_id, by=by, reason=reason)

    async def cancel(self, run_id: str, *, by: str = "", reason: str = "", connection: Any = None) -> bool:
        """End the turn a run is at. As `Client.cancel`."""
        return await self._do(self._client.cancel, run_id, by=by, reason=reason, connection=connection)

    async def approve(
        self,
        run_id: str,
        call_id: str | None = None,
        *,
        arguments: Mapping[str, Any] | None = None,
        arguments_hash: str | None = None,
        by: str = "",
        reason: str = "",
        connection: Any = None,
    ) -> dict[str, Any]:
        """Grant a waiting call. As `Client.approve`."""
        return await self._do(
            self._client.approve,
            run_id,
            call_id,
            arguments=arguments,
            arguments_hash=arguments_hash,
            by=by,
            reason=reason,
            connection=connection,
        )

    async def reject(
        self, run_id: str, call_id: str | None = None, *, by: str = "", reason: str = "", connection: Any = None
    ) -> dict[str, Any]:
        """Deny a waiting call. As `Client.reject`."""
        return await self._do(self._client.reject, run_id, call_id, by=by, reason=reason, connection=connection)

    async def pending_approvals(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """Requests that wait for a person. As `Client.pending_approvals`."""
        return await self._do(self._client.pending_approvals, run_id)

    async def watch_approvals(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as Client has it
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Every request that waits for a person, those there are and then new ones. As `Client.watch_approvals`."""
        asking = watching(timeout)
        answer: Any = None
        async with self._signals.listen_approvals() as listener:
            while True:
                try:
                    asked = asking.send(answer)
                except StopIteration:
                    return
                answer = None
                match asked:
                    case Asked():
                        answer = await self._do(asked_runs, self._client.log)
                    case Requests(row):
                        answer = await self._do(requests_of, self._client.log, row)
                    case Ring(wait_s):
                        await listener.wait(wait_s)
                    case request:
                        yield request

    async def unknown_outcomes(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """Calls of which nobody knows whether they took effect. As `Client.unknown_outcomes`."""
        return await self._do(self._client.unknown_outcomes, run_id)

    async def give_outcome(
        self, run_id: str, call_id: str | None = None, *, happened: bool, note: str = "", by: str = "", reason: str = ""
    ) -> dict[str, Any]:
        """Say what became of such a call. As `Client.give_outcome`."""
        return await self._do(
            self._client.give_outcome, run_id, call_id, happened=happened, note=note, by=by, reason=reason
        )

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

    async def _do(self, work: Callable[..., T], *args: Any, connection: Any = None, **named: Any) -> T:
        """Do blocking work on a thread, or on the caller's own connection, which SQLAlchemy makes wait on the loop."""
        if connection is None:
            call = functools.partial(work, *args, **named)
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        if not inspect.iscoroutinefunction(getattr(connection, "run_sync", None)):
            what = "a SQLAlchemy AsyncConnection or AsyncSession"
            raise TypeError(checks.refusal("connection", connection, what, "Give a blocking one to Client."))
        done: T = await connection.run_sync(lambda its: work(*args, connection=its, **named))
        return done
