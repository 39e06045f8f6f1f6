"""What Celery is told about Redis. The only module of the client that loads Celery; imported when workers are asked.

Celery and kombu put other objects into `sys.modules` while they are imported: of two threads that import them first at
once, one gets a module without `Celery`. They are therefore loaded here, where Python lets one thread in at a time.
"""

from __future__ import annotations

import ssl
from dataclasses import replace
from typing import Any

from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from drangue_client.settings import Settings
from drangue_client.wire.envelope import PRIORITY_STEPS
from drangue_client.wire.queue import COORDINATE_QUEUE

BROKER_ERRORS = (OperationalError, RedisError, OSError)


def broker_settings(settings: Settings) -> dict[str, Any]:
    """Celery's settings for everyone who sends or consumes; each answers a failure that was seen to happen."""
    url = settings.require_redis()
    return {
        "broker_url": url,
        # kombu verifies no server unless it is told to, where redis-py does; what the address says still holds.
        **({"broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED}} if url.lower().startswith("rediss:") else {}),
        "broker_transport_options": {
            "socket_timeout": 5,  # without it a half-open link blocks a worker or a publisher for good
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # Claims say what is under way, and a sweep sends again what a worker took with it when it died.
            "ack_emulation": settings.broker_acks,
            "visibility_timeout": int(settings.visibility_timeout_s),
            "priority_steps": list(PRIORITY_STEPS),
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_pool_limit": 10,
        "broker_pool_acquire_timeout": 5,
        "task_serializer": "json",
        "accept_content": ["json"],
        "event_serializer": "json",
        "task_ignore_result": True,
        "result_backend": None,
        "task_default_queue": COORDINATE_QUEUE,
        "task_create_missing_queues": False,
    }


def queue_named(name: str) -> Queue:
    """A queue whose publish is one LPUSH and which survives a FLUSHALL: the default exchange needs no binding."""
    return Queue(name, Exchange("", type="direct"), routing_key=name)


def sending_app(settings: Settings) -> Celery:
    """An app that asks workers and has no tasks of its own; it leaves the application's current app alone."""
    app = Celery("drangue-client", set_as_current=False)
    app.conf.update(broker_settings(replace(settings, broker_acks=False)))  # of answers no copy is kept
    return app
