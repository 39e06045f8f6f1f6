"""What wakes a reader of a run of this process: its log has grown, or a model has said a little more."""

from __future__ import annotations

import asyncio
from collections import deque

from drangue_client.events import Event, delta
from drangue_client.store.values import RunRow


class Deltas:
    """A watch that keeps what was said until it is taken, and wakes one reader."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._moved = True
        self._said: deque[Event] = deque()

    def moved(self) -> None:
        """Say that the log may have grown."""
        self._moved = True
        self._rung.set()

    async def wait(self) -> bool:
        """Wait until there is something new; True if it may be in the log."""
        await self._rung.wait()
        self._rung.clear()
        moved, self._moved = self._moved, False
        return moved

    def watch(self, row: RunRow, step: int, attempt: int) -> _Call:
        """The watcher of one model call."""
        return _Call(self, step, attempt)

    def take(self, up_to: int | None = None) -> list[Event]:
        """What was said since the last time, of all steps or of those up to one, in order."""
        taken: list[Event] = []
        while self._said and (up_to is None or (self._said[0].step or 0) <= up_to):
            taken.append(self._said.popleft())
        return taken

    def put(self, event: Event) -> None:
        """Keep one more."""
        self._said.append(event)
        self._rung.set()


class _Call:
    def __init__(self, deltas: Deltas, step: int, attempt: int) -> None:
        self._deltas = deltas
        self._step = step
        self._attempt = attempt
        self._index = 0

    async def say(self, text: str) -> None:
        self._deltas.put(delta(text, self._step, self._attempt, self._index))
        self._index += 1

    async def done(self) -> None:
        return None
