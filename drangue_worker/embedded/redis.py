"""Redis for one folder: a queue that lives as long as its process.

The invariant: it is empty whenever it starts. It chooses no program (`programs` does) and remembers neither port nor
password (`servers` does).
"""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drangue_worker.embedded.process import Server


class Redis(Server):
    """The process, which finds nothing of an earlier one."""

    name = "redis"
    endings = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

    def __init__(self, folder: Path, spawner: ThreadPoolExecutor, known: dict[str, Any], program: Path) -> None:
        super().__init__(folder, spawner, known)
        self.program = program

    def prepare(self, lock: int) -> None:
        # Written only if a client asks for it, but then read by every later start.
        (self.folder / "dump.rdb").unlink(missing_ok=True)

    def command(self) -> list[str]:
        return [str(self.program), "-"]

    def config(self) -> bytes:
        lines = (
            "bind 127.0.0.1",
            f"port {self.port}",
            f"requirepass {self.password}",
            'save ""',
            "appendonly no",
            "daemonize no",
            f"dir {json.dumps(str(self.folder), ensure_ascii=False)}",
        )
        return os.fsencode("\n".join(lines) + "\n")

    def answers(self) -> bool:
        import redis  # here, so that its loading falls into the time the server takes to start
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        once = Retry(NoBackoff(), 0)
        with redis.Redis("127.0.0.1", self.port, password=self.password, socket_timeout=1, retry=once) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False
