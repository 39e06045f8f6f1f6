"""One tool, one question: the smallest agent there is, with every step printed as it happens.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/weather.py
"""

from _model import MODEL, scripted

from drangue_worker import Agent, tool


@tool
def weather(city: str) -> str:
    """The weather in a city right now.

    Args:
        city: its name, such as Lisbon
    """
    return f"{city}: 14 degrees, rain until six"


agent = Agent(MODEL, [weather], "Answer in one sentence.")

SCRIPT = [
    [("weather", {"city": "Lisbon"})],
    "Take an umbrella: it rains in Lisbon until six, at 14 degrees.",
]

if __name__ == "__main__":
    with scripted(SCRIPT):
        result = agent.run_sync("Do I need an umbrella in Lisbon?", trace=True)
        print(f"{result.status}: {result.steps} model calls, {result.usage}")
        print(result.trace.render())
