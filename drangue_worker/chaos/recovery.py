"""How long a killed step stood still: from the SIGKILL of who held it to the next claim of it, or its settlement.

An approximation. What was held is read from `steps` right after the kill, when the killed can change nothing any more;
claims end on the main process's id, and on the pool process's behind it where one does the work. Progress is looked for
every POLL_S, so a figure is up to that much too long. A kill while Postgres is away is not measured, since nobody can
say what was held.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

POLL_S = 0.1
CONNECT_S = 5
SLACK_S = 3.0  # beyond the lease, the bound that is promised where a worker is free


@dataclass(frozen=True, slots=True)
class Recovery:
    """One step, killed at `killed_at` (epoch seconds), that went on after `seconds`; `disturbed` where Postgres was
    away, or just back, meanwhile."""

    key: str
    killed_at: float
    seconds: float
    disturbed: bool


@dataclass(frozen=True, slots=True)
class _Held:
    key: str
    claim: str
    killed_at: float


@dataclass
class Recoveries:
    """Watches killed steps. `lease_s` is the fleet's. Any thread may tell of kills and outages."""

    database_url: str
    lease_s: float
    clock: Callable[[], float] = time.monotonic
    found: list[Recovery] = field(default_factory=list)
    unmeasured: int = 0  # kills while Postgres was away
    _held: set[_Held] = field(default_factory=set)
    _outages: list[tuple[float, float]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def standing(self) -> int:
        """How many killed steps have not gone on yet."""
        return len(self._held)

    @property
    def postgres_away_s(self) -> float:
        """How many seconds Postgres was away in all; infinite while it is."""
        return sum(back - began for began, back in self._outages)

    def note_kill(self, worker_pid: int, child_pid: int | None = None) -> None:
        """Watch what a worker held that has just been killed, or what one process of its pool did."""
        killed_at = self.clock()
        # Of a whole worker: what it held itself, and what any process of its pool did.
        patterns = [f"%/{worker_pid}", f"%/{worker_pid}.%"] if child_pid is None else [f"%/{worker_pid}.{child_pid}"]
        try:
            claims = self._claims("where worker like any(%s) and claim is not null", patterns)
        except psycopg.OperationalError:
            self.unmeasured += 1
            return
        held = {_Held(key, claim, killed_at) for key, claim in claims.items()}
        with self._lock:
            self._held |= held

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Postgres is away inside the block. After it every sweep waits one lease, so that the living may renew."""
        began = self.clock()
        with self._lock:
            self._outages.append((began, math.inf))
        yield
        with self._lock:
            self._outages[-1] = (began, self.clock())

    def watch(self, stopped: threading.Event) -> None:
        """Look again and again until `stopped`, and once more."""
        while not stopped.wait(POLL_S):
            self._look()
        self._look()

    def _look(self) -> None:
        if not self._held:
            return
        try:
            claims = self._claims("where true")
        except psycopg.OperationalError:
            return
        now = self.clock()
        with self._lock:
            gone_on = {one for one in self._held if claims.get(one.key, "settled") not in (one.claim, "")}
            self._held -= gone_on
            for one in gone_on:
                disturbed = any(began < now and back + self.lease_s > one.killed_at for began, back in self._outages)
                stood = now - one.killed_at
                self.found.append(Recovery(one.key, time.time() - stood, stood, disturbed))

    def _claims(self, where: str, *values: Any) -> dict[str, str]:
        """The open steps' claims by key, "" where nobody holds one."""
        query = f"select run_id || ':' || step, coalesce(claim, '') from steps {where}"
        with psycopg.connect(self.database_url, connect_timeout=CONNECT_S) as connection:
            return dict(connection.execute(query, values or None).fetchall())


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest of `values` that at least this share of them does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
