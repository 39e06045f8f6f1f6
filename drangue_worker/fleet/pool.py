"""The loop pool: Celery's messages as coroutines on this process's event loop, without a thread for each.

Requests, and with them events, revoke, inspect and the counting of messages under way, are Celery's own; what is left
out is its tracing of a task's function, which has nothing to do here. A task that is no coroutine runs on a thread, as
Celery would run it. Answers are given on Celery's own thread, which is also how it learns that there is room again;
while there is room they gather for some milliseconds, since nothing waits for them and what comes next would.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import queue
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool, apply_target
from celery.worker import state as celery_state

from drangue_worker.fleet.aio import Job, loop_thread
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.tasks")

Work = Callable[..., Coroutine[Any, Any, None]]
THREADS = 4  # for what is none of ours
JSON = "application/json"
GATHER_S = 0.005
LOOK_S = 0.2  # between two looks of a stop at what it waits for


class StepError(Exception):
    """A task failed outside its step; the worker's log holds the reason."""


class Handle:
    """What Celery is given for a task under way."""

    def terminate(self, signal: int | None = None) -> None:
        """Ending is by the job's number, in `terminate_job`."""


class Task(Job):
    """A job of the pool. `callback` is given its answer, which waits where Celery has not said yet who that is."""

    def __init__(self, ident: int) -> None:
        super().__init__(ident)
        self.since = time.monotonic()
        self.callback: Callable[..., Any] | None = None
        self.answer: Any = None


def _unheard(answer: Any) -> None:
    """The callback of a task that Celery never knew of."""


