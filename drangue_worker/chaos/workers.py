"""The workers of a soak: whom the monkey may hurt, and how a process is told from a later one with the same id."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from drangue_worker.chaos.recovery import CONNECT_S
from drangue_worker.supervisor import FIRST_PAUSE_S, Child, Supervisor

SERVED_S = 1.0  # how long a worker may serve before it is hurt
LOOK_EVERY_S = 0.5


@dataclass
class Workers:
    """The supervisor's children. `stalled` names those that stand still at the moment.

    A worker is fit to be hurt once it has held steps: killing one that boots shows nothing, and with some luck nobody
    would ever work.
    """

    supervisor: Supervisor
    database_url: str
    stalled: set[str] = field(default_factory=set)
    _serving: dict[int, float] = field(default_factory=dict)  # since when, by process id
    _looked_at: float = 0.0

    def look(self) -> None:
        """See who serves, if it is time to. Call it several times a second."""
        children = list(self.supervisor.children.values())
        for child in children:
            # The supervisor lets one that dies again and again wait longer and longer; these die of us.
            child.pause_s = FIRST_PAUSE_S
        now = time.monotonic()
        if now < self._looked_at + LOOK_EVERY_S:
            return
        self._looked_at = now
        holding = self._holding()
        pids = {child.process.pid for child in children}
        self._serving = {pid: self._serving.get(pid, now) for pid in pids if pid in self._serving or pid in holding}

    def victim(self, draw: float, pool: str = "") -> Child | None:
        """The worker that a draw in [0, 1) means, or else the next one that is fit; None where none is."""
        children = [one for name, one in sorted(self.supervisor.children.items()) if name.startswith(pool)]
        first = int(draw * len(children))
        return next((one for one in (*children[first:], *children[:first]) if self._fit(one)), None)

    def _fit(self, child: Child) -> bool:
        since = self._serving.get(child.process.pid)
        served = since is not None and time.monotonic() > since + SERVED_S
        return served and child.process.poll() is None and child.name not in self.stalled

    def _holding(self) -> set[int]:
        """The main processes of the workers that hold steps; none while Postgres is away."""
        query = "select distinct worker from steps where claim is not null and lease_until > now()"
        try:
            with psycopg.connect(self.database_url, connect_timeout=CONNECT_S) as connection:
                workers = [worker for (worker,) in connection.execute(query).fetchall()]
        except psycopg.OperationalError:
            return set()
        return {int(worker.rpartition("/")[2].partition(".")[0]) for worker in workers}


def send(pid: int, number: signal.Signals) -> bool:
    """Signal a process; False where it has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def children_of(pid: int) -> list[int]:
    """The processes of a worker's pool; none on a system without Linux's list of them."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def begun(pid: int) -> str:
    """When a process began, in the system's own words; "" for one that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
