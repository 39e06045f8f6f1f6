"""Token streams: the pieces of answers that are being written, for whoever watches a run from another process.

One capped Redis stream per run that was submitted to be watched, kept for an hour after its last piece. It is a view
and never a source: what is missing here, or comes twice, is whole and once in the log.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from drangue_client.events import Event, delta
from drangue_client.wire.signals import LIMITS

TOKENS = "drangue:tokens:"
KEPT_S = 3600
KEPT_PIECES = 20_000
BEGINNING = "0-0"
MOST_S = 4.0
READ_AT_ONCE = 1000

Entry = tuple[bytes, dict[bytes, bytes]]


class TokenStream:
    """Writes and reads token streams. Safe from any thread and after a fork; without a URL there is nothing to read."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0), **LIMITS) if redis_url else None

    def publish(self, run_id: str, pieces: Sequence[Event]) -> None:
        """Append `model_delta` events to a run's stream. Raises RedisError: losing a piece harms nobody."""
        if self._redis is None or not pieces:
            return
        key = TOKENS + run_id
        with self._redis.pipeline(transaction=False) as pipeline:
            for piece in pieces:
                fields: Any = {name: piece.payload[name] for name in ("text", "step", "attempt", "index")}
                pipeline.xadd(key, fields, maxlen=KEPT_PIECES, approximate=True)
            pipeline.expire(key, KEPT_S)
            pipeline.execute()

    def read(self, run_id: str, after: str = BEGINNING, wait_s: float = 0.0) -> tuple[list[Event], str]:
        """The pieces after a place, and the place behind them. Without any, wait for one up to `wait_s` (at most 4) s.

        A Redis that is away looks like a stream without pieces.
        """
        began = time.monotonic()
        try:
            found = self._read(run_id, after, wait_s)
        except (RedisError, OSError):
            found = []
        if not found:
            waited_s = time.monotonic() - began
            time.sleep(max(0.0, min(wait_s, MOST_S) - waited_s))  # also where there is no Redis to wait for
            return [], after
        return pieces_of(found)

    def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            self._redis.close()

    def _read(self, run_id: str, after: str, wait_s: float) -> list[Entry]:
        if self._redis is None:
            return []
        answer: Any = self._redis.xread({TOKENS + run_id: after}, count=READ_AT_ONCE, block=block_ms(wait_s))
        found: list[Entry] = answer[0][1] if answer else []
        return found


def block_ms(wait_s: float) -> int | None:
    """How long a read shall wait at the server: no longer than a socket does."""
    return max(1, int(min(wait_s, MOST_S) * 1000)) if wait_s > 0 else None


def pieces_of(found: Sequence[Entry]) -> tuple[list[Event], str]:
    """The pieces among the entries of a stream, at least one, and the place behind them."""
    return [piece for _, fields in found if (piece := _piece(fields))], found[-1][0].decode()


def _piece(fields: Mapping[bytes, bytes]) -> Event | None:
    """A piece as it was written; None for what somebody else wrote there."""
    try:
        place = (int(fields[name]) for name in (b"step", b"attempt", b"index"))
        return delta(fields[b"text"].decode(), *place)
    except (KeyError, ValueError):
        return None