class TaskPool(BasePool):
    """Coroutines that can be told to stop; the job's number stands where Celery keeps a process id."""

    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Task] = {}  # those whose end Celery has not been told of
        self._answers: queue.SimpleQueue[tuple[Task, Any]] = queue.SimpleQueue()
        self._bell: tuple[int, int] | None = None  # a pipe: whoever has an answer rings, Celery's thread hears
        self._rung = False
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="drangue-task")
        self._tells: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ahead: dict[str, Task] = {}  # by the ids of their tasks: begun before Celery knew of them

    def register_with_event_loop(self, hub: Any) -> None:
        """Have answers given by Celery's own loop. Called with every connection to the broker."""
        if self._bell is None:
            self._bell = os.pipe()
            for end in self._bell:
                os.set_blocking(end, False)
        hub.add_reader(self._bell[0], self._hear)

    @property
    def ahead(self) -> int:
        """How many tasks have begun that Celery does not know of yet."""
        return len(self._ahead)

    def begin_ahead(
        self, works: Mapping[str, Callable[[], Coroutine[Any, Any, None]]], tell: Callable[[], None]
    ) -> None:
        """Begin tasks, by their ids, before Celery has their messages, which find them begun, or ended. `tell` brings
        those, some milliseconds later and on Celery's own thread. From any thread."""
        tasks = {task_id: self._task() for task_id in works}
        self._ahead |= tasks
        self._tells.put(tell)
        for task_id, work in works.items():
            self._begin(tasks[task_id], functools.partial(self._told, work))

    def leave(self, task_id: str) -> None:
        """Expect no message for a task that was begun ahead; it goes on by itself. Where it is not, nothing is done.
        On Celery's own thread."""
        task = self._ahead.pop(task_id, None)
        if task is not None:
            self._answered(task, _unheard)

    def on_apply(  # type: ignore[override]  # the stubs lag behind Celery
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> Handle:
        assert callback is not None
        name, task_id, _request, body, content_type, _encoding = args
        begun = self._ahead.pop(task_id, None)
        task = begun or self._task()
        if accept_callback:
            accept_callback(task.ident, task.since)
        self._answered(task, callback)
        if begun:
            return Handle()
        work: Work | None = getattr(self.app.tasks.get(name), "drangue_work", None)
        if work is None or content_type != JSON:
            self._threads.submit(self._apply, task, target, args, kwargs)
            task.begun = True
        else:
            self._begin(task, lambda: _begun(work, body))
        return Handle()

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        job = self._jobs.get(pid)
        if job is not None:
            job.cancel()

    def on_stop(self) -> None:
        """Wait for what is under way, and answer for it. A signal may call this on top of itself, or of whatever else
        Celery's thread is at: what is waited for is said by jobs alone, and an answer may have been taken below."""
        while self._under_way() or self._under_way():  # one that ends may begin another behind the first look
            if celery_state.should_terminate:  # a cold stop has cancelled what Celery knows of, and nothing else
                for job in self._under_way():
                    if not job.cancelled:
                        job.cancel()
            with contextlib.suppress(queue.Empty):
                self._give(*self._answers.get(timeout=LOOK_S))
        self._give_all()
        self._threads.shutdown()
        super().on_stop()

    def _task(self) -> Task:
        task = Task(next(self._numbers))
        self._jobs[task.ident] = task
        return task

    def _begin(self, task: Task, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        def done(error: BaseException | None) -> None:
            seconds = time.monotonic() - task.since
            self._answers.put((task, (1, _failure(error), seconds) if error else (0, "None", seconds)))
            task.ended = True  # behind its answer, which a stop that sees this gives
            self._ring_soon()

        loop_thread().begin(task, work, done)
        task.begun = True

    def _under_way(self) -> list[Task]:
        return [job for job in list(self._jobs.values()) if job.begun and not job.ended]

    def _apply(self, task: Task, target: Any, args: Any, kwargs: Any) -> None:
        """On a thread: do what is none of ours, and answer for it however it ends."""
        answers: list[Any] = []
        try:
            apply_target(target, args, kwargs, answers.append)
        except BaseException as error:
            answers.append(ExceptionInfo() if not isinstance(error, Exception) else _failure(error))
        (answer,) = answers
        self._answers.put((task, (1, answer, 0.0) if isinstance(answer, ExceptionInfo) else answer))
        task.ended = True
        self._ring()

    async def _told(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._ring_soon()
        await work()

    def _ring_soon(self) -> None:
        """On the loop's thread: have Celery hear what there is, together with what else comes within moments."""
        if self._bell is None or self._rung:
            return
        self._rung = True
        full = len(self._jobs) >= self.limit  # then nothing new comes before this is known
        self._ring() if full else asyncio.get_running_loop().call_later(GATHER_S, self._ring)

    def _ring(self) -> None:
        if self._bell is not None:
            try:
                os.write(self._bell[1], b"!")
            except BlockingIOError:
                return  # the pipe is full of rings that nobody has heard yet

    def _hear(self) -> None:
        assert self._bell is not None
        try:
            os.read(self._bell[0], 65536)
        except BlockingIOError:
            return
        # Behind the rings that were heard and before the first answer is taken: what comes from here on rings again.
        self._rung = False
        self._give_all()
        with contextlib.suppress(queue.Empty):
            while True:
                self._tells.get_nowait()()

    def _give_all(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._give(*self._answers.get_nowait())

    def _answered(self, task: Task, callback: Callable[..., Any]) -> None:
        """Say who is to be given the answer of a task, on Celery's thread, as all answers are."""
        task.callback = callback
        if task.answer is not None:
            self._give(task, task.answer)

    def _give(self, task: Task, answer: Any) -> None:
        if task.callback is None:  # Celery does not know of it yet
            task.answer = answer
            return
        self._jobs.pop(task.ident, None)
        try:
            task.callback(answer)
        except Exception:
            log.exception("answer_failed")  # the step is settled; Celery's account of its message is all that is lost

    def _get_info(self) -> dict[str, Any]:
        return {
            "implementation": f"{type(self).__module__}:{type(self).__name__}",
            "max-concurrency": self.limit,
            "running": len(self._jobs),
        }


def _begun(work: Work, body: Any) -> Coroutine[Any, Any, None]:
    args, kwargs, _ = json.loads(bytes(body) if isinstance(body, memoryview) else body)
    return work(*args, **kwargs)


def _failure(error: BaseException) -> ExceptionInfo:
    try:
        raise StepError(type(error).__name__)
    except StepError:
        return ExceptionInfo()
