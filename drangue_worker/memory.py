"""Memory: what an agent remembers between runs. The seam alone; a backend is the author's.

A run recalls once, before its first thought, and records what it got, so that every later attempt and every replay sees
the same. Nothing is ever remembered by itself: `agent.remember(item)` is the only way in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from drangue_client import checks


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """One thing remembered: `value` under `key`, forgotten after `expires_at` (epoch seconds; None: never).

    Raises TypeError or ValueError, naming the argument, for a key or a time that no record could hold.
    """

    key: str
    value: Any
    expires_at: float | None = None

    def __post_init__(self) -> None:
        checks.text("key", self.key)
        checks.number("expires_at", self.expires_at, "epoch seconds", optional=True)


@runtime_checkable
class Memory(Protocol):
    """Any object with these two methods is a memory."""

    async def recall(self, query: str, *, limit: int = 5) -> Sequence[MemoryItem]:
        """What is known about `query`, best first. May be repeated; a failure is recorded and the run goes on."""

    async def remember(self, item: MemoryItem) -> None:
        """Keep an item, in place of the one with its key."""


class NullMemory:
    """Remembers nothing."""

    async def recall(self, query: str, *, limit: int = 5) -> Sequence[MemoryItem]:
        return ()

    async def remember(self, item: MemoryItem) -> None:
        return None
