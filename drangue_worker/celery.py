"""The Celery app that `celery -A drangue_worker ...` finds, made from the environment.

Importing this module reads the environment and loads the agents; everything else is made when it is used.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

from celery.signals import setup_logging

from drangue_client.errors import DrangueError
from drangue_client.settings import Settings
from drangue_worker.fleet.app import make_app
from drangue_worker.observability.logs import configure
from drangue_worker.registry import Registry


@setup_logging.connect
def _log_our_way(**_: Any) -> None:
    configure(settings)


try:
    settings = Settings.from_env()
    registry = Registry.load(settings.agents)
    app = make_app(settings, registry)
except DrangueError as error:
    sys.stderr.write(f"drangue: {error}\n")
    raise SystemExit(2) from None
except ImportError:
    # Celery takes an ImportError from here for a missing app and hides what the agents' module could not import.
    traceback.print_exc()
    raise SystemExit(1) from None
