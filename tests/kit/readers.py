"""A program that reads many live runs at once, each with two readers, and writes down what every one of them saw.

    python -m tests.kit.readers asyncio seen.json run-0 run-1 ...      AsyncClient.stream, all in one event loop
    python -m tests.kit.readers threads seen.json run-0 run-1 ...      Client.stream, on threads as a web server has it

Of each run the first reader is there from its beginning. The second one comes later and reads all of it (`late`) or
only what is new (`behind`), or it is there from the beginning too, and goes and comes back some times (`again`). What
it writes: [{run_id, way, visits: [{after, items: [[seq, type, step, payload], ...]}]}].
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drangue_client import AsyncClient, Client
from drangue_client.events import Event

WAYS = ("late", "behind", "again")
VISITS = 4
LIMIT_S = 60.0
ATTACHED = "every reader that is first is attached"

Stream = Callable[[str, int], AsyncIterator[Event]]


@dataclass
class Reader:
    """One reader of a run. `pace` is how many items (events and pieces of answers) tell the other to come, or are read
    before it goes."""

    run_id: str
    way: str
    pace: int
    visits: list[dict[str, Any]] = field(default_factory=list)
    attached: asyncio.Event = field(default_factory=asyncio.Event)
    paced: asyncio.Event = field(default_factory=asyncio.Event)
    seq: int = -1  # the last event it saw

    async def read(self, stream: Stream, after: int, most: int | None = None) -> None:
        """Read behind a place, to the end or so many items."""
        items: list[list[Any]] = []
        self.visits.append({"after": after, "items": items})
        async with aclosing(stream(self.run_id, after)) as events:  # type: ignore[type-var]
            async for event in events:
                items.append([event.seq, event.type, event.step, event.payload])
                self.seq = max(self.seq, event.seq)
                self.attached.set()
                if len(items) == self.pace:
                    self.paced.set()
                if len(items) == most:
                    break
        self.paced.set()


async def lead(reader: Reader, stream: Stream) -> None:
    await reader.read(stream, -1)


async def follow(reader: Reader, first: Reader, stream: Stream) -> None:
    if reader.way == "again":
        for _ in range(VISITS - 1):
            await reader.read(stream, reader.seq, reader.pace)
        await reader.read(stream, reader.seq)
        return
    await first.paced.wait()
    await reader.read(stream, first.seq if reader.way == "behind" else -1)


async def read_all(stream: Stream, run_ids: list[str]) -> list[Reader]:
    """Two readers for each run, until all of them have seen the end."""
    firsts = [Reader(run_id, "first", 2 + 3 * number % 25) for number, run_id in enumerate(run_ids)]
    others = [Reader(one.run_id, WAYS[number % 3], 3 + number % 11) for number, one in enumerate(firsts)]
    async with asyncio.TaskGroup() as group:
        for first, other in zip(firsts, others, strict=True):
            group.create_task(lead(first, stream))
            group.create_task(follow(other, first, stream))
        for first in firsts:
            await first.attached.wait()
        print(ATTACHED, flush=True)
    return [*firsts, *others]


async def main(kind: str, run_ids: list[str]) -> list[Reader]:
    async with AsyncExitStack() as stack:
        if kind == "asyncio":
            client = await stack.enter_async_context(AsyncClient())

            def stream(run_id: str, after: int) -> AsyncIterator[Event]:
                return client.stream(run_id, after=after, timeout=LIMIT_S)
        else:
            blocking = Client()
            stack.callback(blocking.close)
            threads = stack.enter_context(ThreadPoolExecutor(2 * len(run_ids)))

            def stream(run_id: str, after: int) -> AsyncIterator[Event]:
                return _on_threads(blocking.stream(run_id, after=after, timeout=LIMIT_S), threads)

        return await read_all(stream, run_ids)


async def _on_threads(events: Iterator[Event], threads: ThreadPoolExecutor) -> AsyncIterator[Event]:
    loop = asyncio.get_running_loop()
    while (event := await loop.run_in_executor(threads, next, events, None)) is not None:
        yield event


if __name__ == "__main__":
    seen = asyncio.run(main(sys.argv[1], sys.argv[3:]))
    told = [{"run_id": one.run_id, "way": one.way, "visits": one.visits} for one in seen]
    Path(sys.argv[2]).write_text(json.dumps(told))
