"""Commands as a person starts them: a process of its own, an environment of its own, and what it printed.

What a test starts here it also ends, by process id. Nothing in here imports the code under test: it is only run.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.kit import starter
from tests.kit.fleet import ROOT, wait_until

PATIENCE_S = 60.0
FOREIGN = ("DRANGUE_", "OPENAI_", "FLOWER_", "CELERY_")


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended: its exit code, and what it wrote where."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed for another program."""
        return json.loads(self.out)

    def one_line(self) -> str:
        """The one line that it had to say, with exit code 2; everything else is a failure of the test."""
        assert (self.code, self.out) == (2, ""), self
        assert "Traceback" not in self.err, self.err
        assert len(self.err.splitlines()) == 1, self.err
        assert self.err.startswith("drangue: "), self.err
        assert not re.search(r"[.?!]\. ", self.err), f"a sentence that ends twice: {self.err}"
        return self.err


def drangue(*arguments: str) -> list[str]:
    """The command line of `drangue`."""
    return [sys.executable, "-m", "drangue_worker.cli", *arguments]


def celery_worker(*options: str) -> list[str]:
    """The command line of a plain Celery worker."""
    return [sys.executable, "-m", "celery", "-A", "drangue_worker", "worker", *options]


def environment(*paths: Path, **variables: str) -> dict[str, str]:
    """This machine's environment without what the suite's own surroundings say of drangue, and with `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))), **variables}


def run(command: Sequence[str], env: dict[str, str], cwd: Path, timeout_s: float = PATIENCE_S) -> Done:
    """Run a command to its end; a Python program where the libraries that it is going to import are loaded already."""
    if starter.takes(command, env):
        done = starter.run(command, env, cwd, timeout_s)
    else:
        done = subprocess.run(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True, slots=True)
class Console:
    """`drangue`, typed in one place: `console("runs", "--json", DRANGUE_LEASE_S="x")`."""

    env: dict[str, str]
    cwd: Path

    def __call__(self, *arguments: str, **variables: str) -> Done:
        return run(drangue(*arguments), {**self.env, **variables}, self.cwd)


@dataclass(frozen=True, slots=True)
class Running:
    """A command that is at work. Its output goes to a file, so that nobody has to read it while it works."""

    process: subprocess.Popen[bytes]
    output: Path
    family: Family

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """All it wrote so far."""
        return self.output.read_text(errors="replace")

    def waits_to_say(self, text: str) -> None:
        """Return when it has said so. AssertionError with what it said instead when it ends or takes too long."""

        def said() -> bool:
            assert self.process.poll() is None or text in self.said(), f"ended: {self.said()}"
            return text in self.said()

        wait_until(said, PATIENCE_S, f"{text!r} from {self.process.args!r}")

    def interrupt(self) -> int:
        """Ctrl-C as a terminal sends it, to the whole foreground group; returns the exit code."""
        self.family.add(self.pid)
        os.killpg(self.pid, signal.SIGINT)
        return self.process.wait(PATIENCE_S)

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.family.add(self.pid)
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """SIGKILL, to this process alone."""
        self.family.add(self.pid)
        self.process.kill()
        self.process.wait()


@contextmanager
def running(command: Sequence[str], env: dict[str, str], cwd: Path, output: Path) -> Iterator[Running]:
    """A command that runs as long as the block, unless the block ends it; its descendants end with it."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that `interrupt` reaches this command's group and not the suite's
        )
    started = Running(process, output, Family())
    try:
        yield started
    finally:
        try:
            started.terminate()
        except subprocess.TimeoutExpired:
            started.kill()
        started.family.end()


class Family:
    """Processes that belong together, known by id and start time: an id alone may be somebody else's later."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def add(self, pid: int) -> None:
        """Take in all descendants of a process, not the process itself."""
        for child in children_of(pid):
            started = _started(child)
            if started:
                self._known[child] = started
            self.add(child)

    def __len__(self) -> int:
        return len(self._known)

    def left(self) -> dict[int, str]:
        """Those that still run, with their command lines."""
        return {pid: command_of(pid) for pid, started in self._known.items() if _started(pid) == started}

    def end(self) -> None:
        """Kill those that are left."""
        for pid in self.left():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def messages_in(redis_url: str) -> str:
    """Everything that Redis holds, each message of Celery's with its body decoded."""
    found: list[str] = []
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter():
            found.append(key.decode())
            match client.type(key):
                case b"list":
                    found += [_readable(json.loads(message)) for message in client.lrange(key, 0, -1)]
                case b"hash":
                    # Celery keeps what a worker has fetched as [message, exchange, routing key].
                    found += [_readable(json.loads(value)[0]) for value in client.hvals(key)]
                case b"zset":
                    found += [member.decode() for member in client.zrange(key, 0, -1)]
                case b"set":
                    found += [member.decode() for member in client.smembers(key)]
                case kind:
                    found.append(f"{kind!r}: {client.dump(key)!r}")
    return "\n".join(found)


def _readable(message: dict[str, Any]) -> str:
    return json.dumps({**message, "body": base64.b64decode(message["body"]).decode()})


def children_of(pid: int) -> list[int]:
    """The process ids of a process's children, whichever of its threads started them."""
    found: list[int] = []
    for place in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, place.read_text().split())
        except OSError:
            continue  # it ended while we looked
    return found


def command_of(pid: int) -> str:
    """The command line of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in the kernel's own count; empty when it has ended or only waits to be buried."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else numbers[18]
