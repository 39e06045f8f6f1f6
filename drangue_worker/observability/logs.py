"""Log lines: event names are constant text, data goes in keys, ids are bound once per step.

The library writes ordinary records of the standard library's `logging` (the keys as extras) and configures nothing; a
command calls `configure` to have them rendered, one JSON object or one readable line each, on standard error. Prompts,
arguments and results are in the event log, not here.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from drangue_client.settings import Settings

# Two lines for every task say less than the event log does.
CHATTY = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "openai",
    "alembic",
    "celery.worker.strategy",
    "celery.app.trace",
    "mcp",
)


logging.getLogger("drangue").addHandler(logging.NullHandler())  # an application that configures no logging hears none


def get_logger(name: str) -> Any:
    """A structlog logger onto `logging.getLogger(name)`, whatever structlog's global configuration."""
    return structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.render_to_log_kwargs,
        ],
    )


def configure(settings: Settings) -> None:
    """Render every record of this process on standard error. Repeating is safe."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.stdlib.ExtraAdder(),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
