"""Budgets: in tokens or dollars, soft (the last call may overshoot) or hard (a call that might overshoot is not made).

A run that has used up its budget ends without an error, and says so in its reason.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/budget.py
"""

from _model import MODEL, SMALL, scripted

from drangue_worker import Agent, Budget
from drangue_worker.testing import Reply

PRICES = {SMALL: {"input": 1.00, "output": 4.00}}  # USD per million tokens


def dig(metres: int) -> str:
    """Dig for treasure."""
    return f"dug {metres} m, found sand"


def digging(call):
    """A model that never gives up; each thought costs it 1,000 tokens."""
    return Reply(tool_calls=(("dig", {"metres": 10}),), input_tokens=900, output_tokens=100)


SCRIPT = [digging]
BUDGETS = {
    "soft, tokens": Budget(max_tokens=2500),
    "hard, tokens": Budget(max_tokens=5000, hard=True),
    "soft, dollars": Budget(max_usd=0.002, prices=PRICES),
    "hard, dollars": Budget(max_usd=0.005, prices=PRICES, hard=True),
}

if __name__ == "__main__":
    with scripted(SCRIPT):
        for name, budget in BUDGETS.items():
            # The output ceiling is part of what a hard budget reserves before a call, so keep it small.
            agent = Agent(MODEL, [dig], "Dig until you find treasure.", budget=budget, max_tokens=200)
            result = agent.run_sync("Find the treasure.")
            limit = f"{budget.max_tokens} tokens" if budget.max_tokens else f"{budget.max_usd} USD"
            used = f"{budget.tokens(result.events)} tokens, {result.cost(PRICES):.4f} USD"
            print(f"{name:<14} limit {limit:<12} used {used:<24} {result.status}, reason: {result.reason}")
        print(result.output)
