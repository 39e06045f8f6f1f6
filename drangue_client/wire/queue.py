"""The queue: task and queue names, and sending by name.

A message carries ids and nothing else, so it may be lost, doubled, late or read by anyone who can read Redis. Names are
wire format: they change only with a new name beside the old one. Sending is one command to Redis, whatever goes out
together; Celery is loaded only to ask workers.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError
from redis.retry import Retry

from drangue_client.errors import QueueUnavailable
from drangue_client.settings import Settings
from drangue_client.store.values import RunRow, StepRef
from drangue_client.wire.envelope import list_of, lists_of, message
from drangue_client.wire.signals import LIMITS

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

UNACKED, UNACKED_INDEX = "unacked", "unacked_index"  # kombu's copies of messages that were fetched, by tag and by time
URGENT = 0  # Redis serves priority 0 before all others: recovered steps go to the head of their queue
HANDOFF_S = 2.0  # how long a message may take to arrive before a sweep sends the run another one

Hint = tuple[str, tuple[str | int, ...], str, str, int]  # a task, its arguments, its id, its queue and its priority

# A connection lost while it was idle, to a Redis that was restarted, is made again at once. Where Redis is slow,
# nothing is tried twice: the commit came first, and a sweep sends what did not leave.
AGAIN = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))


class Sender:
    """Sends hints, over connections of its own. Safe from any thread, and after a fork. Raises QueueUnavailable when
    Redis is out of reach; what did not leave by then may have left in part. `app` is what asks workers."""

    def __init__(self, settings: Settings, app: Any = None) -> None:
        self._settings = settings
        self._app = app
        self._clients: dict[int, redis.Redis] = {}

    def coordinate(self, runs: Iterable[RunRow]) -> None:
        """Ask for a coordinator for each run."""
        self._send(
            (COORDINATE, (row.run_id,), f"{row.run_id}:c:{uuid.uuid4().hex[:8]}", COORDINATE_QUEUE, row.priority)
            for row in runs
        )

    def steps(self, refs: Iterable[StepRef]) -> None:
        """Ask for each step to be performed; an urgent one goes to the head of its queue."""
        self._send(_hint(ref) for ref in refs if ref.queue is not None)

    def waiting(self, queues: Sequence[str]) -> dict[str, int]:
        """How many messages wait in each queue, over all its priorities."""
        with _reaching(), self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                for name in lists_of(queue):
                    pipe.llen(name)
            lengths = iter(pipe.execute())
        return {queue: sum(next(lengths) for _ in lists_of(queue)) for queue in queues}

    def on_the_way(self, queue: str, depth: int, fetched_s: float) -> set[tuple[str, int]]:
        """The steps that the next `depth` messages of each priority of a queue are for, and those of messages that some
        worker fetched within `fetched_s` seconds and has not acknowledged, where workers keep such messages in Redis
        (`broker_acks`)."""
        with _reaching(), self._redis.pipeline(transaction=False) as pipe:
            for name in lists_of(queue):
                pipe.lrange(name, -depth, -1)
            pipe.zrangebyscore(UNACKED_INDEX, time.time() - fetched_s, "+inf")
            *lists, tags = pipe.execute()
            messages = [found for one in lists for found in one]
            if tags:
                messages += self._redis.hmget(UNACKED, tags)
        return {step for found in messages if found and (step := _step_of(found))}

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
        """The Celery app that asks workers: the worker's own, or one made here. Messages go past it."""
        if self._app is None:
            from drangue_client.wire.broker import sending_app

            self._app = sending_app(self._settings)  # of two made at once, neither connected yet, one is kept
        return self._app

    def close(self) -> None:
        """Close this process's connections; sending again makes new ones."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    @property
    def _redis(self) -> redis.Redis:
        """This process's client. No lock: one that is held while a pool forks stays locked in the child."""
        found = self._clients.get(os.getpid())
        return found or self._clients.setdefault(
            os.getpid(),
            redis.Redis.from_url(self._settings.require_redis(), retry=AGAIN, socket_keepalive=True, **LIMITS),
        )

    def _send(self, messages: Iterable[Hint]) -> None:
        lists: dict[str, list[str]] = {}
        for task, args, task_id, queue, priority in messages:
            lists.setdefault(list_of(queue, priority), []).append(message(task, args, task_id, queue, priority))
        if not lists:
            return
        with _reaching():
            if len(lists) == 1:
                ((name, values),) = lists.items()
                self._redis.lpush(name, *values)
                return
            with self._redis.pipeline(transaction=False) as pipe:
                for name, values in lists.items():
                    pipe.lpush(name, *values)
                pipe.execute()


def step_message(ref: StepRef) -> str:
    """The message of one step, as it stands in Redis; its queue is one."""
    return message(*_hint(ref))


def task_id(ref: StepRef) -> str:
    """What Celery calls the task of a step: each sending has an id of its own."""
    return f"{ref.run_id}:{ref.step}:{ref.attempt}.{ref.sends}"


def _hint(ref: StepRef) -> Hint:
    priority = URGENT if ref.urgent else ref.priority
    return TASKS[ref.kind], (ref.run_id, ref.step), task_id(ref), ref.queue or "", priority


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
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
