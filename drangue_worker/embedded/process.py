"""One server process of a folder: launched, locked, logged, waited for and ended, whichever server it is.

The invariant: a server's lock is held for as long as one of its processes lives, and the server is told to end when the
process that started it dies (on Linux).

It deliberately watches and restarts nothing, and it knows no server's words: `postgres` and `redis` say what to run,
how to ask whether it answers, and which signals end it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from drangue_worker.embedded.errors import OWN_SERVERS, EmbeddedError

# Below the range from which systems number outgoing connections: there, a client that calls on a stopped server can be
# given the server's own port, and then talks to itself and keeps the port.
PORTS = range(15000, 30000)
PORT_ATTEMPTS = 5
START_S = 60.0  # enough for PostgreSQL to go through its log after a crash
LEAVE_S = 0.5  # for a server that its parent's death has told to end
POLL_S = 0.01
LOG_BYTES = 1_000_000  # a log longer than this begins anew at the next start
LOG_LINES = 15  # of a log, in an error

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


class Server:
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
        """The program and its arguments, without a password. Asked again when the port has changed."""
        raise NotImplementedError

    def config(self) -> bytes:
        """What the program reads from its standard input; on a command line everyone would see a password."""
        return b""

    def answers(self) -> bool:
        """Whether it can be used already. Asked again and again while it starts."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """The id of its first process while that runs."""
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
        """Return when it has ended, or has been given every signal and its time. Repeating is safe."""
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
        note_pid(lock, process.pid)
        assert process.stdin is not None
        try:
            with process.stdin as stdin:
                stdin.write(config)
        except BrokenPipeError:
            pass  # it has ended already, and its log says why
        return process

    def failed(self, how: str) -> EmbeddedError:
        """The error to raise: `how` completes "The local <name> ...", and the end of the log says why."""
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


def note_pid(lock: int, pid: int) -> None:
    """Write into a lock file who is to be told, or named, when the lock cannot be had."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(pid).encode(), 0)


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
