"""Eager dispatch in a worker with a loop pool: steps that begin at once, and of which Celery is told right behind.

Only what there is room for: where there is none, or more waits in Redis than could be fetched, whoever comes behind
lines up there.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from celery.signals import worker_shutting_down

from drangue_client.store.values import Claimed, Open, StepRef
from drangue_client.wire.queue import TASKS, step_message, task_id
from drangue_worker.engine.perform import work_on
from drangue_worker.engine.runtime import Runtime
from drangue_worker.fleet.pool import TaskPool
from drangue_worker.fleet.transport import Channel
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.tasks")


class PoolDispatch:
    """The dispatch of one worker."""

    def __init__(self, worker: Any, runtime: Runtime) -> None:
        self._worker = worker
        self._runtime = runtime
        self._pool: TaskPool = worker.pool
        self._promised = 0
        self._open = True
        worker_shutting_down.connect(self._close)

    def begin_round(self) -> None:
        self._promised = 0

    def wants(self, opened: Open) -> bool:
        if not self._open or self._worker.consumer.task_buckets.get(TASKS[opened.kind]) is not None:
            return False  # an operator's rate limit is Celery's to keep
        channel = self._channel()
        if channel is None or channel.room(opened.queue) <= self._promised + self._pool.ahead:
            return False
        self._promised += 1
        return True

    def go_on(self, taken: Sequence[tuple[Claimed, StepRef]]) -> None:
        works = {task_id(ref): functools.partial(self._work_on, claimed) for claimed, ref in taken}
        self._pool.begin_ahead(works, functools.partial(self._tell, [ref for _, ref in taken]))

    async def _work_on(self, claimed: Claimed) -> None:
        await work_on(self._runtime, claimed)

    def _channel(self) -> Channel | None:
        """The channel that tasks come through; None while there is none, and where it is none of ours."""
        channel = getattr(getattr(self._worker.consumer, "task_consumer", None), "channel", None)
        return channel if isinstance(channel, Channel) else None

    def _tell(self, steps: Sequence[StepRef]) -> None:
        """On Celery's thread: hand on what Redis would have brought, so that the pool finds it begun."""
        channel = self._channel()
        try:
            if channel is not None:
                for ref in steps:
                    channel.hand_on(step_message(ref), ref.queue)
        except Exception:
            log.exception("tasks_not_told", steps=len(steps))  # they go on; a connection that was lost is made anew
        finally:
            for ref in steps:
                self._pool.leave(task_id(ref))  # it was told of by now, or never is

    def _close(self, **_: Any) -> None:
        self._open = False
