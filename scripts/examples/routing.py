"""Routing: a small model thinks by default, a large one plans, and another takes over from one that is gone.

The model of each step is recorded, so each step has its price.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/routing.py
"""

from _model import LARGE, SMALL, model, scripted

from drangue_worker import Agent, Budget, FallbackModel, RuleRouter
from drangue_worker.testing import Reply

GONE = "model-of-yesteryear"  # the provider refuses it; another attempt would not help
PRICES = {SMALL: {"input": 0.15, "output": 0.60}, LARGE: {"input": 2.50, "output": 10.00}}  # USD per million tokens


def planning(messages: list, step_index: int) -> bool:
    """The first thought of a run."""
    return step_index == 0


def read(page: int) -> str:
    """A page of the manual."""
    return f"page {page}: turn it off and on again"


agent = Agent(
    RuleRouter(default=FallbackModel(model(GONE), model(SMALL)), rules=[(planning, model(LARGE))]),
    [read],
    "Read pages 1 and 2, one after the other, then answer.",
)


def answer(call):
    if call.model == GONE:
        return Reply(status=404, error=f"the model {GONE} does not exist")
    lines = [[("read", {"page": 1})], [("read", {"page": 2})], "Turn it off and on again."]
    line = lines[call.turn]
    text, calls = (line, ()) if isinstance(line, str) else ("", tuple(line))
    return Reply(text=text, tool_calls=calls, input_tokens=2000, output_tokens=300)


SCRIPT = [answer]

if __name__ == "__main__":
    with scripted(SCRIPT):
        result = agent.run_sync("How do I repair it?")
        for event in result.events:
            if event.type == "model_decision":
                said = event.payload["text"] or [call["arguments"] for call in event.payload["tool_calls"]]
                print(f"{event.payload['model']:<18} {Budget(prices=PRICES).usd([event]):.5f} USD  {said}")
        print(f"{'together':<18} {result.cost(PRICES):.5f} USD")
