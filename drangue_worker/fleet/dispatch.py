"""Eager dispatch in a worker with a loop pool: steps that begin at once, and of which Celery is told right behind.

Only what there is room for: where there is none, others wait in Redis, and whoever comes behind them lines up there.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from celery.signals import worker_shutting_down

from drangue_client.store.values import Claimed, Open, StepRef
from drangue_client.wire.queue import TASKS, step_message, task_id
from drangue_worker.engine.perform import work_on
from drangue_worker.engine.runtime import Runtime
from drangue_worker.fleet.pool import TaskPool


class PoolDispatch:
    """The dispatch of one worker, asked by the thread that settles."""

    def __init__(self, worker: Any, runtime: Runtime) -> None:
        self._worker = worker
        self._runtime = runtime
        self._pool: TaskPool = worker.pool
        self._promised = 0
        self._open = True
        worker_shutting_down.connect(self._close)

    def wants(self, opened: Open) -> bool:
        channel = self._channel()
        if not self._open or channel is None or opened.queue not in channel.connection._callbacks:
            return False
        if self._worker.consumer.task_buckets.get(TASKS[opened.kind]) is not None:
            return False  # an operator's rate limit is Celery's to keep
        room = channel.qos.can_consume_max_estimate()
        if room is None or room <= self._promised + self._pool.ahead:
            return False
        self._promised += 1
        return True

    def go_on(self, taken: Sequence[tuple[Claimed, StepRef]]) -> None:
        self._promised = 0
        if taken:
            works = {task_id(ref): functools.partial(self._work_on, claimed) for claimed, ref in taken}
            self._pool.begin_ahead(works, functools.partial(self._tell, [ref for _, ref in taken]))

    async def _work_on(self, claimed: Claimed) -> None:
        await work_on(self._runtime, claimed)

    def _channel(self) -> Any:
        """The channel that tasks come through; None where there is none now, and where others look after messages: an
        application's own app, or copies in Redis (`broker_acks`), which a message of ours must have like any other."""
        tasks = getattr(self._worker.consumer, "task_consumer", None)
        channel = getattr(tasks, "channel", None)
        return channel if getattr(channel, "takes_many", False) else None

    def _tell(self, steps: Sequence[StepRef]) -> None:
        """On Celery's thread: hand on what Redis would have brought, so that the pool finds it begun."""
        channel = self._channel()
        for ref in steps:
            if channel is not None and ref.queue in channel.connection._callbacks:  # else the connection was lost
                channel.connection._deliver(json.loads(step_message(ref)), ref.queue)
            self._pool.leave(task_id(ref))  # it was told of by now, or never is

    def _close(self, **_: Any) -> None:
        self._open = False
