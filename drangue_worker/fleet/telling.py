"""Telling: a worker's model calls, shown piece by piece to whoever watches the run from another process.

Pieces that come within a moment go together, so that a fast model costs Redis a few commands per second and not one per
token. A Redis that is away costs the watchers the view, and the call nothing.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from redis.exceptions import RedisError

from drangue_client.events import Event, delta
from drangue_client.store.values import RunRow
from drangue_client.wire.tokens import TokenStream
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.telling")

TOGETHER_S = 0.05  # shorter than anyone who reads along notices
LAST_S = 2.0  # how long the end of a call waits for its last piece to be shown
AWAY_S = 5.0  # how long a Redis that did not answer is left alone


class Telling:
    """The watch of a fleet: it tells of runs that were submitted with `tokens`."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="drangue-tokens")  # that a hanging Redis may fill
        self._away_until = 0.0

    def watch(self, row: RunRow, step: int, attempt: int) -> _Call | None:
        """The watcher of one model call, if its run is to be watched."""
        return _Call(self, row.run_id, step, attempt) if row.overrides.get("tokens") else None

    async def publish(self, run_id: str, piece: Event) -> None:
        """Show one piece, unless Redis did not answer just now."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._away_until:
            return
        try:
            await loop.run_in_executor(self._threads, self._stream.publish, run_id, [piece])
        except (RedisError, OSError) as error:
            self._away_until = loop.time() + AWAY_S
            log.warning("tokens_not_shown", error=str(error))


class _Call:
    def __init__(self, telling: Telling, run_id: str, step: int, attempt: int) -> None:
        self._telling = telling
        self._run_id = run_id
        self._step = step
        self._attempt = attempt
        self._index = 0
        self._texts: list[str] = []
        self._sending: asyncio.Task[None] | None = None
        self._in_order = asyncio.Lock()

    async def say(self, text: str) -> None:
        self._texts.append(text)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._soon())

    async def done(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
        self._sending = asyncio.create_task(self._send())
        # The result does not wait for a Redis that hangs: what is shown late is dropped by who reads.
        await asyncio.wait({self._sending}, timeout=LAST_S)

    async def _soon(self) -> None:
        while self._texts:
            await asyncio.sleep(TOGETHER_S)
            await asyncio.shield(self._send())

    async def _send(self) -> None:
        async with self._in_order:
            text, self._texts = "".join(self._texts), []
            if not text:
                return
            piece = delta(text, self._step, self._attempt, self._index)
            self._index += 1
            await self._telling.publish(self._run_id, piece)
