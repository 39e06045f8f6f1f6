"""`FleetRuntime`: one process's part of the fleet, made from settings: the log, the registry, the sender, the runtime.

Everything that holds a connection or a loop is made on first use and per process id, so that a pool may fork.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable, Sequence

from celery import Celery

from drangue_client.errors import QueueUnavailable
from drangue_client.settings import Settings
from drangue_client.store.log import SqlLog
from drangue_client.store.values import StepRef
from drangue_client.wire.queue import QUEUES, Sender
from drangue_client.wire.signals import Doorbell
from drangue_client.wire.tokens import TokenStream
from drangue_worker.engine import aside
from drangue_worker.engine.runtime import Runtime
from drangue_worker.fleet.aio import loop_thread
from drangue_worker.fleet.telling import Telling
from drangue_worker.observability.export import tracer_of
from drangue_worker.observability.logs import get_logger
from drangue_worker.registry import Registry

log = get_logger("drangue.tasks")

LOG_THREADS = 4  # more only contend for the interpreter


class FleetRuntime:
    """What the tasks and the sweeper of one worker share. `worker` names it in claims, and with a
    child's process id behind it the child that does the work. `app` is asked who works; hints go past it."""

    def __init__(self, settings: Settings, registry: Registry, app: Celery | None) -> None:
        self.settings = settings
        self.registry = registry
        self.sender = Sender(settings, app)
        self.log = SqlLog(settings.require_database())
        self.log.db.wait_by(aside)
        self.draining = False
        self.begin()

    def begin(self) -> None:
        """Take this process for the worker's main one, before its pool forks."""
        # Containers share names and process ids; a claim must not be given back in the name of another worker.
        self.worker = f"{socket.gethostname()}-{secrets.token_hex(3)}/{os.getpid()}"
        self.main = os.getpid()
        self._runtimes: dict[int, Runtime] = {}

    @property
    def queues(self) -> set[str]:
        """Every queue that steps of these agents are sent to."""
        return {*QUEUES, *self.registry.queues}

    def serves(self, queues: Iterable[str]) -> bool:
        """Whether a worker that consumes these queues works for us."""
        return bool(self.queues.intersection(queues))

    def runtime(self) -> Runtime:
        """This process's runtime."""
        found = self._runtimes.get(os.getpid())
        # No lock: one that is held while a pool forks stays locked in the child. A second runtime made at once is idle.
        return found or self._runtimes.setdefault(os.getpid(), self._make())

    def _publish(self, steps: Sequence[StepRef]) -> None:
        try:
            if steps:
                self.sender.steps(steps)
        except QueueUnavailable as error:
            log.warning("send_failed", steps=len(steps), error=str(error))  # open in Postgres: the sweep sends them

    def _make(self) -> Runtime:
        child = os.getpid() != self.main
        return Runtime(
            log=self.log,
            registry=self.registry,
            settings=self.settings,
            worker=f"{self.worker}.{os.getpid()}" if child else self.worker,
            executor="celery",
            doorbell=Doorbell(self.settings.redis_url),
            tracer=tracer_of(self.settings),
            watch=Telling(TokenStream(self.settings.redis_url)).watch,
            publish=self._publish,
            patient=True,
            killable=child,
            threads=LOG_THREADS,
            quiet=lambda: loop_thread().under_way <= 1 and self.log.db.idle,
        )
