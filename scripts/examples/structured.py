"""Structured answers: by a JSON schema or a pydantic model. What does not match is sent back to the model.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/structured.py
"""

from typing import Literal

from _model import MODEL, scripted
from pydantic import BaseModel

from drangue_worker import Agent


class Ticket(BaseModel):
    product: str
    urgency: Literal["low", "high"]


agent = Agent(MODEL, instructions="You sort mail.", output_schema=Ticket)
LANGUAGE = {"type": "string", "enum": ["en", "pt", "de"]}

SCRIPT = {
    "kettle": [
        [("final_answer", {"product": "kettle", "urgency": "very"})],
        [("final_answer", {"product": "kettle", "urgency": "high"})],
    ],
    "Bom dia": ['"pt"'],  # a plain text that happens to match does as well
}

if __name__ == "__main__":
    with scripted(SCRIPT):
        result = agent.run_sync("My kettle is on fire!")
        language = agent.run_sync("Bom dia, tudo bem?", output_schema=LANGUAGE)  # for this run instead
        for call in [call for message in result.messages for call in message.get("tool_calls", [])]:
            print(f"the model delivers {call['arguments']}")
        print(f"{Ticket.model_validate(result.output_parsed)!r}, reason: {result.reason}")
        print(f"{language.output_parsed!r}, reason: {language.reason}")
