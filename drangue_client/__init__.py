"""drangue_client: enqueue runs of durable agents, wait for them, decide what they ask.

This package knows what happened; `drangue_worker` knows what happens next. Importing it loads no model SDK, no worker
and no Celery.
"""

from drangue_client.aio import AsyncClient
from drangue_client.autonomy import Approval, Autonomy
from drangue_client.budget import Budget
from drangue_client.client import Client
from drangue_client.errors import DrangueError
from drangue_client.events import Event
from drangue_client.limits import Limits
from drangue_client.result import Result
from drangue_client.run import Run
from drangue_client.settings import Settings
from drangue_client.submission import Submission

__all__ = [
    "Approval",
    "AsyncClient",
    "Autonomy",
    "Budget",
    "Client",
    "DrangueError",
    "Event",
    "Limits",
    "Result",
    "Run",
    "Settings",
    "Submission",
]
