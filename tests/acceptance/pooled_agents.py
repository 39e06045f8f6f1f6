"""An agent whose tools ask no database, for workers whose address of it only drangue can read."""

from __future__ import annotations

import asyncio
import time

from drangue_client.autonomy import Autonomy
from drangue_worker import Agent, OpenAIModel, tool


@tool
def note(text: str, seconds: float = 0.0) -> str:
    """A sync tool."""
    time.sleep(seconds)
    return f"noted {text}"


@tool
async def ping(seconds: float = 0.0) -> str:
    """An async tool."""
    await asyncio.sleep(seconds)
    return "pong"


@tool(reversible=False)
def wire(amount: int) -> str:
    """An irreversible tool, for which a person is asked."""
    return f"wired {amount}"


pooled = Agent(
    OpenAIModel("scripted"), [note, ping, wire], "Do it.", autonomy=Autonomy(modes={"wire": "assisted"}), name="pooled"
)
