"""One event loop per process, on a thread of its own; pool threads hand it coroutines and wait.

The loop is made on first use and per process id: a forked child gets its own. Draining cancels what is in flight; a
cancelled step gives itself back before its thread goes on, so the wait here always ends with the work settled.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from drangue_worker.fleet.pool import current_job

T = TypeVar("T")


class LoopThread:
    """A running loop and the tasks that pool threads wait for."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> LoopThread:
        """Have the loop run. Repeating is safe."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="drangue-loop", daemon=True)
                self._thread.start()
        return self

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return what it returns. A drain or a revoke cancels it."""
        job = current_job()

        async def tracked() -> T:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            if job is not None:
                job.on_cancel = lambda: self._cancel_soon(task)
            try:
                if self._draining or (job is not None and job.cancelled):
                    task.cancel()
                return await work
            finally:
                self._tasks.discard(task)

        return asyncio.run_coroutine_threadsafe(tracked(), self.loop).result()

    def call(self, function: Callable[[], T]) -> T:
        """Call a function on the loop's thread and return what it returns."""

        async def on_loop() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(on_loop(), self.loop).result()

    def drain(self) -> None:
        """Cancel everything in flight, and whatever still comes."""
        self._draining = True
        self.call(lambda: [task.cancel() for task in self._tasks])

    def _cancel_soon(self, task: asyncio.Task[Any]) -> None:
        self.loop.call_soon_threadsafe(task.cancel)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


_threads: dict[int, LoopThread] = {}


def loop_thread() -> LoopThread:
    """This process's loop."""
    found = _threads.get(os.getpid())
    # No lock that a fork could find held: of two made at once, one is kept and started.
    return found or _threads.setdefault(os.getpid(), LoopThread()).start()
