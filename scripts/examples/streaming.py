"""Streaming: every event the moment it is recorded, and the answer word by word while it is being written.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/streaming.py
"""

import asyncio

from _model import MODEL, scripted

from drangue_worker import Agent
from drangue_worker.testing import Reply


async def tide(harbour: str) -> str:
    """When the tide is high in a harbour."""
    await asyncio.sleep(0.2)
    return f"{harbour}: 06:40 and 19:05"


agent = Agent(MODEL, [tide], "Answer in two sentences.")


async def main() -> None:
    async with agent:
        async for event in agent.stream("When can we sail from Lagos?", run_id="sail"):
            if event.type == "model_delta":  # a piece of an answer: shown, never stored
                print(event.payload["text"], end="", flush=True)
            else:
                written = event.type == "model_decision" and event.payload["text"]  # the whole of it
                print("\n" if written else "", f"[{event.seq} {event.type}]", sep="")

        async for event in agent.stream(run_id="sail", after=2):  # a finished run can be read from any place
            print(f"read again: {event.seq} {event.type}")


ANSWER = "The tide is high at 06:40 and at 19:05. Be on board half an hour before."
SCRIPT = [[("tide", {"harbour": "Lagos"})], Reply(text=ANSWER, chunk_delay_s=0.05)]

if __name__ == "__main__":
    with scripted(SCRIPT):
        asyncio.run(main())
