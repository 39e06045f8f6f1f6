"""`FleetRuntime`: one process's part of the fleet, made from settings: the log, the registry, the sender, the runtime.

Everything that holds a connection or a loop is made on first use and per process id, so that a pool may fork.
"""

from __future__ import annotations

import os
import socket
import threading

from celery import Celery

from drangue_client.settings import Settings
from drangue_client.store.log import SqlLog
from drangue_client.wire.queue import Sender
from drangue_client.wire.signals import Doorbell
from drangue_worker.engine.runtime import Runtime
from drangue_worker.registry import Registry

LOG_THREADS = 4  # more only contend for the interpreter


class FleetRuntime:
    """What the tasks and the sweeper of one worker share."""

    def __init__(self, settings: Settings, registry: Registry, app: Celery) -> None:
        self.settings = settings
        self.registry = registry
        self.sender = Sender(settings, app)
        self.log = SqlLog(settings.require_database())
        self.main_pid = os.getpid()
        self._making = threading.Lock()
        self._runtimes: dict[int, Runtime] = {}

    @property
    def worker(self) -> str:
        """How claims name this worker: host and main process, whatever child of it does the work."""
        return f"{socket.gethostname()}/{self.main_pid}"

    def runtime(self) -> Runtime:
        """This process's runtime."""
        pid = os.getpid()
        with self._making:
            if pid not in self._runtimes:
                self._runtimes[pid] = Runtime(
                    log=self.log,
                    registry=self.registry,
                    settings=self.settings,
                    worker=self.worker,
                    executor="celery",
                    doorbell=Doorbell(self.settings.redis_url),
                    patient=True,
                    threads=LOG_THREADS,
                )
            return self._runtimes[pid]
