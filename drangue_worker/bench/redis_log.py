"""Commands that reach one database of a Redis, seen by MONITOR: which command, and of a publication to whom."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from types import TracebackType
from typing import Any, Self

import redis

# Connecting, waiting for news, and looking at the server: none of it is a step's.
LEFT_OUT = frozenset(
    (
        *("AUTH", "CLIENT", "COMMAND", "CONFIG", "ECHO", "HELLO", "INFO", "MONITOR", "PING", "QUIT", "RESET", "SELECT"),
        *("PSUBSCRIBE", "PUNSUBSCRIBE", "SUBSCRIBE", "UNSUBSCRIBE"),
    )
)
BY_TIME = ("celeryev/worker", "celery.pidbox", "reply.celery.pidbox")  # heartbeats and remote control
END_S = 10.0


class RedisLog:
    """Counts while the block runs; `read` once, before it ends."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, decode_responses=True)
        self._database = int(self._client.connection_pool.connection_kwargs.get("db") or 0)
        self._counts: Counter[tuple[int, str]] = Counter()
        self._end = secrets.token_hex(8)
        self._monitor: Any = self._client.monitor()  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._listen, name="redis-log", daemon=True)

    def __enter__(self) -> Self:
        self._monitor.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            self._finish()
        self._monitor.__exit__(kind, error, trace)
        self._client.close()

    def read(self) -> Counter[tuple[int, str]]:
        """How often each command came, by the client's port; PUBLISH is told apart by what its channel is for."""
        self._finish()
        return self._counts

    def _finish(self) -> None:
        self._client.echo(self._end)  # MONITOR is in order: what came before it has been counted when it is seen
        self._thread.join(END_S)

    def _listen(self) -> None:
        for seen in self._monitor.listen():
            words = str(seen["command"]).split(maxsplit=2)
            name = words[0].upper()
            if name == "ECHO" and words[1] == self._end:
                return
            if seen["db"] != self._database or seen["client_type"] == "lua" or name in LEFT_OUT:
                continue
            if name == "PUBLISH" and any(part in words[1] for part in BY_TIME):
                continue
            shown = f"PUBLISH {words[1].partition(':')[0]}" if name == "PUBLISH" else name
            self._counts[int(seen["client_port"] or 0), shown] += 1
