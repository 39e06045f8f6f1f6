"""Autonomy: each tool runs by itself, waits for a person, or is only proposed; people decide call by call.

Several approvals may be waiting at once, and what needs nobody goes on meanwhile.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/autonomy.py
"""

import asyncio

from _model import MODEL, scripted

from drangue_worker import Agent, Autonomy, tool

DONE = []


def read_ticket(ticket: int) -> str:
    """A ticket's text."""
    DONE.append(f"read {ticket}")
    return f"ticket {ticket}: the invoice is wrong"


def close_ticket(ticket: int) -> str:
    """Close a ticket."""
    DONE.append(f"closed {ticket}")
    return f"ticket {ticket} is closed"


@tool(requires_approval=True)
def pay(to: str, amount_usd: int) -> str:
    """Pay somebody."""
    DONE.append(f"paid {to} {amount_usd} USD")
    return f"paid {to} {amount_usd} USD"


agent = Agent(
    MODEL,
    [read_ticket, close_ticket, pay],
    "You settle tickets.",
    autonomy=Autonomy(default="autonomous", modes={"close_ticket": "shadow"}),  # `pay` waits whatever is said here
)


async def main() -> None:
    async with agent:
        result = await agent.run("Settle tickets 7 and 8.", run_id="tickets")
        print(f"{result.status}; done so far: {DONE}")
        for request in result.pending_approvals:
            print(f"  waiting: {request['tool']}({request['arguments']})")
            if request["arguments"]["amount_usd"] < 100:
                await agent.approve("tickets", request["call_id"], by="ann")
            else:
                await agent.reject("tickets", request["call_id"], "too much for one invoice", by="ann")
        result = await agent.resume("tickets")
        print(f"{result.status}; done in all: {DONE}\n")
        for message in result.messages:
            if message["role"] == "tool":
                print(f"{message['name']:<12} {message['content']}")
        print(result.output)


SCRIPT = [
    [
        *[("read_ticket", {"ticket": 7}), ("close_ticket", {"ticket": 8})],
        *[("pay", {"to": "ann", "amount_usd": 20}), ("pay", {"to": "eve", "amount_usd": 2000})],
    ],
    "Ann is paid, Eve is not, and ticket 8 could be closed.",
]

if __name__ == "__main__":
    with scripted(SCRIPT):
        asyncio.run(main())
