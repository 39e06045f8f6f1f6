"""The agent that the web examples ask for by name, with a counted effect that two people must grant."""

from __future__ import annotations

from drangue_worker import Agent, Approval, Autonomy, OpenAIModel, tool
from tests.kit.agents import effect


@tool
def error_rate(service: str) -> str:
    """Share of a service's requests that failed."""
    return "7.5 %"


@tool(reversible=False)
def restart(service: str, idempotency_key: str) -> str:
    """Restart a service."""
    effect(idempotency_key, "restart")
    return f"{service} restarted"


oncall = Agent(
    OpenAIModel("scripted"),
    [error_rate, restart],
    "Look before you act.",
    autonomy=Autonomy(modes={"restart": "assisted"}, approvals={"restart": Approval(people=2)}),
)
