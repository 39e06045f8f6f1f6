"""The Celery app of a worker: its settings, each answering a failure that was seen to happen, and its parts."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.concurrency import get_implementation
from celery.signals import celeryd_init, worker_process_init, worker_process_shutdown, worker_shutdown

from drangue_client.settings import Settings
from drangue_client.wire.broker import broker_settings, queue_named
from drangue_client.wire.queue import QUEUES
from drangue_worker.fleet import transport
from drangue_worker.fleet.pool import TaskPool
from drangue_worker.fleet.steps import steps_for
from drangue_worker.fleet.tasks import add_tasks
from drangue_worker.fleet.worker import FleetRuntime
from drangue_worker.observability.export import check_tracer, flush
from drangue_worker.registry import Registry

LOOP_POOL = "drangue_worker.fleet.pool:TaskPool"


def make_app(settings: Settings, registry: Registry) -> Celery:
    """A Celery app that performs steps of the agents in `registry`."""
    app = Celery("drangue")
    app.conf.update(worker_settings(settings, registry))
    fleet = FleetRuntime(settings, registry, app)
    transport.use_it()
    equip(app, fleet)

    def choose_processes(instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
        if instance.app is app and not _on_loop(conf, options):
            conf.worker_concurrency = settings.tool_concurrency

    celeryd_init.connect(choose_processes, weak=False)
    return app


def equip(app: Celery, fleet: FleetRuntime) -> None:
    """Give an app our tasks, and its workers our parts, which work in those that serve one of our queues."""
    settings = fleet.settings
    check_tracer(settings)
    add_tasks(app, fleet)
    for step in steps_for(fleet):
        app.steps["worker"].add(step)

    def choose_calls(instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
        """Calls that wait are more than processes that work; `--concurrency` still wins."""
        if instance.app is app and _on_loop(conf, options):
            conf.worker_concurrency = settings.model_concurrency

    def begin(instance: Any, **_: Any) -> None:
        """Whoever imported the app may have forked since: the worker is the process that starts as one."""
        if instance.app is app:
            fleet.begin()

    def send_spans(**_: Any) -> None:
        flush(settings)

    def lead_a_group(**_: Any) -> None:
        """What a tool starts is ended with the process that started it: only then is nothing of it at work any more."""
        if fleet.serves(app.amqp.queues.consume_from):
            os.setpgid(0, 0)
            if fleet.main not in (os.getpid(), os.getppid()):  # it died before Celery had asked to be ended with it
                os._exit(0)

    celeryd_init.connect(begin, weak=False)
    celeryd_init.connect(choose_calls, weak=False)
    worker_process_init.connect(lead_a_group, weak=False)
    worker_process_shutdown.connect(send_spans, weak=False)
    worker_shutdown.connect(send_spans, weak=False)


def _on_loop(conf: Any, options: dict[str, Any]) -> bool:
    return issubclass(get_implementation(options.get("pool") or conf.worker_pool), TaskPool)


def worker_settings(settings: Settings, registry: Registry) -> dict[str, Any]:
    """Celery's settings of a worker."""
    return {
        **broker_settings(settings),
        "task_queues": [queue_named(name) for name in sorted({*QUEUES, *registry.queues})],
        "worker_pool": LOOP_POOL,
        "task_retry_on_worker_lost": False,
        "worker_prefetch_multiplier": 1,
        # Claims make the redelivery harmless, and a call in flight is worth keeping.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": settings.task_events,
        "task_repr_maxlevels": 1,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_enable_remote_control": True,
        "timezone": "UTC",
    }
