"""Celery's threads pool, made able to let go of a task.

The stock pool answers `terminate_job`, and with it revoke and a cold shutdown, with NotImplementedError and waits for
every task. Here each task is a job that cancels the coroutine it waits for.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

from celery.concurrency import thread
from celery.concurrency.base import apply_target

_current = threading.local()


class Job:
    """One task on a pool thread. `on_cancel` is set by whoever runs something that can be cancelled."""

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self.cancelled = False
        self.on_cancel: Callable[[], None] | None = None

    def cancel(self) -> None:
        self.cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()


def current_job() -> Job | None:
    """The job of this pool thread, if it is one."""
    return getattr(_current, "job", None)


class TaskPool(thread.TaskPool):
    """Threads that can be told to stop; the job's number stands where Celery keeps a process id."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> Any:
        job = Job(next(self._numbers))

        def run() -> Any:
            _current.job = self._jobs[job.ident] = job
            try:
                return apply_target(target, args, kwargs, callback, accept_callback, pid=job.ident)
            finally:
                del self._jobs[job.ident]
                _current.job = None

        executor: Any = self.executor  # type: ignore[attr-defined]  # the stubs lag behind Celery
        result = thread.ApplyResult(executor.submit(run))  # type: ignore[attr-defined]
        result.terminate = lambda signal=None: None
        return result

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        job = self._jobs.get(pid)
        if job is not None:
            job.cancel()
