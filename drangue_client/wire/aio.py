"""The doorbell and the token streams for an event loop: waiting on Redis without a thread.

As in `signals` and `tokens`, whatever Redis does or does not say, whoever waits looks by itself once a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import redis.asyncio
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from drangue_client.events import Event
from drangue_client.wire.signals import MOVED, POLL_S
from drangue_client.wire.tokens import BEGINNING, MOST_S, READ_AT_ONCE, TOKENS, block_ms, pieces_of


class AsyncSignals:
    """What is heard of runs through Redis. Belongs to the event loop it is first used in."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(
            redis_url, socket_timeout=5, socket_connect_timeout=3, retry=Retry(NoBackoff(), 0)
        )

    @asynccontextmanager
    async def listen(self, run_id: str) -> AsyncIterator[AsyncListener]:
        """Hear the rings of one run from here on; look at the run once after entering, not before."""
        listener = AsyncListener(self._redis.pubsub(ignore_subscribe_messages=True))
        try:
            await listener.subscribe(MOVED + run_id)
            yield listener
        finally:
            await listener.close()

    async def read(self, run_id: str, after: str = BEGINNING, wait_s: float = 0.0) -> tuple[list[Event], str]:
        """The pieces of answers after a place, and the place behind them. As `TokenStream.read`."""
        began = time.monotonic()
        try:
            answer: Any = await self._redis.xread({TOKENS + run_id: after}, count=READ_AT_ONCE, block=block_ms(wait_s))
        except (RedisError, OSError):
            answer = None
        if answer:
            return pieces_of(answer[0][1])
        waited_s = time.monotonic() - began
        await asyncio.sleep(max(0.0, min(wait_s, MOST_S) - waited_s))
        return [], after

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


class AsyncListener:
    """One subscription; `wait` returns at a ring or after at most POLL_S."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub: PubSub | None = pubsub

    async def subscribe(self, channel: str) -> None:
        """Hear the rings of a channel, or, where Redis is away, go by the clock."""
        assert self._pubsub is not None
        try:
            await self._pubsub.subscribe(channel)
        except (RedisError, OSError):
            await self.close()

    async def wait(self, at_most_s: float) -> None:
        """Return at the next ring, or when min(at_most_s, POLL_S) seconds are over."""
        deadline = time.monotonic() + max(0.0, min(at_most_s, POLL_S))
        if self._pubsub is not None:
            try:
                while (left := deadline - time.monotonic()) > 0:
                    if await self._pubsub.get_message(timeout=left) is not None:
                        return
                return
            except (RedisError, OSError):
                await self.close()
        await asyncio.sleep(max(0.0, deadline - time.monotonic()))

    async def close(self) -> None:
        """End the subscription."""
        if self._pubsub is not None:
            with suppress(RedisError, OSError):  # the server drops it with the connection
                await self._pubsub.aclose()  # type: ignore[no-untyped-call]
            self._pubsub = None
