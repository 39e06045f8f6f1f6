"""The two servers of one checkout as one thing: its folder, what is remembered there, and their life together.

The invariant: one process at a time holds a folder, and a start either ends with both servers answering or leaves
nothing running. How a single server is run is for `process`, what it runs for `postgres` and `redis`.
"""

from __future__ import annotations

import fcntl
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from drangue_client.stackfile import Addresses, write_private
from drangue_worker.embedded.errors import OWN_SERVERS, EmbeddedError
from drangue_worker.embedded.postgres import DATABASE, USER, Cluster, Postgres
from drangue_worker.embedded.process import Server, note_pid
from drangue_worker.embedded.programs import find_redis
from drangue_worker.embedded.redis import Redis

STATE = "servers.json"


class Servers:
    """The two servers of one checkout, kept in `folder` (normally the checkout's `.drangue`); nothing is started yet.

    One thread at a time may use it. Keep it for as long as the servers are needed: they end when it is thrown away.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock: int | None = None
        # For PR_SET_PDEATHSIG the end of the thread that forked is the parent's end, so one lives as long as they do.
        self._spawner: ThreadPoolExecutor | None = None
        self._pair: tuple[Postgres, Redis] | None = None

    def start(self) -> Addresses:
        """Start what is not running and return when both servers answer: about a second the first time, less later.

        The first start makes the folder (mode 0700), the database and the passwords; a later one finds them again, and
        the ports if they are still free. Repeating it is safe. Raises EmbeddedError, and then leaves nothing running.
        """
        try:
            self._take_folder()
            postgres, redis = self._pair = self._pair or self._find()
            redis.start()
            postgres.start()
            self._remember(postgres, redis)
        except (OSError, ValueError) as error:
            self.stop()
            raise EmbeddedError(
                f"No servers can be kept in {self.folder}: {error}. Mend that, or, {OWN_SERVERS}"
            ) from error
        except BaseException:
            self.stop()
            raise
        return Addresses(
            database_url=f"postgresql://{USER}:{postgres.password}@127.0.0.1:{postgres.port}/{DATABASE}",
            redis_url=f"redis://:{redis.password}@127.0.0.1:{redis.port}/0",
        )

    def stop(self) -> None:
        """Stop both servers and let go of the folder, in well under a second. Repeating it is safe."""
        for server in self._pair or ():
            server.stop()
        self._pair = None
        if self._spawner is not None:
            self._spawner.shutdown()
            self._spawner = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def data(self) -> Path | None:
        """The folder of the database while started; for root it is not in `folder`."""
        return self._pair[0].cluster.data if self._pair else None

    @property
    def postgres_pid(self) -> int | None:
        """The process id of PostgreSQL's first process while it runs."""
        return self._pair[0].pid if self._pair else None

    @property
    def redis_pid(self) -> int | None:
        """The process id of Redis while it runs."""
        return self._pair[1].pid if self._pair else None

    def start_postgres(self) -> None:
        """Start PostgreSQL again where it was, unless it runs. Raises EmbeddedError, also before the first `start`."""
        self._started()[0].start()

    def stop_postgres(self) -> None:
        """Stop PostgreSQL alone. Repeating is safe. Raises EmbeddedError before the first `start`."""
        self._started()[0].stop()

    def restart_postgres(self) -> None:
        """Stop and start PostgreSQL, at the same port and with the same data. Raises EmbeddedError."""
        self.stop_postgres()
        self.start_postgres()

    def start_redis(self) -> None:
        """Start an empty Redis where it was, unless it runs. Raises EmbeddedError, also before the first `start`."""
        self._started()[1].start()

    def stop_redis(self) -> None:
        """Stop Redis alone; what it held is gone. Repeating is safe. Raises EmbeddedError before the first `start`."""
        self._started()[1].stop()

    def restart_redis(self) -> None:
        """Stop and start Redis, at the same port and empty. Raises EmbeddedError."""
        self.stop_redis()
        self.start_redis()

    def _started(self) -> tuple[Postgres, Redis]:
        if self._pair is None:
            raise EmbeddedError("The local servers have not been started: call `start` first.")
        return self._pair

    def _take_folder(self) -> None:
        if self._lock is not None:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode()
            os.close(lock)
            raise EmbeddedError(
                f"A stack is already running in {self.folder} (process {holder}). Use that one, or stop it first."
            ) from None
        note_pid(lock, os.getpid())
        self._lock = lock

    def _find(self) -> tuple[Postgres, Redis]:
        state = self.folder / STATE
        known: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {}
        program = find_redis()
        cluster = Cluster.of(self.folder, password_known="postgres" in known)
        self._spawner = self._spawner or ThreadPoolExecutor(1, thread_name_prefix="drangue-servers")
        redis = Redis(self.folder, self._spawner, known.get("redis", {}), program)
        postgres = Postgres(self.folder, self._spawner, known.get("postgres", {}), cluster)
        # Before the database is made: one whose password nobody knows would be of no use.
        self._remember(postgres, redis)
        return postgres, redis

    def _remember(self, *servers: Server) -> None:
        known = {server.name: {"port": server.port, "password": server.password} for server in servers}
        write_private(self.folder / STATE, json.dumps(known))
