"""Leases: a claim lives as long as the event loop that does its work.

One renewal for all steps held, every third of a lease, from the loop itself: a loop that stands still loses its leases,
which is right. A step whose claim was taken over is cancelled; it must write nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from drangue_client.errors import DatabaseUnavailable
from drangue_client.settings import Settings
from drangue_client.store.port import Ask, Log
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.leases")


class Lease:
    """One held claim. `lost` is true once it is somebody else's, to hold or to give back: then nothing is written."""

    def __init__(self, ask: Ask, task: asyncio.Task[Any]) -> None:
        self.ask = ask
        self.task = task
        self.lost = False


class Leases:
    """The claims this process holds on one event loop."""

    def __init__(self, log: Log, settings: Settings, database: Callable[..., Awaitable[Any]]) -> None:
        self._log = log
        self._settings = settings
        self._database = database
        self._held: dict[str, Lease] = {}
        self._beat: asyncio.Task[None] | None = None

    @contextmanager
    def hold(self, ask: Ask, task: asyncio.Task[Any]) -> Iterator[Lease]:
        """Keep a claim alive inside the block; `task` is cancelled if it is lost."""
        lease = Lease(ask, task)
        self._held[ask.token] = lease
        if self._beat is None or self._beat.done():
            self._beat = asyncio.get_running_loop().create_task(self._keep())
        try:
            yield lease
        finally:
            del self._held[ask.token]
            if not self._held and self._beat is not None:
                self._beat.cancel()
                self._beat = None  # the next claim starts another: a cancelled one is not done yet

    def hand_over(self) -> list[Ask]:
        """The claims of all work that is not done yet: from here on they are the caller's to give back, all at once."""
        undone = [lease for lease in self._held.values() if not lease.task.done()]
        for lease in undone:
            lease.lost = True
        return [lease.ask for lease in undone]

    async def _keep(self) -> None:
        while self._held:
            await asyncio.sleep(self._settings.renew_s)
            held = dict(self._held)
            try:
                kept = await self._database(
                    self._log.renew, [lease.ask for lease in held.values()], self._settings.lease_s
                )
            except DatabaseUnavailable as error:
                log.warning("renewal_failed", error=str(error))
                continue
            except Exception:
                log.exception("renewal_failed")  # whatever it was, the next renewal may succeed and must be tried
                continue
            for token, lease in held.items():
                if token not in kept and token in self._held:
                    log.warning("claim_lost", run_id=lease.ask.run_id, step=lease.ask.step)
                    lease.lost = True
                    lease.task.cancel()
