"""A newcomer's folder: an agent, its scenarios and a scripted model behind a real SDK, for commands typed in it.

The model does as its prompt says: told to be careful it looks an order up, told to be quick it pays odd ones, told to
guess it looks the wrong one up. Order 13 breaks it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drangue_worker.testing.provider import Provider, ProviderCall, Reply
from tests.acceptance.shell import Console, Done, environment

AGENTS = '''
import os
from pathlib import Path

from drangue_worker import Agent, OpenAIModel, tool


def effect(text):
    with Path("effects.txt").open("a") as file:
        file.write(text + "\\n")


@tool
def order_status(order: int) -> str:
    """Status of an order."""
    effect(f"looked {order} up")
    return f"order {order} was delivered"


@tool(reversible=False)
def wire(amount: int) -> str:
    """Move money."""
    effect(f"wired {amount}")
    return f"{amount} sent"


oncall = Agent(OpenAIModel("scripted"), [order_status, wire], os.environ.get("PROMPT", "Be careful."))
'''
SCENARIOS = """
from drangue_worker import Check, Scenario, forbids_tool, output_contains, within_steps

CHECKS = [output_contains("delivered"), forbids_tool("wire"), within_steps(2)]


def scenarios():
    return [Scenario(f"order {order}", f"Where is order {order}?", CHECKS) for order in (7, 8)]


broken = [Scenario("broken", "Where is order 13?", CHECKS), *scenarios()]
lost = [Scenario("broken", "Where is order 13?", CHECKS)]
number = 7


def raises():
    raise RuntimeError("the author made a mistake")


def checks(recorded):
    return [Check("correctness", "says the same", lambda result: result.output == recorded.output)]


def stub(tool, arguments):
    return "order 0 was delivered"
"""


def script(call: ProviderCall) -> Reply:
    order = int(re.findall(r"\d+", call.last_user())[-1])
    if order == 13:
        return Reply(status=400, error="order 13 broke the model")
    if call.results():
        return Reply("It was delivered." if "delivered" in call.results()[0] else "Money was sent.")
    if call.system == "Be quick." and order % 2:
        return Reply(tool_calls=(("wire", {"amount": 5}),))
    if call.system == "Guess.":
        return Reply(tool_calls=(("order_status", {"order": 0}),))
    return Reply(tool_calls=(("order_status", {"order": order}),))


@dataclass(frozen=True)
class Project:
    """A newcomer's folder, and `drangue eval` typed in it."""

    folder: Path
    env: dict[str, str]

    def __call__(self, *arguments: str, **variables: str) -> Done:
        return Console(self.env, self.folder)("eval", *arguments, **variables)

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def effects(self) -> list[str]:
        path = self.folder / "effects.txt"
        return path.read_text().splitlines() if path.exists() else []


@contextmanager
def made_in(folder: Path, **variables: str) -> Iterator[Project]:
    (folder / "evals").mkdir()
    (folder / "agents.py").write_text(AGENTS)
    (folder / "evals" / "scenarios.py").write_text(SCENARIOS)
    with Provider(script) as provider:
        given = {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "x", "DRANGUE_AGENTS": "agents", **variables}
        yield Project(folder, environment(**given))


ALL = "evals.scenarios:scenarios"
