"""The Log port: what the engine and the client ask of a store, as values and one protocol.

Every writing call takes a list, so that a store may answer many askers with one statement; an answer stands at the
place of its question. Deciding is the caller's: a `Move` says what to write *if the log still ends where the decision
was made*, and a refused move comes back with the run as it is now, to be decided again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from drangue_client.events import Event, Fact
from drangue_client.run import Ended, Run, Status

Executor = Literal["celery", "inline"]
Kind = Literal["prepare", "model", "tool"]
DEFAULT_PRIORITY = 5

# How an attempt ended that gave no answer.
KILLED = "killed"  # its process was killed at its timeout
REAPED = "reaped"  # its process has ended
LAPSED = "lapsed"  # nobody heard of it again: it may be alive


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be recorded. `wake_in_s` is when a sweep may first suspect that its message was lost; `overrides` is
    what it is started with besides its agent's terms: {"output_schema"?, "turn_id"?, "tokens"?, "deadline_s"?}.
    `not_before` (epoch seconds) is when it may begin."""

    run_id: str
    agent: str
    input: str
    executor: Executor = "celery"
    priority: int = DEFAULT_PRIORITY
    labels: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    wake_in_s: float = 0.0
    not_before: float | None = None


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run's row. Times are epoch seconds; `wake_at` is when it needs a coordinator at the latest, `unknown` how many
    of its calls have an outcome that nobody knows."""

    run_id: str
    agent: str
    status: Status
    executor: Executor
    priority: int
    labels: dict[str, str]
    input: str
    head_seq: int
    error: str | None
    created_at: float
    updated_at: float
    finished_at: float | None
    wake_at: float | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    deadline_at: float | None = None
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """A run as it stands: its row, its folded log, and the database's clock."""

    row: RunRow
    run: Run
    now: float


@dataclass(frozen=True, slots=True)
class Ask:
    """One attempt at claiming a step. Asking again with the same token after a lost answer is safe.

    `executor` is who asks; a step of a run that belongs to the other one is not given out.
    """

    run_id: str
    step: int
    token: str
    worker: str
    executor: Executor = "celery"


@dataclass(frozen=True, slots=True)
class Claimed:
    """Exclusive leave to perform a step, and all that performing depends on.

    `attempt` counts every claim of the step, `failures` those that ended in a retryable error, `crashes` those whose
    worker died, `lost` also those that were given up under way, `tries` what is known of the failed ones. `category` is
    how the one before ended, `outcome` what an earlier one kept. `facts` are the step's own events so far, `decision`
    the event that asked for a tool call, `events` the whole log (steps that need the conversation only).
    """

    ask: Ask
    kind: Kind
    name: str | None
    attempt: int
    failures: int
    crashes: int
    lost: int
    tries: tuple[dict[str, Any], ...]
    outcome: dict[str, Any] | None
    category: str | None
    look: Look
    facts: tuple[Event, ...]
    decision: Event | None
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class StepRef:
    """An open step as a message knows it. `queue` is None for a run that no fleet serves. `urgent` is what has had its
    turn already: it goes to the head of its queue."""

    run_id: str
    step: int
    kind: Kind
    queue: str | None
    priority: int
    attempt: int = 0
    sends: int = 0
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Open:
    """A step to be opened, unless it is open already; `on_cancel` as the terms of its tool have it."""

    step: int
    kind: Kind
    name: str | None
    queue: str | None
    on_cancel: str | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """What a decision writes, in one transaction, provided the log still ends at `head`.

    `claim` is the claim being settled (None where no step is); `park` keeps its row, unclaimed, for a run that
    failed. `reopen` puts parked rows back with fresh counters, `clear` deletes the steps that nobody works on.
    `wake_in_s` is None where the run needs nobody but its steps.
    """

    run_id: str
    head: int
    run: Run
    facts: tuple[Fact, ...] = ()
    opens: tuple[Open, ...] = ()
    claim: Ask | None = None
    park: bool = False
    reopen: bool = False
    clear: bool = False
    wake_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """The answer to a move.

    `ok`: written, and `opened` lists the steps this move opened. `moved`: nothing written, `look` is the run as it is
    now. `lost`: nothing written, the claim belongs to somebody else or the step is settled.
    """

    verdict: Literal["ok", "moved", "lost"]
    opened: tuple[StepRef, ...] = ()
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """Give a claimed step back, unsettled: it may be claimed again in `delay_s`.

    `failed` counts a retryable error, `lost` a call that was under way and may have had its effect; `tries` replaces
    what is known of the failed attempts (None leaves it). `category` says how the attempt ended: KILLED and REAPED that
    its process is known to be dead.
    """

    ask: Ask
    delay_s: float = 0.0
    failed: bool = False
    category: str = "released"
    lost: bool = False
    tries: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A step as others see it: `ask` holds it, `live` while its lease lasts; its token is empty where nobody does.
    `outcome` is what was kept of it."""

    ask: Ask
    kind: Kind
    name: str | None
    live: bool
    outcome: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent some worker serves: `summary` is {models, tools}, `seen_at` when a worker last said so."""

    name: str
    fingerprint: str
    summary: dict[str, Any]
    seen_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """The open steps of one queue: those that could be claimed now, that some worker holds, and that wait for their
    backoff; and for how many seconds the oldest of the first has been due."""

    queue: str
    due: int
    held: int
    later: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class QueueState:
    """The unclaimed steps of a queue that could be claimed now, and the oldest of them whose message is in doubt."""

    queue: str
    unclaimed: int
    doubtful: tuple[StepRef, ...]


class Log(Protocol):
    """A store of runs. Calls block; each is one short transaction. Raises DatabaseUnavailable when out of reach."""

    def submit(self, runs: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
        """Record runs; True where the run is new. An existing run is returned as it is, whatever was asked."""

    def look(self, run_id: str) -> Look:
        """The run as it stands, from its snapshot and the tail of its log. UnknownRunError if there is none."""

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
        after: str | None = None,
        limit: int = 50,
    ) -> list[RunRow]:
        """Runs, newest first: those submitted from `since` on and before `until` (epoch seconds) that bear all these
        `labels`, whatever else they bear; with `unknown` only those with an outcome that nobody knows, and behind the
        run whose id is `after` in this order."""

    def claim(self, asks: Sequence[Ask], lease_s: float) -> list[Claimed | None]:
        """Claim steps; None where a step is held, settled, not due or not there. Does not wait for the disk."""

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
        """Write moves, each whole or not at all."""

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
        """Runs of these statuses that ended more than `age_s` seconds ago, the oldest first. What still has a step open
        is not among them."""

    def forget(self, rows: Sequence[RunRow]) -> list[str]:
        """Delete runs with their logs, for good: those of `rows` that have not moved since. Returns their ids."""

    def register(self, agents: Sequence[AgentRow]) -> None:
        """Say which agents a worker serves, now."""

    def agents(self) -> list[AgentRow]:
        """Every agent ever registered, by name."""

    def close(self) -> None:
        """Close the connections of this process."""
