"""The doorbell: a ring when a run has moved, so that whoever waits need not ask every moment.

A ring says "look now" and nothing else. Rings are lost when nobody listens or Redis is away, so everyone who waits also
looks by itself: at a run once a second, at what waits for people every five. Nothing may depend on hearing one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.exceptions import RedisError
from redis.retry import Retry

MOVED = "drangue:moved:"
APPROVALS = "drangue:approvals"
POLL_S = 1.0
APPROVALS_POLL_S = 5.0
# Of every connection by which somebody waits. Whoever waits holds one, and a library's own ceiling is 100.
LIMITS: dict[str, Any] = {"socket_timeout": 5, "socket_connect_timeout": 3, "max_connections": 10_000}


class Doorbell:
    """Rings and listens. Safe from any thread and after a fork; without a URL it is silent and waits by the clock."""

    def __init__(self, redis_url: str) -> None:
        self._redis = (
            # No retries: a ring that fails is not worth a wait, and whoever listens looks by itself.
            redis.Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0), **LIMITS) if redis_url else None
        )

    def ring(self, moved: Sequence[str], waiting: Sequence[str] = ()) -> None:
        """Ring for runs whose status changed, and announce those that wait for a person; in one round trip."""
        rings = [(APPROVALS, run_id) for run_id in waiting] + [(MOVED + run_id, "moved") for run_id in moved]
        if self._redis is None or not rings:
            return
        try:
            if len(rings) == 1:
                self._redis.publish(*rings[0])
                return
            with self._redis.pipeline(transaction=False) as together:
                for channel, text in rings:
                    together.publish(channel, text)
                together.execute()
        except (RedisError, OSError):
            return  # whoever waits looks by itself within POLL_S

    @contextmanager
    def listen(self, run_id: str) -> Iterator[Listener]:
        """Hear the rings of one run from here on; look at the run once after entering, not before."""
        listener = Listener(self._redis, MOVED + run_id)
        try:
            yield listener
        finally:
            listener.close()

    @contextmanager
    def listen_approvals(self) -> Iterator[LastingListener]:
        """Hear that runs wait for people; look after each `wait`, the first one too."""
        listener = LastingListener(self._redis, APPROVALS)
        try:
            yield listener
        finally:
            listener.close()

    def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            self._redis.close()


class Listener:
    """One subscription; `wait` returns at a ring or after at most `poll_s` seconds."""

    def __init__(self, client: redis.Redis | None, channel: str, poll_s: float = POLL_S) -> None:
        self._poll_s = poll_s
        self._pubsub: PubSub | None = None
        if client is not None:
            self._pubsub = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
            try:
                self._pubsub.subscribe(channel)
            except (RedisError, OSError):
                self.close()

    @property
    def hears(self) -> bool:
        """Whether it is subscribed, as far as it knows; else it goes by the clock."""
        return self._pubsub is not None

    def wait(self, at_most_s: float) -> None:
        """Return at the next ring, or when min(at_most_s, poll_s) seconds are over."""
        deadline = time.monotonic() + max(0.0, min(at_most_s, self._poll_s))
        if self._pubsub is not None:
            try:
                while (left := deadline - time.monotonic()) > 0:
                    if self._pubsub.get_message(timeout=left) is not None:
                        while self._pubsub.get_message(timeout=0) is not None:
                            pass  # of a burst of rings one is enough
                        return
                return
            except (RedisError, OSError):
                self.close()
        time.sleep(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End the subscription."""
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None


class LastingListener:
    """Hears a channel for days: it subscribes with the first wait, and anew where Redis was away."""

    def __init__(self, client: redis.Redis | None, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._listener = Listener(None, channel)

    def wait(self, at_most_s: float) -> None:
        """Return at the next ring, or when min(at_most_s, APPROVALS_POLL_S) seconds are over.

        At once where it has just subscribed: what was announced before was not heard.
        """
        began = time.monotonic()
        if not self._listener.hears:
            self._listener = Listener(self._client, self._channel, APPROVALS_POLL_S)
            if self._listener.hears:
                return
        self._listener.wait(at_most_s - (time.monotonic() - began))

    def close(self) -> None:
        """End the subscription."""
        self._listener.close()
