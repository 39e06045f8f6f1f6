"""What an application with an event loop does about runs that are there. Each method does what the one of `Steering`
does."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from drangue_client import checks
from drangue_client.client import Client
from drangue_client.submission import Submission
from drangue_client.waiting import Asked, Requests, Ring, asked_runs, requests_of, watching
from drangue_client.wire.aio import AsyncSignals

T = TypeVar("T")


class AsyncSteering:
    """The part of an AsyncClient that changes where a run goes."""

    _client: Client
    _signals: AsyncSignals
    _threads: ThreadPoolExecutor

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
