"""A fleet of real worker processes on the test's Postgres and Redis, with a scripted provider to think for them."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import psycopg

from drangue_client import Client, Settings
from drangue_client.wire.queue import Sender
from drangue_worker.supervisor import Child, Supervisor, worker_command
from drangue_worker.testing.provider import Provider, ProviderCall, Reply
from tests.kit import starter
from tests.kit.agents import EFFECTS

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.02

Script = Callable[[ProviderCall], Any]


def wait_until(holds: Callable[[], Any], timeout_s: float = 60.0, what: str = "") -> Any:
    """Return the first true value of `holds`, asked again every moment. AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what or holds}"
        time.sleep(POLL_S)
    return value


def calls_then_answer(*calls: tuple[str, dict[str, Any]], delay_s: float = 0.0, answer: str = "done") -> Script:
    """A model that first asks for these calls, all at once, and then answers."""

    def script(call: ProviderCall) -> Reply:
        if call.turn == 0 and calls:
            return Reply(tool_calls=tuple(calls), delay_s=delay_s)
        return Reply(text=answer, delay_s=delay_s)

    return script


class Started(Supervisor):
    """A supervisor whose children are forked from a process that has loaded the libraries of others: a worker is ready
    in a third of the time. A child that is started again is one like any other."""

    def _spawn(self, name: str, command: Sequence[str]) -> Any:
        env = {**os.environ, **self.env}
        if self.log_folder is None or not starter.takes(command, env):
            return super()._spawn(name, command)
        self.log_folder.mkdir(parents=True, exist_ok=True)
        with (self.log_folder / f"{name}.log").open("ab") as output:
            return starter.start(command, env, Path.cwd(), output.fileno(), output.fileno(), session=True)


class Fleet:
    """Workers, a client, and what to break them with. Everything it starts ends with the block."""

    def __init__(self, database_url: str, redis_url: str, folder: Path, script: Script, **settings: Any) -> None:
        quick = {"lease_s": 3.0, "sweep_s": 0.3, "patience_s": 1.0, "drain_grace_s": 2.0, "tool_concurrency": 2}
        self.settings = replace(
            Settings(
                database_url=database_url, redis_url=redis_url, agents=("tests.kit.agents",), log_format="console"
            ),
            **{**quick, **settings},
        )
        self.folder = folder
        self.provider = Provider(script)
        self.provider.start()
        self.supervisor = Started(
            env={
                **self.settings.to_env(),
                "OPENAI_BASE_URL": self.provider.base_url,
                "OPENAI_API_KEY": "scripted",
                "PYTHONPATH": str(ROOT),
            },
            log_folder=folder,
            grace_s=self.settings.drain_grace_s,
        )
        self.client = Client(self.settings)
        self.sender = Sender(self.settings)
        self.execute(EFFECTS)
        self.execute("truncate effects")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self.client.close()
        self.provider.stop()

    def start(self, *names: str, options: Sequence[str] = ()) -> list[Child]:
        """Start workers named like `model-1` or `tool-2` and return them when all of them answer."""
        children = [
            self.supervisor.start(name, worker_command(name.partition("-")[0], "--name", f"{name}@%h", *options))
            for name in names
        ]
        wait_until(lambda: self._answer(children), what=f"workers {names} answer")
        return children

    def kill(self) -> None:
        """End every worker at once, its pool processes too. In order it takes seconds, which other tests look at."""
        for child in self.supervisor.children.values():
            if child.process.poll() is None:
                # While the worker lives it buries its own, so that these ids are nobody else's.
                family = [*self.children_of(child), child.process.pid]
                os.kill(family[-1], signal.SIGSTOP)
                for pid in family:
                    os.kill(pid, signal.SIGKILL)
                child.process.wait()
        self.supervisor.stop()

    def _answer(self, children: Sequence[Child]) -> bool:
        """Whether all of these workers answer; named, they are waited for no longer than the last of them takes."""
        ended = [child.name for child in children if child.process.poll() is not None]
        assert not ended, f"{ended} ended: {''.join(map(self.log_of, ended))}"
        names = [f"{child.name}@{socket.gethostname()}" for child in children]
        return len(self.sender.app.control.ping(names, timeout=0.2) or []) == len(names)

    def submit(self, count: int = 1, agent: str = "tester", **options: Any) -> list[str]:
        """Submit runs; returns their ids."""
        return [self.client.submit(agent, f"input {n}", allow_unknown=True, **options).run_id for n in range(count)]

    def finish(self, ids: Sequence[str], timeout_s: float = 60.0) -> list[Any]:
        """Wait for runs to stop; returns their results."""
        deadline = time.monotonic() + timeout_s
        return [self.client.result(run_id, timeout=max(0.1, deadline - time.monotonic())) for run_id in ids]

    def effects(self, name: str | None = None) -> list[str]:
        """The idempotency key of every execution of a tool, in order; a key twice is an execution twice."""
        rows = self.execute("select key, tool from effects order by id")
        return [key for key, tool in rows if name in (None, tool)]

    def held_by(self, child: Child) -> int:
        """How many steps a worker holds right now."""
        own, of_children = f"%/{child.process.pid}", f"%/{child.process.pid}.%"
        query = "select count(*) from steps where worker like %s or worker like %s"
        return int(self.execute(query, own, of_children)[0][0])

    def execute(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the database, past the system under test."""
        with psycopg.connect(self.settings.database_url, autocommit=True) as connection:
            cursor = connection.execute(query, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def log_of(self, name: str) -> str:
        """What a worker wrote."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def children_of(self, child: Child) -> list[int]:
        """The process ids of a worker's pool processes."""
        path = Path(f"/proc/{child.process.pid}/task/{child.process.pid}/children")
        return [int(pid) for pid in path.read_text().split() if os.path.exists(f"/proc/{pid}")]
