"""One event loop per process, on a thread of its own, for all that this process performs.

The loop is made on first use and per process id: a forked child gets its own. Draining cancels what is in flight; a
cancelled step gives itself back before it ends, so whoever waits for it finds the work settled.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.tasks")

T = TypeVar("T")
Done = Callable[[BaseException | None], None]


class Job:
    """One piece of work that can be told to stop, by its number. `begun` once somebody will end it, `ended` once its
    outcome is there."""

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self.begun = False
        self.ended = False
        self.cancelled = False
        self.on_cancel: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Tell it to stop, from any thread; also before it has begun."""
        self.cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()


class LoopThread:
    """A running loop and the tasks that others wait for."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._new: deque[tuple[Job, Callable[[], Coroutine[Any, Any, None]], Done]] = deque()
        self._told = False
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

    @property
    def under_way(self) -> int:
        """How many tasks have begun and not ended."""
        return len(self._tasks)

    def begin(self, job: Job, work: Callable[[], Coroutine[Any, Any, None]], done: Done) -> None:
        """Begin a job, and call `done` on the loop's thread with what it raised, if it did. A drain, or the job's own
        `cancel`, cancels it. What comes at once is begun together: waking the loop costs more than a job."""
        self._new.append((job, work, done))
        if not self._told:
            self._told = True
            here = asyncio._get_running_loop() is self.loop  # then it need not be woken
            soon = self.loop.call_soon if here else self.loop.call_soon_threadsafe
            soon(self._begin_new, context=Context())  # what is begun belongs to nothing that was at work here

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return what it returns. A drain cancels it."""

        async def tracked() -> T:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                if self._draining:
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
        self.call(lambda: [self.loop.call_soon(task.cancel) for task in self._tasks])  # when each has begun

    def _begin_new(self) -> None:
        self._told = False  # before the first is taken: what comes from here on tells again
        while self._new:
            job, work, done = self._new.popleft()
            task = self.loop.create_task(_performed(work))
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._ended, done))
            job.on_cancel = functools.partial(self._cancel_soon, task)
            if self._draining or job.cancelled:
                self.loop.call_soon(task.cancel)  # when it has begun, so that it can end as it should

    def _cancel_soon(self, task: asyncio.Task[Any]) -> None:
        self.loop.call_soon_threadsafe(task.cancel)

    def _ended(self, done: Done, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            log.error("task_failed", exc_info=error)
        done(error)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


async def _performed(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await work()


_threads: dict[int, LoopThread] = {}


def loop_thread() -> LoopThread:
    """This process's loop."""
    found = _threads.get(os.getpid())
    # No lock that a fork could find held: of two made at once, one is kept and started.
    return found or _threads.setdefault(os.getpid(), LoopThread()).start()
