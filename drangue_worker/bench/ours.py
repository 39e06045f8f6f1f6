"""Our side: runs submitted by a client and performed by worker processes, as an application would have it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import median

import psycopg

from drangue_client.client import Client
from drangue_client.errors import DrangueError
from drangue_client.run import MOVING
from drangue_client.settings import Settings
from drangue_worker.bench.shapes import AGENT, Shape
from drangue_worker.bench.stack import Stack
from drangue_worker.dev import wait_for_workers
from drangue_worker.supervisor import worker_command

AGENTS = ("drangue_worker.bench.agents",)
LONGEST_S = 300.0
POLL_S = 0.05
SOON_S = 0.001


@dataclass(frozen=True, slots=True)
class Fleet:
    """So many model-pool processes with these settings; those of one name and other settings are other processes.

    A `quiet` one looks for stopped work so seldom that what is counted is the work alone; a `profiled` one lets itself
    be watched.
    """

    name: str = "plain"
    processes: int = 1
    task_events: bool = False
    concurrency: int = 100
    quiet: bool = False
    profiled: bool = False

    @property
    def members(self) -> list[str]:
        """The names of its processes."""
        kind = self.name + "-quiet" * self.quiet + "-profiled" * self.profiled
        return [f"{kind}-{number}" for number in range(1, self.processes + 1)]


class Ours:
    """The product's runs on a stack. One thread at a time may use it."""

    def __init__(self, stack: Stack, submitters: int) -> None:
        self._stack = stack
        self._submitters = submitters
        self._settings = Settings(
            database_url=stack.database_url,
            redis_url=stack.redis_url,
            agents=AGENTS,
            log_level="warning",
        )
        self._client: Client | None = None
        self._connection: psycopg.Connection | None = None
        self._count = 0

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
        if self._connection is not None:
            self._connection.close()

    def use(self, fleet: Fleet, *, wait: bool = True) -> list[int]:
        """Have the fleet at work, started if it has not been; returns its process ids.

        With `wait`, when the processes that were started answer.
        """
        settings = self.settings_of(fleet)
        missing = [name for name in fleet.members if not self._stack.workers.has(name)]
        for name in missing:
            self._stack.workers.start(name, worker_command("model", "--name", f"{name}@%h"), settings.to_env())
        pids = self._stack.workers.use(fleet.members)
        if missing and wait:
            self.answer(settings, missing)
        return pids

    def answer(self, settings: Settings, names: list[str]) -> None:
        """Return when these workers answer. DrangueError where one does not."""
        wait_for_workers(settings, names, self._stack.workers.supervisor)

    def settings_of(self, fleet: Fleet) -> Settings:
        """What its processes are told."""
        settings = replace(
            self._settings,
            task_events=fleet.task_events,
            model_concurrency=fleet.concurrency,
            agents=("drangue_worker.bench.profiled",) if fleet.profiled else AGENTS,
        )
        return replace(settings, sweep_s=60.0, lease_s=180.0, patience_s=60.0) if fleet.quiet else settings

    @property
    def client(self) -> Client:
        """The client, made on first use: it registers nothing and loads no worker code."""
        if self._client is None:
            self._client = Client(self._settings)
        return self._client

    @property
    def connection(self) -> psycopg.Connection:
        """The bench's own connection to the product's database."""
        if self._connection is None:
            self._connection = psycopg.connect(
                self._stack.database_url, autocommit=True, application_name="bench", prepare_threshold=1
            )
        return self._connection

    def burst(self, shape: Shape, runs: int) -> float:
        """Submit all runs together, and return the seconds from then to the last end."""
        prefix, text = self._prefix(), shape.to_input()
        began = time.time()
        self.client.submit_many(AGENT, {f"{prefix}{number:05}": text for number in range(runs)})
        return self._until_all_ended(prefix, runs) - began

    def crowd(self, shape: Shape, runs: int) -> float:
        """As `burst`, but each run is submitted by itself, from several threads."""
        prefix, text = self._prefix(), shape.to_input()
        began = time.time()
        with ThreadPoolExecutor(self._submitters) as pool:
            submitted = [pool.submit(self.client.submit, AGENT, text, run_id=f"{prefix}{n:05}") for n in range(runs)]
            for one in submitted:
                one.result()
        return self._until_all_ended(prefix, runs) - began

    def one_by_one(self, shape: Shape, runs: int) -> float:
        """Submit a run, wait for its end, submit the next; returns the median of their seconds."""
        prefix, text = self._prefix(), shape.to_input()
        began = []
        for number in range(runs):
            began.append(time.time())
            self.client.submit(AGENT, text, run_id=f"{prefix}{number:05}")
            self.await_end(f"{prefix}{number:05}")
        return median(end - begin for begin, end in zip(began, self._ended(prefix, runs), strict=True))

    def makespan(self, shape: Shape, runs: int) -> float:
        """As `one_by_one`, but from each decision that asks for tools to the last of their results."""
        prefix, text = self._prefix(), shape.to_input()
        for number in range(runs):
            self.client.submit(AGENT, text, run_id=f"{prefix}{number:05}")
            self.await_end(f"{prefix}{number:05}")
        self._ended(prefix, runs)
        found = self.connection.execute(
            "select extract(epoch from max(recorded_at) filter (where type = 'tool_result')"
            " - min(recorded_at) filter (where type = 'model_decision'))::float8"
            " from events where run_id like %s group by run_id",
            (f"{prefix}%",),
        ).fetchall()
        return median(float(seconds) for (seconds,) in found)

    def await_end(self, run_id: str, timeout_s: float = LONGEST_S) -> None:
        """Look for a run's end as for the bare chain's last row: neither side is charged for how one waits."""

        def ended() -> bool:
            query = "select status <> all(%s) from runs where run_id = %s"
            row = self.connection.execute(query, (list(MOVING), run_id)).fetchone()
            return row is not None and bool(row[0])

        self._stack.workers.wait(ended, f"the run {run_id}", timeout_s, SOON_S)

    def _prefix(self) -> str:
        self._count += 1
        return f"bench{self._count:04}-"

    def _until_all_ended(self, prefix: str, runs: int) -> float:
        self._stack.workers.wait(self._all_stopped, f"a burst of {runs} runs", LONGEST_S, POLL_S)
        return max(self._ended(prefix, runs))

    def _all_stopped(self) -> bool:
        query = "select exists(select from runs where status = any(%s))"
        row = self.connection.execute(query, (list(MOVING),)).fetchone()
        return row is not None and not row[0]

    def _ended(self, prefix: str, runs: int) -> list[float]:
        """When each run was recorded as ended (epoch seconds), in their order. A run that did not complete is an error:
        its time would be that of something else."""
        query = (
            "select run_id, status, error, extract(epoch from updated_at)::float8 from runs"
            " where run_id like %s order by run_id"
        )
        rows = self.connection.execute(query, (f"{prefix}%",)).fetchall()
        odd = [row for row in rows if row[1] != "completed"]
        if odd or len(rows) != runs:
            raise DrangueError(f"{len(rows) - len(odd)} of {runs} runs completed; one of the others is {odd[:1]}")
        return [float(row[3]) for row in rows]
