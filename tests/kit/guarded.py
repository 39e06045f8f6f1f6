"""An agent whose own guard has the last word on a call that people approve."""

from __future__ import annotations

from typing import Any

from drangue_worker import Agent, Autonomy, Guardrails, OpenAIModel
from tests.kit.approving import wire


def at_most_ten(name: str, arguments: dict[str, Any]) -> str | None:
    """Refuse transfers that are too big."""
    return "more than ten" if arguments["amount"] > 10 else None


guarded = Agent(
    OpenAIModel("scripted"),
    [wire],
    "Do it.",
    autonomy=Autonomy(modes={"wire": "assisted"}),
    guardrails=Guardrails(output_guard=at_most_ten),
    name="guarded",
)
