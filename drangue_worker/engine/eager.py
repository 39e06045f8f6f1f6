"""Eager dispatch: a worker with room goes on with what it opens.

The step is claimed as it is opened and performed by this process at once, with the run as it is known here: neither a
message through Redis nor a claim of its own is needed. It stays a task like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from drangue_client.store.values import Claimed, Open, StepRef


class Dispatch(Protocol):
    """What has this process perform steps. Called where runs are settled, mostly on one thread. Places are promised by
    what is known: with messages on their way, or asked for by others, as many more may begin as are fetched at once."""

    def begin_round(self) -> None:
        """What was promised before is void, or taken up."""

    def wants(self, opened: Open) -> bool:
        """Whether this process has room for a step; True promises a place."""

    def go_on(self, taken: Sequence[tuple[Claimed, StepRef]]) -> None:
        """Perform these. Raises nothing."""


class Elsewhere:
    """The dispatch of a process that sends everything."""

    def begin_round(self) -> None:
        """Nothing was promised."""

    def wants(self, opened: Open) -> bool:
        return False

    def go_on(self, taken: Sequence[tuple[Claimed, StepRef]]) -> None:
        """There are none."""
