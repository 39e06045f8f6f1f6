"""Agents whose calls need leave, each by another policy. Their effects go to the table of `tests.kit.agents`."""

from __future__ import annotations

from drangue_worker import Agent, Approval, Autonomy, OpenAIModel, tool
from tests.kit.agents import effect


@tool(reversible=False, fallback="parked for tomorrow")
def wire(amount: int, idempotency_key: str) -> str:
    """Send money."""
    effect(idempotency_key, f"wire {amount}")
    return f"wired {amount}"


def _agent(name: str, policy: Approval) -> Agent:
    autonomy = Autonomy(modes={"wire": "assisted"}, approval=policy)
    return Agent(OpenAIModel("scripted"), [wire], "Do it.", autonomy=autonomy, name=name)


plain = _agent("plain", Approval())
expiring = _agent("expiring", Approval(expires_s=1.0))
brief = _agent("brief", Approval(expires_s=5.0))
falling_back = _agent("falling-back", Approval(expires_s=1.0, on_expiry="fallback"))
escalating = _agent("escalating", Approval(group="ops", escalate_s=1.0, escalate_to="leads"))
double = _agent("double", Approval(people=2))
