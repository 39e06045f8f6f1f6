"""The doorbell and the token streams for an event loop: waiting on Redis without a thread.

As in `signals` and `tokens`, whatever Redis does or does not say, whoever waits looks by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import redis.asyncio
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from drangue_client.events import Event
from drangue_client.wire.signals import APPROVALS, APPROVALS_POLL_S, LIMITS, MOVED, POLL_S
from drangue_client.wire.tokens import BEGINNING, MOST_S, READ_AT_ONCE, TOKENS, block_ms, pieces_of


class AsyncSignals:
    """What is heard of runs through Redis. Belongs to the event loop it is first used in."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0), **LIMITS)

    @asynccontextmanager
    async def listen(self, run_id: str) -> AsyncIterator[AsyncListener]:
        """Hear the rings of one run from here on; look at the run once after entering, not before."""
        listener = AsyncListener(self._redis.pubsub(ignore_subscribe_messages=True))
        try:
            await listener.subscribe(MOVED + run_id)
            yield listener
        finally:
            await listener.close()

    @asynccontextmanager
    async def listen_approvals(self) -> AsyncIterator[AsyncLastingListener]:
        """Hear that runs wait for people; look after each `wait`, the first one too."""
        listener = AsyncLastingListener(self._redis, APPROVALS)
        try:
            yield listener
        finally:
            await listener.close()

    async def read(self, run_id: str, after: str = BEGINNING, wait_s: float = 0.0) -> tuple[list[Event], str]:
        """The pieces of answers after a place, and the place behind them. As `TokenStream.read`."""
        began = time.monotonic()
        try:
            with _heeding_cancels():
                wanted: Any = {TOKENS + run_id: after}
                answer: Any = await self._redis.xread(wanted, count=READ_AT_ONCE, block=block_ms(wait_s))
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
    """One subscription; `wait` returns at a ring or after at most `poll_s` seconds."""

    def __init__(self, pubsub: PubSub, poll_s: float = POLL_S) -> None:
        self._poll_s = poll_s
        self._pubsub: PubSub | None = pubsub

    @property
    def hears(self) -> bool:
        """Whether it is subscribed, as far as it knows; else it goes by the clock."""
        return self._pubsub is not None

    async def subscribe(self, channel: str) -> None:
        """Hear the rings of a channel, or, where Redis is away, go by the clock."""
        assert self._pubsub is not None
        try:
            with _heeding_cancels():
                await self._pubsub.subscribe(channel)
        except (RedisError, OSError):
            await self.close()

    async def wait(self, at_most_s: float) -> None:
        """Return at the next ring, or when min(at_most_s, poll_s) seconds are over."""
        deadline = time.monotonic() + max(0.0, min(at_most_s, self._poll_s))
        if self._pubsub is not None:
            try:
                while (left := deadline - time.monotonic()) > 0:
                    with _heeding_cancels():
                        message = await self._pubsub.get_message(timeout=left)
                        while message is not None and await self._pubsub.get_message(timeout=0) is not None:
                            pass  # of a burst of rings one is enough
                    if message is not None:
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


class AsyncLastingListener:
    """Hears a channel for days. As `LastingListener`."""

    def __init__(self, client: redis.asyncio.Redis, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._listener: AsyncListener | None = None

    async def wait(self, at_most_s: float) -> None:
        """Return at the next ring, or when the time is over; at once where it has just subscribed."""
        began = time.monotonic()
        if self._listener is None or not self._listener.hears:
            pubsub = self._client.pubsub(ignore_subscribe_messages=True)
            self._listener = AsyncListener(pubsub, APPROVALS_POLL_S)
            await self._listener.subscribe(self._channel)
            if self._listener.hears:
                return
        await self._listener.wait(at_most_s - (time.monotonic() - began))

    async def close(self) -> None:
        """End the subscription."""
        if self._listener is not None:
            await self._listener.close()


@contextmanager
def _heeding_cancels() -> Iterator[None]:
    """Raise a cancellation of this task that came inside and was lost, as if it had come at the end.

    redis sends commands within `asyncio.wait_for`, which before Python 3.12 forgets one that comes as the sending ends:
    whoever cancelled a wait would wait for ever for it to have ended.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:  # also where Redis failed meanwhile, which the caller gets over
        if task and task.cancelling() > before:
            raise asyncio.CancelledError
