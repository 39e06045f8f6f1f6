"""`fastapi_app.py` of the examples, and beside it what only its own process can tell: the tasks of its event loop."""

from __future__ import annotations

import asyncio

from fastapi_app import app

__all__ = ["app"]


@app.get("/tasks")
async def tasks() -> list[str]:
    """What every task is at, this one's included."""
    return [str(task.get_coro()) for task in asyncio.all_tasks()]
