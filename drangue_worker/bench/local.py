"""Runs in this process, without servers: `Agent.run_sync` on a SQLite file, as one would try it at a desk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from drangue_client.errors import DrangueError
from drangue_client.store import SQLiteStore
from drangue_worker.bench.shapes import Shape


@dataclass(frozen=True, slots=True)
class Inline:
    """This process alone."""

    processes: int = 0


class Local:
    """Runs one after the other, in one file per repetition."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def burst(self, shape: Shape, runs: int) -> float:
        """Seconds that so many runs take, one after the other."""
        from drangue_worker.bench.agents import make  # here: it loads what a worker does

        self._count += 1
        store = SQLiteStore(str(self._folder / f"inline-{self._count}.db"))
        agent = make(store=store)
        try:
            began = time.perf_counter()
            for number in range(runs):
                result = agent.run_sync(shape.to_input(), run_id=f"inline-{number}")
                if result.status != "completed":
                    raise DrangueError(f"an inline run ended as {result.status} ({result.reason})")
            return time.perf_counter() - began
        finally:
            store.close()
