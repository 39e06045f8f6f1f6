"""The Log port: what the engine and the client ask of a store, as one protocol. Its words stand in `values`.

Every writing call takes a list, so that a store may answer many askers with one statement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from drangue_client.events import Event, Fact
from drangue_client.run import Ended
from drangue_client.store.values import (
    AgentRow,
    Ask,
    Backlog,
    Claimed,
    Held,
    Look,
    Move,
    Moved,
    NewRun,
    QueueState,
    Release,
    RunRow,
    StepRef,
)


class Log(Protocol):
    """A store of runs. Calls block; each is one short transaction. Raises DatabaseUnavailable when out of reach."""

    def submit(self, runs: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
        """Record runs; True where the run is new. An existing run is returned as it is, whatever was asked."""

    def look(self, run_id: str) -> Look:
        """The run as it stands, from its snapshot and the tail of its log. UnknownRunError if there is none."""

    def looks(self, run_ids: Sequence[str]) -> dict[str, Look]:
        """`look` at several; those that there are, by their ids."""

    def rows(self, run_ids: Sequence[str]) -> dict[str, RunRow]:
        """The rows of these runs, of those that there are, by their ids; of their logs nothing is read."""

    async def load(self, run_id: str) -> list[Event]:
        """The whole log of a run, oldest first; empty for an unknown one."""

    def events(self, run_id: str, after: int = -1) -> list[Event]:
        """The log after a place, oldest first; empty for an unknown run."""

    def runs(
        self,
        *,
        status: str | None = None,
        agent: str | None = None,
        since: float | None = None,
        until: float | None = None,
        labels: Mapping[str, str] | None = None,
        unknown: bool = False,
        asked: bool = False,
        after: str | None = None,
        limit: int = 50,
    ) -> list[RunRow]:
        """Runs, newest first: those submitted from `since` on and before `until` (epoch seconds) that bear all these
        `labels`, whatever else they bear; with `unknown` only those with an outcome that nobody knows, with
        `asked` only those with a call that may wait for a person, and behind the run whose id is `after` in this
        order."""

    def claim(self, asks: Sequence[Ask], lease_s: float) -> list[Claimed | None]:
        """Claim steps; None where a step is held, settled, not due or not there. Does not wait for the disk. Where one
        of several cannot be read it is left unclaimed, and PartlyFailed has the answers."""

    def begin(self, ask: Ask, fact: Fact, *, again: bool = False) -> bool:
        """Record, durably, that an irreversible step begins. False: the claim is not ours, the turn is over, or it
        began before, unless `again` says that this is known to have had no effect."""

    def keep(self, ask: Ask, outcome: dict[str, Any]) -> bool:
        """Keep, durably, what a step came to before it is judged. False: the claim is not ours."""

    def arm(self, ask: Ask, limit_s: float | None) -> bool:
        """Say that the process which holds a step may be killed in `limit_s` seconds, None: no more. False: the claim
        is not ours."""

    def overdue(self, worker: str, patience_s: float) -> list[Held]:
        """The steps that children of a worker hold beyond what was said with `arm`, or `patience_s` seconds after their
        turn was over; what is to be let finish, be it since it cannot be undone and has begun, only the former."""

    def holders(self, worker: str) -> list[str]:
        """The names of the children of a worker that hold a step."""

    def halted(self, asks: Sequence[Ask]) -> set[str]:
        """The tokens among these that hold a step of a turn that is over: whoever holds it shall stop."""

    def renew(self, asks: Sequence[Ask], lease_s: float) -> set[str]:
        """Extend leases; the tokens that are still held, lapsed or not. The others have been taken over or settled."""

    def release(self, releases: Sequence[Release]) -> list[StepRef | None]:
        """Give steps back; None where the claim was lost."""

    def release_worker(self, worker: str, category: str = "drained") -> list[StepRef]:
        """Give back every step of a worker, or of one child, that is told to end; with REAPED of one that has ended by
        itself: each is a crash of its step then."""

    def settle(self, moves: Sequence[Move]) -> list[Moved]:
        """Write moves, each whole or not at all. Of one run there may be several, each decided from what the one before
        it writes; behind a refused one all are refused. Where one of several fails, PartlyFailed has the answers."""

    def held(self, run_id: str) -> list[Held]:
        """The steps of a run that are claimed, or have begun or an outcome, whether it has ended or not."""

    def left_behind(self, limit: int = 100) -> list[Held]:
        """Steps of fleet runs whose turn is over and whose holders have died: nobody else can claim them."""

    def open_steps(self, run_id: str) -> list[tuple[StepRef, float, bool]]:
        """What a run that has not ended waits for: (step, seconds until it may be claimed, whether a claim is live)."""

    def wake(self, patience_s: float, limit: int = 100) -> list[RunRow]:
        """Fleet runs due for a coordinator; each is not due again before `patience_s` unless a commit says so."""

    def recover(self, patience_s: float, limit: int = 100) -> list[StepRef]:
        """Fleet steps whose lease lapsed or whose backoff is over, marked as sent now."""

    def queues(self, patience_s: float, limit: int = 100) -> list[QueueState]:
        """Per queue: unclaimed steps, and those sent longer ago than `patience_s` (doubling with every resend)."""

    def mark_sent(self, steps: Sequence[StepRef]) -> list[StepRef]:
        """Record that steps are being sent again; those of them that nobody has claimed or sent again meanwhile."""

    def mark_unsent(self, steps: Sequence[StepRef]) -> None:
        """Take back the last `mark_sent` or `recover`: publishing failed, so the next sweep shall try at once."""

    def backlog(self) -> list[Backlog]:
        """What there is to do, by queue. Steps of runs that have ended are not among it."""

    def ended_before(self, age_s: float, statuses: Sequence[Ended], limit: int) -> list[RunRow]:
        """Runs of these statuses that ended more than `age_s` seconds ago, the oldest first. Not among them is what
        somebody still works on, or what has an outcome that nobody knows."""

    def forget(self, rows: Sequence[RunRow]) -> list[str]:
        """Delete runs with their logs, for good: those of `rows` that have not moved since. Returns their ids."""

    def register(self, agents: Sequence[AgentRow]) -> None:
        """Say which agents a worker serves, now."""

    def agents(self) -> list[AgentRow]:
        """Every agent ever registered, by name."""

    def close(self) -> None:
        """Close the connections of this process."""
