"""The other side: the bare chain of `raw_app`, started and driven as one would who has nothing else."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import psycopg

from drangue_worker.bench.shapes import Shape
from drangue_worker.bench.stack import Stack
from drangue_worker.supervisor import following

LONGEST_S = 300.0
POLL_S = 0.05
SOON_S = 0.001


@dataclass(frozen=True, slots=True)
class Chain:
    """So many Celery workers on one pool."""

    name: str = "raw"
    processes: int = 1
    pool: str = "threads"
    concurrency: int = 8  # more threads were slower: they only contend for the interpreter

    @property
    def members(self) -> list[str]:
        return [f"{self.name}-{number}" for number in range(1, self.processes + 1)]


def has_gevent() -> bool:
    """Whether the green pool can be started."""
    return importlib.util.find_spec("gevent") is not None


class Raw:
    """The bare chain on a stack. One thread at a time may use it."""

    def __init__(self, stack: Stack, submitters: int) -> None:
        self._stack = stack
        self._submitters = submitters
        self._count = 0
        self._env = {"BENCH_RAW_DATABASE_URL": stack.raw_database_url, "BENCH_RAW_REDIS_URL": stack.raw_redis_url}
        os.environ.update(self._env)
        from drangue_worker.bench import raw_app  # its app reads the address when it is made

        self._app = raw_app
        self.connection = psycopg.connect(
            stack.raw_database_url, autocommit=True, application_name="bench", prepare_threshold=1
        )
        self.connection.execute(raw_app.TABLE)

    def close(self) -> None:
        """Close the connections."""
        self.connection.close()
        self._app.app.close()

    def use(self, chain: Chain) -> list[int]:
        """Have the chain's workers at work, started if they have not been; returns their process ids."""
        missing = [name for name in chain.members if not self._stack.workers.has(name)]
        green = {"BENCH_RAW_GREEN": "1"} if chain.pool == "gevent" else {}
        for name in missing:
            command = [sys.executable, "-m", "celery", "--app", "drangue_worker.bench.raw_app", "worker"]
            command += ["--pool", chain.pool, "--concurrency", str(chain.concurrency), "--hostname", f"{name}@%h"]
            command += ["--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
            self._stack.workers.start(name, following(command), {**self._env, **green})
        pids = self._stack.workers.use(chain.members)
        if missing:
            self._stack.workers.wait(lambda: self._answer(missing), f"the start of {', '.join(missing)}", 60.0)
        return pids

    def burst(self, shape: Shape, runs: int) -> float:
        """Send the first task of every chain, from several threads; seconds until the last row is there."""
        prefix, last = self._prefix(), shape.steps - 1
        began = time.time()
        with ThreadPoolExecutor(self._submitters) as pool:
            sent = [pool.submit(self._send, f"{prefix}{number:05}", shape) for number in range(runs)]
            for one in sent:
                one.result()

        def ended() -> bool:
            query = "select count(*) from rows where run like %s and step = %s"
            return bool(self._one(query, f"{prefix}%", last) == runs)

        self._stack.workers.wait(ended, f"a burst of {runs} bare chains", LONGEST_S, POLL_S)
        return self._last(prefix) - began

    def crowd(self, shape: Shape, runs: int) -> float:
        """As `burst`: Celery has no way to send them together."""
        return self.burst(shape, runs)

    def one_by_one(self, shape: Shape, runs: int) -> float:
        """Send a chain, wait for its last row, send the next; the median of their seconds."""
        seconds = []
        for _ in range(runs):
            run, last = self._prefix(), shape.steps - 1
            began = time.time()
            self._send(run, shape)
            self._await_row(run, last)
            seconds.append(self._last(run) - began)
        return median(seconds)

    def makespan(self, shape: Shape, runs: int) -> float:
        """From the row of the step that asks to that of the last tool, the median of so many fan-outs."""
        seconds = []
        for _ in range(runs):
            run = self._prefix()
            self._app.ask.apply_async((run, shape.calls, shape.size, shape.tool_s))
            self._await_row(run, shape.calls + 1)
            query = "select extract(epoch from max(at) - min(at))::float8 from rows where run = %s and step <= %s"
            seconds.append(float(self._one(query, run, shape.calls)))
        return median(seconds)

    def _send(self, run: str, shape: Shape) -> None:
        self._app.step.apply_async((run, 0, shape.steps - 1, shape.size, shape.think_s))

    def _await_row(self, run: str, step: int) -> None:
        def is_there() -> bool:
            return bool(self._one("select exists(select from rows where run = %s and step = %s)", run, step))

        self._stack.workers.wait(is_there, f"the bare chain {run}", LONGEST_S, SOON_S)

    def _prefix(self) -> str:
        self._count += 1
        return f"raw{self._count:06}-"

    def _last(self, prefix: str) -> float:
        query = "select extract(epoch from max(at))::float8 from rows where run like %s"
        return float(self._one(query, f"{prefix}%"))

    def _one(self, query: str, *values: object) -> Any:
        row = self.connection.execute(query.encode(), values).fetchone()
        assert row is not None
        return row[0]

    def _answer(self, names: list[str]) -> bool:
        replies = self._app.app.control.ping(timeout=0.5) or []
        return {next(iter(reply)).partition("@")[0] for reply in replies} >= set(names)
