"""Bootsteps: what every worker process does besides its tasks.

The sweeper looks for work that stopped; the drain gives running steps back when the worker is told to stop; the killer
ends processes whose tools outlive their time; the guard refuses to start a pool that could not stop its tools. They run
in the worker's main process, on every pool.
"""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from celery import bootsteps
from celery.concurrency import get_implementation
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.signals import worker_shutting_down

from drangue_client.errors import DatabaseUnavailable, QueueUnavailable
from drangue_client.store.values import Release
from drangue_client.wire.queue import LOOP_QUEUES
from drangue_worker.engine.sweep import Sweeper, sweep_until
from drangue_worker.fleet.aio import loop_thread
from drangue_worker.fleet.dispatch import PoolDispatch
from drangue_worker.fleet.killing import end, give_back_of_ended, kill_overdue
from drangue_worker.fleet.liveness import living_step
from drangue_worker.fleet.pool import TaskPool
from drangue_worker.fleet.worker import FleetRuntime
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.worker")

REGISTER_S = 60.0
GARBAGE = 50_000  # objects between two looks at the youngest; Python's own number is 700
KILL_CHECK_S = 0.5


def steps_for(fleet: FleetRuntime) -> list[type[bootsteps.StartStopStep]]:
    """The bootsteps of one app, bound to its runtime."""

    class Ours(bootsteps.StartStopStep):
        """A part of workers that serve one of our queues: an application's own workers do other things as well."""

        def include_if(self, parent: Any) -> bool:
            return fleet.serves(parent.app.amqp.queues.consume_from)

    class Guard(Ours):
        """Serves each queue from a pool that can stop what it runs: loops on our threads, sync tools in processes."""

        def create(self, worker: Any) -> None:
            pool = get_implementation(worker.pool_cls)
            if not issubclass(pool, (TaskPool, PreforkPool)):
                _refuse(
                    f"the pool {pool.__module__} cannot give back what it runs when it is told to stop. Leave `-P` out "
                    "for the loop's queues, use `-P processes` for sync tools, or name other queues with `-Q`."
                )
            consumed = set(worker.app.amqp.queues.consume_from)
            others = sorted(consumed - fleet.queues)
            if others:  # which would end with ours at a drain or a timeout
                _refuse(
                    f"this worker serves drangue's queues and others ({', '.join(others)}). Give each a worker of its "
                    f"own: name queues with `-Q`."
                )
            served = fleet.queues & consumed
            sync = sorted(served - set(LOOP_QUEUES) - fleet.registry.async_queues)
            if issubclass(pool, TaskPool) and sync:
                _refuse(
                    f"this worker's tasks share an event loop, and it is asked for queues of sync tools "
                    f"({', '.join(sync)}). "
                    "Start `drangue worker tool` for those, or add `-P processes`; give this one `-Q "
                    f"{','.join(LOOP_QUEUES)}`."
                )

    class Sweeping(Ours):
        """The sweeper's thread, and the registration of this worker's agents."""

        requires = ("celery.worker.components:Pool",)

        def __init__(self, worker: Any, **kwargs: Any) -> None:
            self._stop = threading.Event()
            self._thread: threading.Thread | None = None

        def start(self, worker: Any) -> None:
            _settle_memory()
            sweeper = Sweeper(fleet.log, fleet.sender, fleet.settings)
            self._thread = threading.Thread(target=self._serve, args=(sweeper,), name="drangue-sweeper", daemon=True)
            self._thread.start()

        def stop(self, worker: Any) -> None:
            self._stop.set()

        def terminate(self, worker: Any) -> None:
            self.stop(worker)

        def _serve(self, sweeper: Sweeper) -> None:
            settings = fleet.settings
            sweep_until(
                self._stop.wait, sweeper, lambda: settings.sweep_s * random.uniform(0.7, 1.0), Registration(fleet).renew
            )

    class Dispatching(Ours):
        """Lets a worker with room go on with what it opens."""

        requires = ("celery.worker.components:Pool",)

        def start(self, worker: Any) -> None:
            if isinstance(worker.pool, TaskPool) and fleet.settings.eager_dispatch:
                fleet.runtime().dispatch = PoolDispatch(worker, fleet.runtime())

    class Draining(Ours):
        """Bounds how long a worker that was told to stop goes on with what it has begun."""

        requires = ("celery.worker.components:Pool",)

        def __init__(self, worker: Any, **kwargs: Any) -> None:
            self._begin: Any = None

        def start(self, worker: Any) -> None:
            self._begin = lambda **_: _drain_soon(fleet, worker.pool)
            worker_shutting_down.connect(self._begin, weak=False)

        def stop(self, worker: Any) -> None:
            worker_shutting_down.disconnect(self._begin)

    class Killing(Ours):
        """Ends the processes of a prefork pool in which a call goes on although its time, or its turn, is over."""

        requires = ("celery.worker.components:Pool",)

        def __init__(self, worker: Any, **kwargs: Any) -> None:
            self._stop = threading.Event()

        def start(self, worker: Any) -> None:
            if not isinstance(worker.pool, TaskPool):
                threading.Thread(target=self._watch, name="drangue-killer", daemon=True).start()

        def stop(self, worker: Any) -> None:
            self._stop.set()

        def terminate(self, worker: Any) -> None:
            self.stop(worker)

        def _watch(self) -> None:
            buried: set[str] = set()
            while not self._stop.wait(KILL_CHECK_S) and not fleet.draining:
                self._try(lambda fleet: give_back_of_ended(fleet, buried))
                self._try(kill_overdue)

        def _try(self, work: Callable[[FleetRuntime], None]) -> None:
            try:
                work(fleet)
            except DatabaseUnavailable as error:
                log.warning("kill_delayed", error=str(error))
                self._stop.wait(fleet.settings.lease_s)  # children that have ended their calls may say so first
            except QueueUnavailable as error:
                log.warning("kill_delayed", error=str(error))
            except Exception:
                log.exception("kill_failed")  # the next look may succeed, and must be tried

    living = [living_step(fleet)] if fleet.settings.liveness_file else []
    return [Guard, Sweeping, Dispatching, Draining, Killing, *living]


