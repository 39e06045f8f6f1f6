"""Python programs, each in a process of its own, without loading the libraries of others once more for each.

One process loads what nobody here wrote, such as SQLAlchemy and the SDKs, and becomes every program by a fork: with the
program's arguments, environment, folder and output, and its own exit code at the end. drangue itself is never loaded in
advance, so what a program imports of it, and when, is the program's own doing.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

LOADED = (
    *("alembic.command", "alembic.script", "anthropic.resources.messages", "celery.app.amqp", "celery.app.control"),
    *(
        "celery.backends.base",
        "click",
        "concurrent.futures.thread",
        "http.server",
        "jsonschema",
        "kombu.transport.redis",
    ),
    *("openai.resources.chat", "psycopg", "pydantic", "redis.asyncio", "sqlalchemy.dialects.postgresql.psycopg"),
    *("sqlalchemy.dialects.sqlite", "structlog", "celery.apps.worker", "celery.bin.worker", "celery.worker.consumer"),
    *("celery.concurrency.prefork", "celery.concurrency.thread", "tenacity", "httpx2", "rich.table"),
)
OWN = ("PYTHONPATH", "PYTHONWARNINGS")  # what a program's environment may say otherwise than ours


def run(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command that `takes` takes to its end, without input. Raises what `subprocess.run` raises of a timeout."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = start(command, env, cwd, out.fileno(), err.fileno())
        try:
            code = started.wait(timeout_s)
        except subprocess.TimeoutExpired:
            started.kill()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, code, out.read(), err.read())


def start(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, out: int, err: int, *, session: bool = False
) -> Forked:
    """Start a command that `takes` takes, with these files for its output; in a `session` of its own if you say so. An
    option `--parent`, whose end a worker follows, means the process that forks it, which ends with this one."""
    own = socket.socket(socket.AF_UNIX)
    with _STARTING:
        address = _address(env.get("PYTHONWARNINGS", ""))
    own.connect(address)
    asked = {"arguments": list(command[1:]), "env": dict(env), "cwd": str(cwd), "session": session}
    what = json.dumps(asked).encode()
    socket.send_fds(own, [len(what).to_bytes(4, "big")], [out, err])
    own.sendall(what)
    return Forked(command, own)


class Forked:
    """A program that was started, with as much of Popen's face as its starters need."""

    def __init__(self, command: Sequence[str], own: socket.socket) -> None:
        self.args = command
        self.returncode: int | None = None
        self._own, self._said = own, own.makefile()
        self.pid = int(self._said.readline())
        self._ended = threading.Event()
        threading.Thread(target=self._hear, name=f"forked-{self.pid}", daemon=True).start()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _hear(self) -> None:
        with self._own, self._said:
            self.returncode = int(self._said.readline() or -signal.SIGKILL)  # nothing is said by a starter that died
        self._ended.set()


def takes(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether a command is such a program, and its environment asks nothing of Python that comes too late."""
    late = {name: value for name, value in env.items() if name.startswith("PYTHON") and name not in OWN}
    odd = [name for name, value in late.items() if os.environ.get(name) != value]
    program = len(command) > 1 and (command[1] in ("-m", "-c") or command[1].endswith(".py"))
    python = shutil.which(command[0], path=env.get("PATH")) == sys.executable
    return sys.platform == "linux" and python and program and not odd


@cache
def _address(warnings: str) -> str:
    """Where the process listens that has loaded the libraries; it ends with this process."""
    address = f"\0drangue-starter-{secrets.token_hex(8)}"
    kept = {name: value for name, value in os.environ.items() if name not in OWN}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        started = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())],
            env={**kept, **({"PYTHONWARNINGS": warnings} if warnings else {})},
            cwd="/",
            stdin=subprocess.PIPE,  # which ends when this process does
            pass_fds=[listener.fileno()],
        )
    atexit.register(_end, started)
    return address


def _end(started: subprocess.Popen[bytes]) -> None:
    """End the process that forks: with its input."""
    assert started.stdin is not None
    started.stdin.close()
    started.wait()


_STARTING = threading.Lock()


def _serve(listener: socket.socket, path: list[str]) -> dict[str, Any]:
    """Fork for everybody who asks, and tell them how it ended. Returns in the forked process, with what it shall be."""
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    asking: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                os._exit(0)
            if key.fd == listener.fileno():
                connection, _ = listener.accept()
                size, outputs, _, _ = socket.recv_fds(connection, 4, 2)
                with connection.makefile("rb") as received:
                    what: dict[str, Any] = json.loads(received.read(int.from_bytes(size, "big")))
                if (pid := os.fork()) == 0:
                    selector.close()
                    for kept in (listener, connection, *(other for _, other in asking.values())):
                        kept.close()
                    for watched in asking:
                        os.close(watched)
                    with open(os.devnull, "rb") as nothing:
                        os.dup2(nothing.fileno(), 0)
                    for number, output in enumerate(outputs, 1):
                        os.dup2(output, number)
                        os.close(output)
                    return {**what, "path": path}
                for output in outputs:
                    os.close(output)
                connection.sendall(b"%d\n" % pid)
                watched = os.pidfd_open(pid)
                asking[watched] = pid, connection
                selector.register(watched, selectors.EVENT_READ)
            else:
                selector.unregister(key.fd)
                os.close(key.fd)
                pid, connection = asking.pop(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                try:
                    connection.sendall(b"%d\n" % code)
                except OSError:
                    pass  # who asked has given up
                connection.close()


def _become(arguments: list[str], env: dict[str, str], cwd: str, path: list[str], session: bool) -> None:
    if session:
        os.setsid()
    if "--parent" in arguments:
        arguments[arguments.index("--parent") + 1] = str(os.getppid())
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    kind, *rest = arguments
    first = {"-m": cwd, "-c": ""}.get(kind, os.path.dirname(os.path.abspath(kind)))
    sys.path[:] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *path]
    importlib.invalidate_caches()
    if kind == "-m":
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    sys.argv[:] = ["-c", *rest[1:]] if kind == "-c" else arguments
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    main.__dict__["__builtins__"] = __builtins__
    if kind != "-c":
        main.__file__ = kind
    source = rest[0] if kind == "-c" else Path(kind).read_text()
    exec(compile(source, "<string>" if kind == "-c" else kind, "exec"), main.__dict__)


def _main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    path = sys.path[1:]
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()
    _become(**_serve(listener, path))


if __name__ == "__main__":
    _main()
