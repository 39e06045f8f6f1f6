"""A conversation: one run, many turns. A `turn_id` makes a repeated request harmless and a repeated word a new turn.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/conversation.py
"""

from _model import MODEL, scripted

from drangue_worker import Agent

agent = Agent(MODEL, instructions="Find out, by yes-or-no questions, which animal the user has in mind.")

SAID = [("turn-1", "Guess my animal."), ("turn-2", "Yes."), ("turn-2", "Yes."), ("turn-3", "Yes."), ("turn-4", "No.")]
SCRIPT = ["Does it live in water?", "Can it fly?", "Is it a swan?", "Then it is a duck."]

if __name__ == "__main__":
    calls = 0
    with scripted(SCRIPT):
        for turn_id, text in SAID:
            result = agent.run_sync(text, run_id="animal", turn_id=turn_id)
            print(f"{turn_id}  {text:<16}  {result.output:<22}  {result.steps - calls} model calls")
            calls = result.steps
        print(f"{len(result.messages)} messages in one run")
