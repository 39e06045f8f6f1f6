"""Child processes of a command: started together, started again when one dies, stopped together.

`drangue worker`, `drangue dev`, the demo and the tests run worker processes through this. A child is told whose child
it is and ends with its parent, however that ends (on Linux).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.supervisor")

UNUSABLE = 2  # the exit code of a child that another start would not mend
STOP_SLACK_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 5.0  # a child that ran this long does not fail at its start, over and over

FOLLOW = """
import os, signal, sys
from drangue_worker.supervisor import follow_parent
follow_parent(int(sys.argv[1]), signal.SIGKILL)
os.execv(sys.argv[2], sys.argv[2:])
"""


def follow_parent(parent: int, on_death: signal.Signals = signal.SIGTERM) -> None:
    """Ask to be sent `on_death` when the parent ends. Exits at once if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, on_death)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit(0)


def worker_command(pool: str, *options: str) -> list[str]:
    """The command line of one worker pool as a child of this process."""
    return [sys.executable, "-m", "drangue_worker.cli", "worker", pool, "--parent", str(os.getpid()), *options]


def following(command: Sequence[str]) -> list[str]:
    """A command line of another program, made to end with this process.

    By SIGKILL: it holds nothing worth saving, and Flower was seen to stay after a SIGTERM when Redis had gone first.
    """
    return [sys.executable, "-c", FOLLOW, str(os.getpid()), *command]


@dataclass
class Child:
    """One running program. `process.pid` is whom to signal; `starts` counts how often it was started."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes]
    starts: int = 1
    started_at: float = field(default_factory=time.monotonic)
    pause_s: float = FIRST_PAUSE_S


@dataclass
class Supervisor:
    """Runs children until told to stop. `env` is added to this process's environment, `log_folder` takes the output."""

    env: Mapping[str, str] = field(default_factory=dict)
    log_folder: Path | None = None
    grace_s: float = 20.0
    children: dict[str, Child] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._news: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._told: list[int] = []  # the signals so far
        self._running = False

    def heed_signals(self) -> None:
        """From here on SIGTERM and SIGINT end `run`, and at the next `check` what is before it; a second one at once.

        The first is noted and not raised: what is raised in a `__del__` or a weakref's callback is dropped by Python.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell)

    def check(self) -> None:
        """Raise SystemExit where a signal said to end."""
        if self._told:
            raise SystemExit(128 + self._told[0])

    def start(self, name: str, command: Sequence[str]) -> Child:
        """Start a program under a name of its own; call from a thread that outlives it."""
        child = Child(name, command, self._spawn(name, command))
        self.children[name] = child
        self._watch(child)
        return child

    def run(self) -> int:
        """Keep the children running until SIGTERM or SIGINT, then stop them. Returns an exit code.

        A child that ends by itself is started again, after a pause that doubles up to 30 s; one that says at its
        first start that its settings cannot work (exit code 2) ends everything with that code.
        """
        self.heed_signals()
        self._running = True
        code = 0
        while True:
            kind, value = self._news.get()
            if kind == "signal":
                break
            child: Child = value
            if kind == "restart":  # here, on the thread that children are bound to, not on the timer's
                child.process = self._spawn(child.name, child.command)
                child.starts += 1
                child.started_at = time.monotonic()
                self._watch(child)
                continue
            if child.process.returncode == UNUSABLE and child.starts == 1:
                code = UNUSABLE
                break
            log.warning("child_ended", child=child.name, code=child.process.returncode)
            self._restart_later(child)
        self.stop()
        return code

    def stop(self) -> None:
        """Terminate every child and wait; kill what has not ended `grace_s` seconds and some slack later, or when a
        second signal says that nobody wants to wait."""
        for child in self.children.values():
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + self.grace_s + STOP_SLACK_S
        while any(child.process.poll() is None for child in self.children.values()) and len(self._told) < 2:
            try:
                self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                break
        for child in self.children.values():
            if child.process.poll() is None:
                log.warning("child_killed", child=child.name)
                child.process.kill()
                child.process.wait()
        self.children.clear()

    def _tell(self, number: int, _frame: object) -> None:
        self._told.append(number)
        self._news.put(("signal", number))
        if len(self._told) > 1 and not self._running:
            self.check()

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        output: IO[bytes] | None = None
        if self.log_folder is not None:
            self.log_folder.mkdir(parents=True, exist_ok=True)
            output = (self.log_folder / f"{name}.log").open("ab")
        try:
            return subprocess.Popen(
                command,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,  # a Ctrl-C is for the parent, who stops its children in order
            )
        finally:
            if output is not None:
                output.close()

    def _watch(self, child: Child) -> None:
        process = child.process

        def wait() -> None:
            process.wait()
            if self.children.get(child.name) is child:
                self._news.put(("ended", child))

        threading.Thread(target=wait, name=f"watch-{child.name}", daemon=True).start()

    def _restart_later(self, child: Child) -> None:
        def restart() -> None:
            self._news.put(("restart", child))

        if time.monotonic() - child.started_at > STEADY_S:
            child.pause_s = FIRST_PAUSE_S
        timer = threading.Timer(child.pause_s, restart)
        child.pause_s = min(LONGEST_PAUSE_S, 2 * child.pause_s)
        timer.daemon = True
        timer.start()
