"""Conversations: what this process has read of the logs of runs that it thinks for.

Events never change and have no gaps, so whoever holds the beginning of a log needs to read only its tail. Bounded by
bytes, the least lately used run goes first; a run has no home, and whoever holds nothing of it reads it all.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from drangue_client.events import Event
from drangue_client.messages import Reading

CACHED_BYTES = 16 * 1024 * 1024  # of JSON; in memory it is some times as much


@dataclass(frozen=True, slots=True)
class Known:
    """The beginning of a log: its `events`, and when its run was created. The same id may later be another run's.
    `reading` is the conversation as far as whoever thinks has read it, which is on one event loop."""

    events: Sequence[Event] = ()
    created_at: float = 0.0
    size: int = 0
    reading: Reading | None = None

    def grown(self, events: Sequence[Event], size: int, created_at: float) -> Known:
        """The same log when it holds these events, `size` bytes of JSON more."""
        return Known(events, created_at, self.size + size, self.reading or Reading())

    @property
    def after(self) -> int:
        """The place behind which to read: the last known event is read again, which shows that it is the same log. A
        database that was restored, or failed over to a late replica, may hold another past of the same run."""
        return max(-1, len(self.events) - 2)


NOTHING = Known()


class Conversations:
    """The beginnings of logs that one process holds. Safe from any thread."""

    def __init__(self, most_bytes: int = CACHED_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._turn = threading.Lock()

    def known(self, run_id: str) -> Known:
        """What is known of a run's log."""
        return self._known.get(run_id, NOTHING)

    def grown(
        self, run_id: str, created_at: float, beginning: Known, tail: Sequence[Event], size: int, head: int
    ) -> list[Event] | None:
        """The log up to `head`, from its known beginning and what was read after that, in `size` bytes of JSON; kept
        for the next time. None where the two do not fit together."""
        log = [*beginning.events[:-1], *tail]
        same = not beginning.events or (beginning.created_at == created_at and [*tail[:1]] == [*beginning.events[-1:]])
        if not same or len(log) != head + 1 or (log and log[-1].seq != head):
            self.forget(run_id)
            return None
        self.keep(run_id, beginning.grown(log, size, created_at))
        return log

    def forget(self, run_id: str) -> None:
        """Hold nothing of a run: it has stopped, and may go on anywhere or never."""
        with self._turn:
            self._drop(run_id)

    def keep(self, run_id: str, known: Known) -> None:
        """Hold the beginning of a run's log, unless it is larger than all that may be held."""
        with self._turn:
            self._drop(run_id)
            if known.size > self._most_bytes:
                return
            self._known[run_id] = known
            self._bytes += known.size
            while self._bytes > self._most_bytes:
                self._drop(next(iter(self._known)))

    def _drop(self, run_id: str) -> None:
        before = self._known.pop(run_id, None)
        if before is not None:
            self._bytes -= before.size
