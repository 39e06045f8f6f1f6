"""What a benchmark stands on: servers and workers of its own, in a temporary folder, gone at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from drangue_client.errors import DrangueError
from drangue_client.settings import PREFIX
from drangue_client.store.migrate import migrate
from drangue_worker.bench.workers import Workers
from drangue_worker.embedded import EmbeddedError, Servers
from drangue_worker.embedded.root import home_of
from drangue_worker.supervisor import Supervisor

RAW_DATABASE = "bench_raw"


@dataclass(frozen=True)
class Stack:
    """Where everything is. The bare chain has a database of its own on the same Postgres, and of the same Redis another
    database."""

    folder: Path
    servers: Servers
    workers: Workers
    database_url: str
    redis_url: str
    raw_database_url: str
    raw_redis_url: str

    @property
    def postgres_log(self) -> Path:
        """What Postgres writes, which is where statements are counted."""
        return self.servers.folder / "postgres.log"


@contextmanager
def stack(logs: Path | None = None) -> Iterator[Stack]:
    """Start the servers. Raises DrangueError where that fails; call it on the main thread.

    No setting of this process's environment is used: a benchmark says what it measures.
    """
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    supervisor = Supervisor()
    supervisor.heed_signals()
    with ExitStack() as exits:
        folder = Path(
            exits.enter_context(tempfile.TemporaryDirectory(prefix="drangue-bench-", ignore_cleanup_errors=True))
        )
        servers = Servers(folder / "servers")
        exits.callback(_remove, servers)
        try:
            addresses = servers.start()
        except EmbeddedError as error:
            raise DrangueError(str(error)) from error
        supervisor.check()
        migrate(addresses.database_url)
        with psycopg.connect(addresses.database_url, autocommit=True) as connection:
            connection.execute(f"create database {RAW_DATABASE}")
        supervisor.log_folder = logs or folder / "logs"
        supervisor.env = {"TMPDIR": str(folder)}
        workers = Workers(supervisor)
        exits.callback(workers.stop)
        yield Stack(
            folder,
            servers,
            workers,
            addresses.database_url,
            addresses.redis_url,
            make_conninfo(addresses.database_url, dbname=RAW_DATABASE),
            addresses.redis_url.removesuffix("/0") + "/1",
        )


def _remove(servers: Servers) -> None:
    servers.stop()
    shutil.rmtree(home_of(servers.folder), ignore_errors=True)
