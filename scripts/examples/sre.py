"""On call: an agent looks at a failing service, wants to roll it back, and waits until a person says yes.

The inbox shows what it wants to do and why. The audit trail is the log itself, with a time on every line.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/sre.py
"""

import asyncio
from datetime import datetime

from _model import MODEL, scripted

from drangue_worker import Agent, Autonomy, Event, tool
from drangue_worker.testing import Reply

RUNNING = {"checkout": "v42"}


@tool
def error_rate(service: str) -> str:
    """Share of a service's requests that failed in the last five minutes."""
    return "31 %" if RUNNING[service] == "v42" else "0.2 %"


@tool
def deploys(service: str) -> list[str]:
    """The latest deploys of a service, newest first."""
    return ["v42 at 14:02", "v41 yesterday"]


@tool(reversible=False)
def rollback(service: str, version: str, idempotency_key: str) -> str:
    """Put a service back to an earlier version. Connections are dropped."""
    RUNNING[service] = version
    return f"{service} runs {version} (change {idempotency_key})"


agent = Agent(
    MODEL,
    [error_rate, deploys, rollback],
    "You are on call. Look first; say why before you change anything; check afterwards; report in one sentence.",
    autonomy=Autonomy(modes={"rollback": "assisted"}),
)


async def main() -> None:
    async with agent:
        result = await agent.run("Checkout is failing.", run_id="page-1")
        print(f"{result.status}; running: {RUNNING}")
        for request in result.pending_approvals:
            print(f"inbox: {request['tool']}({request['arguments']})\n       {request['reasoning'] or request['text']}")
            await agent.approve("page-1", request["call_id"], by="ann", reason="seen it on the graph")
        result = await agent.resume("page-1")
        print(f"{result.status}; running: {RUNNING}\n{result.output}\n")
        for event in result.events:
            print(audit_line(event))


def audit_line(event: Event) -> str:
    """When it was over, what it was, and what of it matters to an auditor."""
    over = datetime.fromtimestamp(event.ts + (event.duration_ms or 0) / 1000)
    payload = event.payload
    match event.type:
        case "model_decision":
            about = payload["text"] or ", ".join(call["name"] for call in payload["tool_calls"])
        case "approval_requested":
            about = f"{payload['tool']}({payload['arguments']})"
        case "approval_granted" | "approval_denied":
            about = f"by {payload['by']}: {payload['reason']}"
        case "tool_result":
            about = f"{payload['name']}: {payload['content']}"
        case _:
            about = payload.get("input") or payload.get("tool") or payload.get("reason")
    return f"{over:%H:%M:%S.%f}  {event.type:<18}  {about}"


WHY = "The errors began with v42 at 14:02, so going back to v41 should end them."
SCRIPT = [
    [("error_rate", {"service": "checkout"}), ("deploys", {"service": "checkout"})],
    Reply(text=WHY, tool_calls=(("rollback", {"service": "checkout", "version": "v41"}),)),
    [("error_rate", {"service": "checkout"})],
    lambda call: f"Checkout is back on v41 and fails {call.results()[0]} of its requests.",
]

if __name__ == "__main__":
    with scripted(SCRIPT):
        asyncio.run(main())
