"""The queue: task and queue names, and sending by name.

A message carries ids and nothing else, so it may be lost, doubled, late or read by anyone who can read Redis. Names are
wire format: they change only with a new name beside the old one. Celery is loaded when the first message is sent.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from redis.exceptions import NoPermissionError

from drangue_client.errors import QueueUnavailable
from drangue_client.settings import Settings
from drangue_client.store.values import RunRow, StepRef

COORDINATE = "drangue.coordinate"
PREPARE = "drangue.prepare"
CALL_MODEL = "drangue.call_model"
CALL_TOOL = "drangue.call_tool"
TASKS = {"prepare": PREPARE, "model": CALL_MODEL, "tool": CALL_TOOL}

COORDINATE_QUEUE = "drangue.coordinate"
MODEL_QUEUE = "drangue.model"
ASYNC_TOOL_QUEUE = "drangue.async_tool"
TOOL_QUEUE = "drangue.tool"
LOOP_QUEUES = (COORDINATE_QUEUE, MODEL_QUEUE, ASYNC_TOOL_QUEUE)
QUEUES = (*LOOP_QUEUES, TOOL_QUEUE)

URGENT = 0  # Redis serves priority 0 before all others: recovered steps go to the head of their queue
PRIORITY_STEPS = (0, 3, 6, 9)
HANDOFF_S = 2.0  # how long a message may take to arrive before a sweep sends the run another one


class Sender:
    """Sends hints. Safe from any thread, and after a fork. Raises QueueUnavailable when Redis is out of reach."""

    def __init__(self, settings: Settings, app: Any = None) -> None:
        self._settings = settings
        self._app = app

    def coordinate(self, runs: Iterable[RunRow]) -> None:
        """Ask for a coordinator for each run."""
        self._send(
            (
                COORDINATE,
                (row.run_id,),
                f"{row.run_id}:c:{uuid.uuid4().hex[:8]}",
                COORDINATE_QUEUE,
                row.priority,
            )
            for row in runs
        )

    def steps(self, refs: Iterable[StepRef]) -> None:
        """Ask for each step to be performed; an urgent one goes to the head of its queue."""
        self._send(
            (
                TASKS[ref.kind],
                (ref.run_id, ref.step),
                f"{ref.run_id}:{ref.step}:{ref.attempt}.{ref.sends}",
                ref.queue,
                URGENT if ref.urgent else ref.priority,
            )
            for ref in refs
        )

    def waiting(self, queues: Sequence[str]) -> dict[str, int]:
        """How many messages wait in each queue, over all its priorities."""
        from drangue_client.wire.broker import BROKER_ERRORS

        try:
            with self.app.connection_for_write() as connection:
                channel = connection.default_channel
                return {queue: int(channel._size(queue)) for queue in queues}
        except BROKER_ERRORS as error:
            raise QueueUnavailable(unreachable(error)) from error

    def on_the_way(self, queue: str, depth: int, fetched_s: float) -> set[tuple[str, int]]:
        """The steps that the next `depth` messages of each priority of a queue are for, and those of messages that some
        worker fetched within `fetched_s` seconds and has not acknowledged."""
        from drangue_client.wire.broker import BROKER_ERRORS

        try:
            with self.app.connection_for_write() as connection:
                channel = connection.default_channel
                with channel.conn_or_acquire() as client:
                    lists = [channel._q_for_pri(queue, priority) for priority in PRIORITY_STEPS]
                    messages = [message for name in lists for message in client.lrange(name, -depth, -1)]
                    tags = client.zrangebyscore(channel.unacked_index_key, time.time() - fetched_s, "+inf")
                    messages += client.hmget(channel.unacked_key, tags) if tags else []
        except BROKER_ERRORS as error:
            raise QueueUnavailable(unreachable(error)) from error
        return {step for message in messages if message and (step := _step_of(message))}

    def workers(self, timeout_s: float) -> list[dict[str, Any]]:
        """The worker processes that answer within so many seconds: {name, pool, concurrency, queues, tasks}.

        `pool` is "threads" or "processes", `tasks` how many messages it has taken since it started.
        """
        from drangue_client.wire.broker import BROKER_ERRORS

        try:
            ask = self.app.control.inspect(timeout=timeout_s)
            stats, queues = ask.stats() or {}, ask.active_queues() or {}
        except BROKER_ERRORS as error:
            raise QueueUnavailable(unreachable(error)) from error
        return [
            {
                "name": name,
                "pool": "processes" if "prefork" in str(told["pool"].get("implementation")) else "threads",
                "concurrency": told["pool"].get("max-concurrency"),
                "queues": sorted(queue["name"] for queue in queues.get(name, ())),
                "tasks": sum(told["total"].values()),
            }
            for name, told in sorted(stats.items())
        ]

    @property
    def app(self) -> Any:
        """The Celery app that sends: the worker's own, or one made here."""
        if self._app is None:
            from drangue_client.wire.broker import sending_app

            self._app = sending_app(self._settings)  # of two made at once, neither connected yet, one is kept
        return self._app

    def _send(self, messages: Iterable[tuple[str, tuple[Any, ...], str, str | None, int]]) -> None:
        from drangue_client.wire.broker import BROKER_ERRORS, queue_named

        messages = list(messages)
        if not messages:
            return
        try:
            with self.app.producer_or_acquire() as producer:
                for name, args, task_id, queue, priority in messages:
                    self.app.send_task(
                        name,
                        args,
                        task_id=task_id,
                        queue=queue_named(queue or ""),
                        priority=priority,
                        producer=producer,
                    )
        except BROKER_ERRORS as error:
            raise QueueUnavailable(unreachable(error)) from error


def _step_of(message: bytes) -> tuple[str, int] | None:
    """The step a message is for; None of what else may lie in a queue."""
    try:
        told = json.loads(message)
        whole = told[0] if isinstance(told, list) else told  # one that was fetched is kept with its address
        run_id, step, _ = whole["headers"]["id"].rsplit(":", 2)
        return run_id, int(step)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def unreachable(error: BaseException) -> str:
    """What to say when Redis does not answer, or refuses to."""
    reason = str(error).rstrip(".")
    if isinstance(error, NoPermissionError):
        return f"Redis refused: {reason}. Give its user what ops/redis/users.acl gives; recorded work waits meanwhile."
    return f"Redis cannot be reached: {reason}. Start it, or correct DRANGUE_REDIS_URL; recorded work waits meanwhile."
