"""Processor time and memory of workers, servers and this process, as the system tells it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds of processor time: of the workers, of this process (the client), of Postgres and of Redis."""

    workers: float
    client: float
    postgres: float
    redis: float

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(
            self.workers - earlier.workers,
            self.client - earlier.client,
            self.postgres - earlier.postgres,
            self.redis - earlier.redis,
        )

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.workers + other.workers,
            self.client + other.client,
            self.postgres + other.postgres,
            self.redis + other.redis,
        )


NOTHING = Usage(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Meter:
    """Whom to look at, by process id."""

    workers: tuple[int, ...]
    postgres: int
    redis: int

    def read(self) -> Usage:
        """The time that each has used so far."""
        return Usage(
            sum(_seconds(pid) for pid in self.workers),
            time.process_time(),
            _seconds(self.postgres),
            _seconds(self.redis),
        )

    def forget_peak(self) -> None:
        """Let the workers' peak of memory begin anew, where the system can."""
        for pid in self.workers:
            try:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            except OSError:
                continue  # the peak is then since the process began

    def peak(self) -> int:
        """The workers' peak of memory together, in bytes."""
        return sum(_peak(pid) for pid in self.workers)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process: resident, and what is its own (None where the system does not tell)."""

    resident: int
    own: int | None
    proportional: int | None


def memory(pid: int) -> Memory:
    """What a process holds now."""
    process = psutil.Process(pid)
    try:
        full = process.memory_full_info()
    except psutil.AccessDenied:
        return Memory(process.memory_info().rss, None, None)
    return Memory(full.rss, full.uss, getattr(full, "pss", None))


def _seconds(pid: int) -> float:
    """Of a process, of its living children and of those it has waited for."""
    process = psutil.Process(pid)
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue  # what it used is now in its parent's sum
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _peak(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return int(psutil.Process(pid).memory_info().rss)
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