def _settle_memory() -> None:
    """What a worker has loaded by now it keeps: it need not be looked through again for garbage, of which little comes
    that references alone do not free. Measured on a burst of small runs: 15 % more steps."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)


def _refuse(message: str) -> NoReturn:
    """End the start of a worker with one line; Celery would print a page for an exception."""
    sys.stderr.write(f"drangue: {message}\n")
    raise SystemExit(2)


def _drain_soon(fleet: FleetRuntime, pool: Any) -> None:
    """Called inside a signal handler: no lock, no I/O. The grace period starts here."""
    timer = threading.Timer(fleet.settings.drain_grace_s, _drain, (fleet, pool))
    timer.daemon = True
    timer.start()


def _drain(fleet: FleetRuntime, pool: Any) -> None:
    """Give running steps back, all at once, and end the work on them. The worker ends when the last one has ended."""
    log.info("draining")
    fleet.draining = True  # what ends from here on was told to, and is no crash
    fleet.runtime().patient = False  # a database that is away must not keep a worker from ending
    try:
        if isinstance(pool, TaskPool):
            undone = loop_thread().call(fleet.runtime().leases.hand_over)
            releases = [Release(ask, category="drained", lost=True) for ask in undone]
            given_back = [ref for ref in fleet.log.release(releases) if ref]
        else:
            _kill_children(pool)
            given_back = fleet.log.release_worker(fleet.worker)
        log.info("steps_given_back", steps=len(given_back))
        fleet.sender.steps(given_back)
    except (DatabaseUnavailable, QueueUnavailable) as error:
        log.warning("give_back_failed", error=str(error))  # the leases lapse, and a sweep of another worker sends them
    finally:
        loop_thread().drain()


def _kill_children(pool: Any) -> None:
    """End the processes of a prefork pool: their code cannot be asked to stop."""
    for process in list(pool._pool._pool):
        if process.pid:
            end(process.pid)


class Registration:
    """Says which agents this worker serves, at its start and every minute: submitters check names against it."""

    def __init__(self, fleet: FleetRuntime) -> None:
        self._fleet = fleet
        self._due_at = 0.0

    def renew(self) -> None:
        """Register if it is time. Raises DatabaseUnavailable; then it stays due."""
        if time.monotonic() < self._due_at:
            return
        try:
            self._fleet.log.register([blueprint.row() for blueprint in self._fleet.registry])
        except DatabaseUnavailable:
            raise
        except Exception:
            log.exception("registration_failed")  # names are a convenience; sweeping must go on
        self._due_at = time.monotonic() + REGISTER_S
