"""Groups of worker processes of which one is at work and all others stand still.

Stopped, not ended: a group keeps its connections and what it has loaded, and takes no processor time from the others.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from drangue_client.errors import DrangueError
from drangue_worker.supervisor import Child, Supervisor

LET_GO_S = 1.2  # what a stopped worker waits for at Redis is given to nobody after a second


@dataclass
class Workers:
    """The workers of a benchmark. `ended` is asked for with every wait: a worker that died is an error."""

    supervisor: Supervisor
    _parked: set[str] = field(default_factory=set)
    _in_use: set[str] = field(default_factory=set)

    def start(self, name: str, command: list[str], env: Mapping[str, str]) -> Child:
        """Start one worker with variables of its own."""
        common, self.supervisor.env = self.supervisor.env, {**self.supervisor.env, **env}
        try:
            child = self.supervisor.start(name, command)
        finally:
            self.supervisor.env = common
        self._in_use.add(name)
        return child

    def has(self, name: str) -> bool:
        """Whether a worker of that name was started."""
        return name in self.supervisor.children

    def use(self, names: Iterable[str]) -> list[int]:
        """Have these at work and stop all others; returns their process ids. Repeating is safe."""
        names = set(names)
        stopped = set(self.supervisor.children) - names - self._parked
        for name in stopped:
            self._send(name, signal.SIGSTOP)
        for name in names & self._parked:
            self._send(name, signal.SIGCONT)
        self._parked = (self._parked | stopped) - names
        if stopped or names != self._in_use:
            time.sleep(LET_GO_S)
        self._in_use = names
        return [self.supervisor.children[name].process.pid for name in sorted(names)]

    def check(self) -> None:
        """Raise DrangueError where a worker has ended, SystemExit where a signal said to stop."""
        self.supervisor.check()
        ended = [child.name for child in self.supervisor.children.values() if child.process.poll() is not None]
        if ended:
            raise DrangueError(f"worker {ended[0]} has ended; its log file says why (keep it with --logs FOLDER).")

    def wait(self, holds: Callable[[], bool], what: str, timeout_s: float, poll_s: float = 0.02) -> None:
        """Return when `holds` does. DrangueError after `timeout_s` seconds, or when a worker has ended."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            self.check()
            if time.monotonic() > deadline:
                raise DrangueError(f"{what} took longer than {timeout_s:g} s; the workers' log files may say why.")
            time.sleep(poll_s)

    def end(self, names: Iterable[str]) -> None:
        """End these at once, with what they hold."""
        for name in names:
            process = self.supervisor.children.pop(name).process
            process.kill()
            process.wait()
            self._parked.discard(name)
            self._in_use.discard(name)

    def stop(self) -> None:
        """End all of them at once: nothing that they hold is worth saving."""
        for child in self.supervisor.children.values():
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()
        self.supervisor.stop()
        self._parked.clear()

    def _send(self, name: str, number: signal.Signals) -> None:
        child = self.supervisor.children[name]
        if child.process.poll() is None:
            os.kill(child.process.pid, number)
