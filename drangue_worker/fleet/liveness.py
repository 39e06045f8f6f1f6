"""The sign of life of a worker: a file that is touched about every second while the worker could work.

Whoever looks after processes (a container's health check, a service manager) starts a worker again whose file is old.
It stays young while Postgres or Redis is away: a worker waits for them by itself, and another one could do no better.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import bootsteps

from drangue_client.errors import SettingsError
from drangue_worker.fleet.aio import loop_thread
from drangue_worker.fleet.pool import TaskPool
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.worker")

BEAT_S = 1.0


def check_writable(path: str) -> None:
    """Make the file and remove it, so that a path which cannot be used is known before anything starts. Raises
    SettingsError."""
    try:
        _touch(path)
        Path(path).unlink()
    except OSError as error:
        raise SettingsError(
            f"DRANGUE_LIVENESS_FILE: {path!r} cannot be written ({error.strerror}). Name a file in a folder that this "
            "worker may write to."
        ) from None


def living_step(path: str) -> type[bootsteps.StartStopStep]:
    """The bootstep that touches the file at `path`, and removes it when the worker ends in order."""

    class Living(bootsteps.StartStopStep):
        """Touches the file on a thread of its own; where an event loop does the work, only when that answers."""

        requires = ("celery.worker.components:Pool",)

        def __init__(self, worker: Any, **kwargs: Any) -> None:
            self._stop = threading.Event()

        def start(self, worker: Any) -> None:
            on_loop = isinstance(worker.pool, TaskPool)
            threading.Thread(target=self._beat, args=(on_loop,), name="drangue-liveness", daemon=True).start()

        def stop(self, worker: Any) -> None:
            self._stop.set()
            Path(path).unlink(missing_ok=True)

        def terminate(self, worker: Any) -> None:
            self.stop(worker)

        def _beat(self, on_loop: bool) -> None:
            sign: Callable[[], None] = self._sign
            while not self._stop.wait(BEAT_S):
                if on_loop:
                    loop_thread().loop.call_soon_threadsafe(sign)
                else:
                    sign()

        def _sign(self) -> None:
            if self._stop.is_set():
                return  # and removed
            try:
                _touch(path)
            except OSError as error:
                log.warning("liveness_not_shown", error=str(error))

    return Living


def _touch(path: str) -> None:
    Path(path).touch()
