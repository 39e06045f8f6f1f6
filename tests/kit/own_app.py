"""An application with a Celery app of its own, on which drangue is installed."""

from __future__ import annotations

import os

from celery import Celery

from drangue_worker import install
from tests.kit.agents import effect, worker_agent

app = Celery("shop", broker=os.environ["DRANGUE_REDIS_URL"])
app.conf.update(worker_prefetch_multiplier=4, task_default_queue="shop", task_ignore_result=True)


@app.task
def restock(key: str) -> None:
    """A task of the application's own."""
    effect(key, "restock")


@app.task(time_limit=60)
def recount(key: str) -> None:
    """One that has a time limit, as no task of drangue's has."""
    effect(key, "recount")


install(app, [worker_agent])
