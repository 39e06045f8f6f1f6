"""PostgreSQL for one folder: its database on disk, which programs serve that and as whom, and the process that does.

The invariant: a database is found whole or not at all. One that these programs cannot serve is named and left as it is,
never upgraded; and neither port nor password is remembered here: `servers` does that.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drangue_worker.embedded.errors import OWN_SERVERS, EmbeddedError
from drangue_worker.embedded.process import Server
from drangue_worker.embedded.programs import find_postgres, within_reach
from drangue_worker.embedded.root import choose_account, home_of, make_open, reachable

SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "shared_buffers=64MB",
    "max_connections=200",
    "autovacuum_naptime=5s",  # steps are written twice and deleted, thousands of times a second
)
USER = "drangue"
DATABASE = "drangue"


@dataclass(frozen=True, slots=True)
class Cluster:
    """One database cluster and the programs that serve it."""

    data: Path
    programs: Path
    """The folder with `initdb` and `postgres`."""
    account: pwd.struct_passwd | None
    """Who runs the programs; None for the account of this process."""

    @classmethod
    def of(cls, folder: Path, *, password_known: bool) -> Cluster:
        """The cluster that belongs to `folder`, ready for `create`; root's is elsewhere, at a place named by the path.

        Raises EmbeddedError: no programs, data of another version, no account for root, or data whose password is gone.
        """
        programs, major = find_postgres()
        account = choose_account()
        home = folder if account is None else home_of(folder)
        data = home / "postgres"
        if account is not None:
            if not password_known and not any(folder.glob("postgres.*")):
                # The folder was removed, or a new one is at its place: what it left here is as gone as the rest of it.
                shutil.rmtree(home, ignore_errors=True)
            make_open(home)
            if not reachable(home, account):
                raise EmbeddedError(f"{home} is closed to the account {account.pw_name}. Open it, or {OWN_SERVERS}")
            programs = within_reach(programs, account, home)
        if data.exists():
            if not password_known:
                raise EmbeddedError(
                    f"The password of the database in {data} is gone. Remove that folder to start afresh."
                )
            made_by = (data / "PG_VERSION").read_text().strip()
            if made_by != str(major):
                raise EmbeddedError(
                    f"The database in {data} was made by PostgreSQL {made_by} and {programs} holds PostgreSQL {major}. "
                    f"Remove that folder to start afresh, put PostgreSQL {made_by} first on PATH, or, {OWN_SERVERS}"
                )
        return cls(data, programs, account)

    def create(self, run: Callable[[list[str]], int], password: str) -> bool:
        """Make the cluster unless it is there. False when `initdb` failed; repeating is safe at any point.

        `run` takes a command, runs it to its end as `account` and returns its exit code.
        """
        if self.data.exists():
            return True
        # Under another name until it is whole, so that a start cut short leaves nothing that looks like a database.
        making = self.data.with_name("postgres.new")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        password_file = making / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        if self.account is not None:
            for path in (password_file, making):
                os.chown(path, self.account.pw_uid, self.account.pw_gid)
        options = ["--username", USER, "--auth", "scram-sha-256", "--pwfile", str(password_file)]
        options += ["--encoding", "UTF8", "--locale", "C"]
        if run([str(self.programs / "initdb"), "--pgdata", str(making / "data"), *options]):
            return False
        (making / "data").rename(self.data)
        shutil.rmtree(making)
        return True

    def command(self, port: int) -> list[str]:
        """The command that serves the cluster on 127.0.0.1."""
        settings = [part for setting in (f"port={port}", *SETTINGS) for part in ("-c", setting)]
        return [str(self.programs / "postgres"), "-D", str(self.data), *settings]

    def forget_stale_pid(self) -> None:
        """Remove a process id that a killed server left and another program now has. Call it while no server runs.

        PostgreSQL takes any live process of its own account for a server on the same data, and would refuse to start.
        """
        left = self.data / "postmaster.pid"
        try:
            # Absent on systems without /proc, where PostgreSQL's own judgment stands.
            holder = Path("/proc", left.read_text().split("\n", 1)[0].strip(), "comm").read_text().strip()
        except OSError:
            return
        if holder != "postgres":
            left.unlink(missing_ok=True)

    def answers(self, port: int, password: str) -> bool:
        """Whether the server takes a connection; the first that it takes makes the database."""
        import psycopg  # here, so that its loading falls into the time the server takes to start

        try:
            with psycopg.connect(
                host="127.0.0.1",
                port=port,
                user=USER,
                password=password,
                dbname="postgres",
                autocommit=True,
                connect_timeout=2,
                sslmode="disable",
            ) as connection:
                known = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if known is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.OperationalError:
            return False
        return True


class Postgres(Server):
    """The process that serves one cluster."""

    name = "postgres"
    endings = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))

    def __init__(self, folder: Path, spawner: ThreadPoolExecutor, known: dict[str, Any], cluster: Cluster) -> None:
        super().__init__(folder, spawner, known)
        self.cluster = cluster
        self.account = cluster.account

    def prepare(self, lock: int) -> None:
        if not self.cluster.create(lambda command: self.spawn(lock, command).wait(), self.password):
            raise self.failed("cannot make its database")
        self.cluster.forget_stale_pid()

    def command(self) -> list[str]:
        return self.cluster.command(self.port)

    def answers(self) -> bool:
        return self.cluster.answers(self.port, self.password)
