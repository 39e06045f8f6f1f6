"""Deaths: the same run dies at every point where that could matter; a careless tool pays twice, a careful one does not.

`crash_everywhere` can be pointed at tools of your own: it counts what the world outside has seen.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/crashes.py
"""

from _model import MODEL, scripted

from drangue_worker import Agent, tool
from drangue_worker.testing import crash_everywhere

PAID = []  # all that the bank has ever seen, each payment as often as it was made
KEYS = set()  # the bank's memory of keys


@tool
def careless(amount: int) -> str:
    """Pay, and hope."""
    PAID.append(amount)
    return "paid"


@tool
def careful(amount: int, idempotency_key: str) -> str:
    """Pay under a key: the bank knows a payment that it has made already."""
    if idempotency_key not in KEYS:
        KEYS.add(idempotency_key)
        PAID.append(amount)
    return "paid"


@tool(reversible=False)
def once(amount: int) -> str:
    """Pay at a bank that knows no keys: better not at all than twice."""
    PAID.append(amount)
    return "paid"


SCRIPT = [lambda call: [(call.tools[0], {"amount": 5})], "It is done."]

if __name__ == "__main__":
    with scripted(SCRIPT):
        for pay in (careless, careful, once):
            report = crash_everywhere(
                lambda store, pay=pay: Agent(MODEL, [pay], "Pay.", store=store), "Pay the 5.", effects=lambda: PAID
            )
            print(f"{pay.name}: {report}\n")
