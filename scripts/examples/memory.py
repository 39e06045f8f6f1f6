"""Memory: any object that can `recall` and `remember`. A run recalls once, before its first thought.

What was recalled is recorded, and shown to the model as data, not as orders. Nothing is remembered by itself.

Nothing must run first. Without an API key a scripted model answers.

    python scripts/examples/memory.py
"""

import asyncio
import time

from _model import MODEL, scripted

from drangue_worker import Agent, MemoryItem


class Notes:
    """Remembers in a dict, and recalls what shares words with the question."""

    def __init__(self) -> None:
        self.items: dict[str, MemoryItem] = {}

    async def recall(self, query: str, *, limit: int = 5) -> list[MemoryItem]:
        words = set(query.lower().strip("?.").split())
        found = [item for item in self.items.values() if words & set(item.value.lower().split())]
        return found[:limit]

    async def remember(self, item: MemoryItem) -> None:
        self.items[item.key] = item


agent = Agent(MODEL, [], "You book trains. Answer in one sentence.", memory=Notes())


async def main() -> None:
    async with agent:
        await agent.remember(MemoryItem("ann.seat", "ann wants a seat at the window"))
        await agent.remember(MemoryItem("ann.leg", "ann has a broken leg", expires_at=time.time() - 1))
        await agent.remember(MemoryItem("bob.seat", "bob sleeps in the aisle"))
        result = await agent.run("Which seat for Ann?", run_id="seat-1")
        recalled = next(event for event in result.events if event.type == "memory_recalled")
        print(f"recalled  {[item['value'] for item in recalled.payload['items']]}\nanswer    {result.output}\n")

        await agent.remember(MemoryItem("ann.seat", "ann wants a seat in the quiet coach"))
        again = await agent.run("Which seat for Ann?", run_id="seat-1")  # a finished run is read: nobody is asked again
        later = await agent.run("Which seat for Ann?", run_id="seat-2")
        print(f"seat-1    {again.output}\nseat-2    {later.output}")


def answer(call):
    """What the scripted model makes of its system text, where memories are shown between two marks."""
    recalled = [line for line in call.system.splitlines() if line.startswith("- ")]
    return f"I remember: {'; '.join(line.removeprefix('- ') for line in recalled)}."


SCRIPT = [answer]

if __name__ == "__main__":
    with scripted(SCRIPT):
        asyncio.run(main())
