"""The sign of life of a worker: a file that is touched about every second.

By its main process, and where an event loop does the work, only while that answers. Whoever looks after processes (a
container's health check, a service manager) starts a worker again whose file is old. It stays young while Postgres or
Redis is away: a worker waits for them by itself, and another one could do no better.
"""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path
from typing import Any

from celery import bootsteps

from drangue_client.errors import SettingsError
from drangue_worker.fleet.aio import loop_thread
from drangue_worker.fleet.pool import TaskPool
from drangue_worker.fleet.worker import FleetRuntime
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.worker")

BEAT_S = 1.0


def check_writable(path: str) -> None:
    """Make the file and remove it, so that a path which cannot be used is known before anything starts. Raises
    SettingsError."""
    try:
        if Path(path).exists() and Path(path).stat().st_size:
            raise SettingsError(
                f"DRANGUE_LIVENESS_FILE: {path!r} is a file that holds something. Name one of its own: it is removed "
                "when the worker ends."
            )
        Path(path).touch()
        Path(path).unlink()
    except OSError as error:
        raise SettingsError(
            f"DRANGUE_LIVENESS_FILE: {path!r} cannot be written ({error.strerror}). Name a file in a folder that this "
            "worker may write to."
        ) from None


def living_step(fleet: FleetRuntime) -> type[bootsteps.StartStopStep]:
    """The bootstep that touches the file, and removes it at the end of an orderly stop: who drains still lives."""
    path = Path(fleet.settings.liveness_file)

    class Living(bootsteps.StartStopStep):
        """Touches the file on a thread of its own; where an event loop does the work, only when that answers."""

        requires = ("celery.worker.components:Pool",)

        def __init__(self, worker: Any, **kwargs: Any) -> None:
            self._over = threading.Event()

        def include_if(self, parent: Any) -> bool:
            return fleet.serves(parent.app.amqp.queues.consume_from)

        def start(self, worker: Any) -> None:
            on_loop = isinstance(worker.pool, TaskPool)
            threading.Thread(target=self._beat, args=(on_loop,), name="drangue-liveness", daemon=True).start()
            atexit.register(self._end, os.getpid())

        def _beat(self, on_loop: bool) -> None:
            while not self._over.wait(BEAT_S):
                if on_loop:
                    loop_thread().loop.call_soon_threadsafe(self._sign)
                else:
                    self._sign()

        def _sign(self) -> None:
            if self._over.is_set():
                return  # and removed
            try:
                path.touch()
            except OSError as error:
                log.warning("liveness_not_shown", error=str(error))

        def _end(self, main: int) -> None:
            if os.getpid() == main:
                self._over.set()
                if path.exists() and not path.stat().st_size:  # plain Celery has not looked what it is
                    path.unlink()

    return Living
