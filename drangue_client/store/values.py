"""What is asked of a log and what it answers, as values: runs, steps, claims, moves.

An answer stands at the place of its question. Deciding is the caller's: a `Move` says what to write *if the log still
ends where the decision was made*, and a refused move comes back with the run as it is now, to be decided again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from drangue_client.events import Event, Fact
from drangue_client.messages import Reading
from drangue_client.run import Run, Status

Executor = Literal["celery", "inline"]
Kind = Literal["prepare", "model", "tool"]
DEFAULT_PRIORITY = 5
MOST = 32  # that are asked together: twice as many gain next to nothing by the piece

# What a run may be started with besides its agent's terms. A worker leaves a run with any other name to a newer one.
OVERRIDES = frozenset({"output_schema", "turn_id", "tokens", "deadline_s", "not_before", "limits", "traceparent"})

# How an attempt ended that gave no answer.
KILLED = "killed"  # its process was killed at its timeout
REAPED = "reaped"  # its process has ended
LAPSED = "lapsed"  # nobody heard of it again: it may be alive


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be recorded. `wake_in_s` is when a sweep may first suspect that its message was lost; `overrides` is
    what it is started with besides its agent's terms, by the names of OVERRIDES.
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
    the event that asked for a tool call, `events` the whole log (steps that need the conversation only), and `reading`
    its conversation as far as this process has read that before, if it has.
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
    reading: Reading | None = field(default=None, compare=False, repr=False)


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
class Take:
    """What a move's writer goes on with itself: of the steps it opens those of `asks`, claimed for `lease_s` seconds as
    they are opened. `row` is the run's, as it was seen."""

    asks: tuple[Ask, ...]
    lease_s: float
    row: RunRow


@dataclass(frozen=True, slots=True)
class Move:
    """What a decision writes, in one transaction, provided the log still ends at `head`.

    `claim` is the claim being settled (None where no step is); `park` keeps its row, unclaimed, for a run that
    failed. `reopen` puts parked rows back with fresh counters, `clear` deletes the steps that nobody works on.
    `wake_in_s` is None where the run needs nobody but its steps. `hasty` says that nothing is lost with a database
    server that dies before this is on its disk: who decides again decides the same. `take` is a wish: a step that
    would have to be read for stays free.
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
    hasty: bool = False
    take: Take | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """The answer to a move.

    `ok`: written, and `opened` lists the steps this move opened, and `taken` holds the claims of those that it took.
    `moved`: nothing written, `look` is the run as it is now. `lost`: nothing written, the claim belongs to somebody
    else or the step is settled.
    """

    verdict: Literal["ok", "moved", "lost"]
    opened: tuple[StepRef, ...] = ()
    look: Look | None = None
    taken: tuple[Claimed, ...] = ()


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


T = TypeVar("T")


class PartlyFailed(Exception):
    """Of what was asked together some has failed. `answers` holds, at the place of each question, its answer, or the
    exception that stands for it."""

    def __init__(self, answers: Sequence[Any]) -> None:
        super().__init__(f"{sum(isinstance(answer, Exception) for answer in answers)} of {len(answers)} failed")
        self.answers = list(answers)


def all_of(answers: Sequence[T | Exception]) -> list[T]:
    """The answers where none is an exception. What was asked alone raises its own, and else PartlyFailed is raised."""
    failed = [answer for answer in answers if isinstance(answer, Exception)]
    if not failed:
        return [answer for answer in answers if not isinstance(answer, Exception)]
    raise failed[0] if len(answers) == 1 else PartlyFailed(answers)
