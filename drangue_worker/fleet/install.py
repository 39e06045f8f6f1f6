"""`install`: drangue on an application's own Celery app, beside the tasks that are there.

Celery is loaded when it is called: the name is public, and most programs never use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from drangue_client import checks
from drangue_client.errors import SettingsError
from drangue_client.settings import Settings
from drangue_client.stackfile import find_settings
from drangue_client.wire.envelope import PRIORITY_STEPS
from drangue_client.wire.queue import COORDINATE
from drangue_worker.registry import Registry

if TYPE_CHECKING:
    from celery import Celery


def install(app: Celery, agents: Iterable[Any] | None = None, *, settings: Settings | None = None) -> None:
    """Put drangue's tasks, queues and sweeper on `app`, once it is configured; nothing of its own is changed.

    `agents` are those its workers serve, by default what DRANGUE_AGENTS names. `settings` are the environment's unless
    given, or those of the stack that runs in this folder. Their Redis is the app's broker where they name none, and
    must be that broker where they do, since clients send there. A worker of the app takes part if it consumes our
    queues, and then no others, since it ends what it runs when it is told to stop: `celery -A shop worker -Q
    drangue.tool` on processes, and with `-P custom` and CELERY_CUSTOM_WORKER_POOL=drangue_worker.fleet.pool:TaskPool
    the other queues. A `task_time_limit` and `task_annotations` for all tasks hold for ours as well. Once per app.
    Raises SettingsError for what cannot work together, TypeError for what is no app or no agent.
    """
    from drangue_client.wire.broker import broker_settings, queue_named
    from drangue_worker.fleet import transport
    from drangue_worker.fleet.app import equip
    from drangue_worker.fleet.worker import FleetRuntime

    checks.has("app", app, "send_task", "a Celery app")
    checks.kind("settings", settings, Settings, "a Settings", "Read them: Settings.from_env().", optional=True)
    settings = _with_broker(settings or find_settings(), app)
    settings.require_database()
    if COORDINATE in app.tasks:
        raise SettingsError("drangue is installed on this Celery app already. Install it once.")
    registry = Registry(agents) if agents is not None else Registry.load(settings.agents)
    fleet = FleetRuntime(settings, registry, None)
    taken = sorted(fleet.queues & set(app.amqp.queues))
    if taken:
        raise SettingsError(
            f"the Celery app has a queue {taken[0]!r} already. Give the tool another: @tool(queue=...)."
        )
    equip(app, fleet)  # which may refuse, so before anything is changed
    transport.use_it(fleet.queues)
    ours = broker_settings(settings)["broker_transport_options"]
    del ours["ack_emulation"]  # the app's own tasks have no claims
    app.conf.broker_transport_options = {**ours, **app.conf.broker_transport_options}
    for name in sorted(fleet.queues):
        app.amqp.queues[name] = queue_named(name)  # known by name, and consumed where `-Q` says so


def _with_broker(settings: Settings, app: Celery) -> Settings:
    """The settings with the app's broker for their Redis. SettingsError where they could not understand each other."""
    broker = str(app.conf.broker_read_url or app.conf.broker_url or "")
    if urlsplit(broker).scheme not in ("redis", "rediss"):
        raise SettingsError(
            "the Celery app's broker is no single redis:// or rediss:// address. Give it one, or drangue an app of its "
            "own."
        )
    if app.conf.broker_use_ssl:
        raise SettingsError(
            "the Celery app's broker_use_ssl is set, and drangue's clients read the address alone. Say it there: "
            "rediss://...?ssl_ca_certs=/ca.pem."
        )
    settings = settings if settings.redis_url else replace(settings, redis_url=broker)
    if _place(broker) != _place(settings.redis_url):
        raise SettingsError(
            "the Celery app's broker is another address than DRANGUE_REDIS_URL, where clients send. Write both alike, "
            "or leave the variable unset."
        )
    if "json" not in app.conf.accept_content:
        raise SettingsError("the Celery app's accept_content lacks 'json', which is all that drangue sends. Add it.")
    options = app.conf.broker_transport_options
    other = [name for name in ("global_keyprefix", "sep") if options.get(name)]
    other += ["priority_steps"] if list(options.get("priority_steps", PRIORITY_STEPS)) != list(PRIORITY_STEPS) else []
    if other:
        raise SettingsError(
            f"the Celery app's broker_transport_options set {other[0]!r}, and clients send without it. Remove it, or "
            "give drangue an app of its own."
        )
    return settings


def _place(url: str) -> tuple[str | None, int, str]:
    """Which Redis database an address means, whoever uses it."""
    parts = urlsplit(url)
    return parts.hostname, parts.port or 6379, parts.path.strip("/") or "0"
