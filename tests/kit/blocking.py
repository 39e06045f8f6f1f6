"""An async tool that keeps its event loop to itself, as a mistaken author's would."""

from __future__ import annotations

import time

from drangue_worker import Agent, OpenAIModel, tool


@tool
async def hog(seconds: float) -> str:
    """Blocks the loop on which every model call of the process runs."""
    time.sleep(seconds)  # noqa: ASYNC251 - the mistake that is meant
    return "done"


hogging = Agent(OpenAIModel("scripted"), [hog], "Do it.", name="hogging")
