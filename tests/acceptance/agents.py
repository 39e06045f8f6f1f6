"""Agents whose every word is a secret: what they are asked, what their tools are given, return and raise.

Beside them one whose transfers are never heard of again.
"""

from __future__ import annotations

import asyncio

from drangue_client.autonomy import Autonomy
from drangue_worker import Agent, OpenAIModel, tool

SECRET = "mark-of-a-secret"  # in every prompt, argument, result and exception
BEYOND = "mark-beyond-exception"  # in what the tools raise that is no Exception


class Panic(BaseException):
    """What extension modules raise for a crash of their own: no Exception, so that nobody catches it by accident."""


@tool
def tell(text: str) -> str:
    """A sync tool."""
    return f"told {text}"


@tool
async def tell_async(text: str) -> str:
    """An async tool."""
    await asyncio.sleep(0)
    return f"told {text}"


@tool
def fail(text: str) -> str:
    """A sync tool that raises."""
    raise RuntimeError(text)


@tool
async def fail_async(text: str) -> str:
    """An async tool that raises."""
    raise RuntimeError(text)


@tool
def panic(text: str) -> str:
    """A sync tool that raises what is no Exception."""
    raise Panic(text)


@tool
def publish(text: str) -> str:
    """A tool that a person has to read the arguments of."""
    return f"published {text}"


@tool(reversible=False, timeout=0.2, on_unknown="ask")
async def lose(amount: int, note: str = "") -> str:
    """A transfer whose answer never comes; a person is asked what became of it."""
    await asyncio.sleep(60)
    return f"sent {amount} {note}"


@tool(reversible=False, timeout=0.2)
async def lose_quietly(amount: int) -> str:
    """The same; the model is told that nobody knows."""
    await asyncio.sleep(60)
    return f"sent {amount}"


TOOLS = [tell, tell_async, fail, fail_async, panic]
keeper = Agent(OpenAIModel("scripted"), TOOLS, f"Keep {SECRET}.", name="keeper")
editor = Agent(
    OpenAIModel("scripted"), [publish], "Publish.", autonomy=Autonomy(modes={"publish": "assisted"}), name="editor"
)
lossy = Agent(OpenAIModel("scripted"), [lose, lose_quietly], "Pay.", name="lossy")
