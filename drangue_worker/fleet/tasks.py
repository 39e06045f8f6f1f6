"""The tasks: ids in, nothing out. What they do is the engine's; a message that means nothing any more does nothing.

What Celery is told of a failure shows in Flower, so it is the kind of the error and never its text.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from celery import Celery

from drangue_client import checks
from drangue_client.errors import UnknownRunError
from drangue_client.wire.queue import CALL_MODEL, CALL_TOOL, COORDINATE, PREPARE
from drangue_worker.engine.coordinate import Next, move_on
from drangue_worker.engine.perform import perform
from drangue_worker.fleet.aio import loop_thread
from drangue_worker.fleet.pool import StepError
from drangue_worker.fleet.worker import FleetRuntime
from drangue_worker.observability.logs import get_logger
from drangue_worker.tools.invoke import outliving

log = get_logger("drangue.tasks")

T = TypeVar("T")

# Whatever an application's own app says for its tasks.
OPTIONS: dict[str, Any] = {
    "acks_late": True,
    "reject_on_worker_lost": True,  # claims count the attempts, so it cannot go on for ever
    "ignore_result": True,
    "serializer": "json",
    "shared": False,
}


def add_tasks(app: Celery, fleet: FleetRuntime) -> None:
    """Register the tasks on an app, by their wire names. `drangue_work` is what a pool with an event loop begins; a
    task's own function is for a pool of processes."""

    async def do_coordinate(run_id: str) -> None:
        runtime = fleet.runtime()
        try:
            if _is_id(run_id):
                await runtime.together(move_on, Next(run_id))
        except UnknownRunError:
            log.warning("unknown_run", run_id=run_id)

    async def do_step(run_id: str, step: int) -> None:
        if _is_id(run_id) and _is_step(step):
            await perform(fleet.runtime(), run_id, step)

    @app.task(**OPTIONS, name=COORDINATE, drangue_work=staticmethod(do_coordinate))
    def coordinate_run(run_id: str) -> None:
        _run(do_coordinate(run_id))

    @app.task(**OPTIONS, name=PREPARE, drangue_work=staticmethod(do_step))
    def prepare(run_id: str, step: int) -> None:
        _run(do_step(run_id, step))

    @app.task(**OPTIONS, name=CALL_MODEL, drangue_work=staticmethod(do_step))
    def call_model(run_id: str, step: int) -> None:
        _run(do_step(run_id, step))

    @app.task(**OPTIONS, name=CALL_TOOL, drangue_work=staticmethod(do_step))
    def call_tool(run_id: str, step: int) -> None:
        _run(do_step(run_id, step))
        if outliving():
            # Its outcome is recorded; only the end of its process ends the call itself. The pool makes another one.
            log.warning("process_retired", run_id=run_id, step=step)
            raise SystemExit("a tool did not end when its time was over, so its process does")


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return loop_thread().run(work)
    except Exception as error:
        log.exception("task_failed")
        raise StepError(type(error).__name__) from None


def _is_id(run_id: object) -> bool:
    """Whoever can write to Redis can write anything there: what is no id is dropped here."""
    try:
        checks.printable("run_id", run_id)
    except (TypeError, ValueError):
        log.warning("message_dropped")
        return False
    return True


def _is_step(step: object) -> bool:
    ok = isinstance(step, int) and not isinstance(step, bool) and -(2**31) <= step < 2**31
    if not ok:
        log.warning("message_dropped")
    return ok
