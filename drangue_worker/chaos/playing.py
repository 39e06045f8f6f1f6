"""The time between a soak's first submission and its last worker's end: everybody at work, and somebody who watches.

The supervisor has the main thread, since children are bound to the thread that starts them.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import psycopg

from drangue_client.run import ENDED
from drangue_worker.chaos.breaks import Break
from drangue_worker.chaos.drivers import Approver, Canceller, Submitter
from drangue_worker.chaos.monkey import Monkey
from drangue_worker.chaos.recovery import CONNECT_S
from drangue_worker.supervisor import Supervisor

TICK_S = 0.25
LATE_S = 2.0  # after the last run has ended, for what a worker that stood still may do too late
STATUSES = "select status, count(*) from runs group by 1"
LEFT = "select count(*) from steps join runs using (run_id) where status = 'cancelled'"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a soak is, for whoever looks on."""

    seconds: float
    submitted: int
    statuses: Counter[str]
    breaks: int
    last: str

    def __str__(self) -> str:
        ended = "  ".join(f"{self.statuses[name]} {name}" for name in (*sorted(ENDED), "paused") if self.statuses[name])
        broken = f"{self.breaks} breaks, the last: {self.last}" if self.breaks else "nothing broken yet"
        return f"{self.seconds:4.0f} s  {self.submitted} submitted  {ended}  {broken}"


@dataclass
class Playing:
    """Everybody at work. `deadline_s` is how long after the last of the `breaks` every run must have ended."""

    supervisor: Supervisor
    monkey: Monkey
    breaks: Sequence[Break]
    submitter: Submitter
    approver: Approver
    canceller: Canceller
    deadline_s: float
    show: Callable[[Progress], None]

    def play(self) -> None:
        """Return when every run has ended or the deadline is over, and the workers have ended too.

        Call it on the main thread; the others end when the supervisor is told to. Raises what broke one of them.
        """
        main, stopped = threading.get_ident(), threading.Event()
        jobs = [self.submitter.work, self.approver.work, self.canceller.work, self.monkey.recoveries.watch]
        with ThreadPoolExecutor(len(jobs) + 2, thread_name_prefix="soak") as pool:
            working = [pool.submit(job, stopped) for job in jobs]
            breaking = pool.submit(self.monkey.play, self.breaks, stopped)
            watching = pool.submit(self._watch, [*working, breaking], breaking, stopped, main)
            try:
                self.supervisor.run()
            finally:
                stopped.set()
        for one in (watching, *working, breaking):
            one.result()

    def _watch(
        self, threads: Sequence[Future[None]], breaking: Future[None], stopped: threading.Event, main: int
    ) -> None:
        try:
            self._until_ended(threads, stopped)
        finally:
            stopped.set()
            wait([breaking])  # nothing stands still or is away any more when the workers are asked to end
            signal.pthread_kill(main, signal.SIGTERM)

    def _until_ended(self, threads: Sequence[Future[None]], stopped: threading.Event) -> None:
        began = time.monotonic()
        statuses: Counter[str] = Counter()
        left = 0
        while not stopped.wait(TICK_S):
            self.supervisor.check()
            for one in threads:
                if one.done():
                    one.result()
            statuses, left = self._statuses() or (statuses, left)
            now, submitted = time.monotonic(), len(self.submitter.acknowledged)
            broken = sum(self.monkey.done.values())
            self.show(Progress(now - began, submitted, statuses, broken, self.monkey.last))
            if self.submitter.over and not left and sum(statuses[name] for name in ENDED) == submitted:
                stopped.wait(LATE_S)
                return
            if self.monkey.over and now > self.monkey.last_at + self.deadline_s:
                return

    def _statuses(self) -> tuple[Counter[str], int] | None:
        """How many runs have which status, and how many steps of cancelled ones may still be recorded; None while
        Postgres is away."""
        try:
            with psycopg.connect(self.monkey.database_url, connect_timeout=CONNECT_S) as connection:
                left = sum(count for (count,) in connection.execute(LEFT).fetchall())
                return Counter(dict(connection.execute(STATUSES).fetchall())), left
        except psycopg.OperationalError:
            return None
