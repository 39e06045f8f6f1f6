"""Leases: a claim lives as long as the event loop that does its work.

One renewal for all steps held, every third of a lease, from the loop itself: a loop that stands still loses its leases,
which is right. A step whose claim was taken over is cancelled; it must write nothing. One whose turn was ended from
outside is cancelled as well, and records that: it is asked about once a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from drangue_client.errors import DatabaseUnavailable
from drangue_client.settings import Settings
from drangue_client.store.port import Log
from drangue_client.store.values import Ask
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.leases")

HALT_S = 1.0


class Lease:
    """One held claim. `lost` is true once it is somebody else's, to hold or to give back: then nothing is written.

    `halted` is true once the turn is over, where `may_stop` let the work be stopped for that.
    """

    def __init__(self, ask: Ask, task: asyncio.Task[Any], may_stop: Callable[[], bool]) -> None:
        self.ask = ask
        self.task = task
        self.may_stop = may_stop
        self.lost = False
        self.halted = False


class Leases:
    """The claims this process holds on one event loop."""

    def __init__(self, log: Log, settings: Settings, database: Callable[..., Awaitable[Any]]) -> None:
        self._log = log
        self._settings = settings
        self._database = database
        self._held: dict[str, Lease] = {}
        self._first: asyncio.TimerHandle | None = None  # most work is done before anybody has to ask about it
        self._beat: asyncio.Task[None] | None = None

    @contextmanager
    def hold(self, ask: Ask, task: asyncio.Task[Any], may_stop: Callable[[], bool] = lambda: True) -> Iterator[Lease]:
        """Keep a claim alive inside the block; `task` is cancelled if it is lost, or if its turn is over."""
        lease = Lease(ask, task, may_stop)
        self._held[ask.token] = lease
        if self._first is None and (self._beat is None or self._beat.done()):
            soon_s = min(HALT_S, self._settings.renew_s)
            self._first = asyncio.get_running_loop().call_later(soon_s, self._start, time.monotonic())
        try:
            yield lease
        finally:
            del self._held[ask.token]
            if not self._held:
                self._stop()

    def hand_over(self) -> list[Ask]:
        """The claims of all work that is not done yet: from here on they are the caller's to give back, all at once."""
        undone = [lease for lease in self._held.values() if not lease.task.done()]
        for lease in undone:
            lease.lost = True
        return [lease.ask for lease in undone]

    def _start(self, claimed_at: float) -> None:
        self._first = None
        self._beat = asyncio.get_running_loop().create_task(self._keep(claimed_at))

    def _stop(self) -> None:
        for waiting in (self._first, self._beat):
            if waiting is not None:
                waiting.cancel()
        self._first = self._beat = None  # the next claim starts another: a cancelled one is not done yet

    async def _keep(self, renewed_at: float) -> None:
        left_s = self._settings.renew_s  # when the waiting began that is over now
        while self._held:
            held = dict(self._held)
            try:
                if left_s <= HALT_S:
                    renewed_at = time.monotonic()
                    await self._renew(held)
                await self._halt(held)
            except DatabaseUnavailable as error:
                log.warning("renewal_failed", error=str(error))
            except Exception:
                log.exception("renewal_failed")  # whatever it was, the next renewal may succeed and must be tried
            left_s = renewed_at + self._settings.renew_s - time.monotonic()
            await asyncio.sleep(max(0.0, min(HALT_S, left_s)))

    async def _renew(self, held: dict[str, Lease]) -> None:
        kept = await self._database(self._log.renew, [lease.ask for lease in held.values()], self._settings.lease_s)
        for token, lease in held.items():
            if token not in kept and token in self._held and not lease.task.done():  # else it is being recorded
                log.warning("claim_lost", run_id=lease.ask.run_id, step=lease.ask.step)
                lease.lost = True
                lease.task.cancel()

    async def _halt(self, held: dict[str, Lease]) -> None:
        halted = await self._database(self._log.halted, [lease.ask for lease in held.values()])
        for token in halted & self._held.keys():
            lease = held[token]
            if not lease.halted and not lease.task.done() and lease.may_stop():
                log.info("step_halted", run_id=lease.ask.run_id, step=lease.ask.step)
                lease.halted = True
                lease.task.cancel()
