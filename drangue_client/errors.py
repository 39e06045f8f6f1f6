"""Every error drangue raises on purpose, in one family.

Each keeps its ids as attributes, so nobody parses a message, and each message ends with the next thing to do. Errors
that a tool or a model raises to say how its failure is to be treated (`TransientError` and its kin) are here too: tools
import them without importing an engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from typing import Any

LONGEST_WAIT_S = 366 * 86400.0  # what asks for more than a year is taken as a year: a row must hold the date


class DrangueError(Exception):
    """Root of the family. An error survives pickling with its ids, so a pool may hand it to another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[DrangueError], args: tuple[Any, ...], attributes: dict[str, Any]) -> DrangueError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class SettingsError(DrangueError):
    """A `DRANGUE_*` value is malformed, unknown or contradicts another one."""


class DatabaseUnavailable(DrangueError):
    """Postgres cannot be reached, or holds no drangue tables."""


class QueueUnavailable(DrangueError):
    """Redis cannot be reached."""


class NoCredentials(DrangueError):
    """A model has no API key to call its provider with."""


class UnknownRunError(DrangueError, KeyError):
    """There is no run of this id. `run_id` holds it."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"there is no run {run_id!r}. List the runs with `drangue runs`.")

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class UnknownAgentError(DrangueError, LookupError):
    """No worker has registered an agent of this name. `agent` and `known` hold the name and the ones there are."""

    def __init__(self, agent: str, known: Iterable[str]) -> None:
        self.agent = agent
        self.known = tuple(sorted(known))
        close = get_close_matches(agent, self.known, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(
            f"no worker has registered an agent named {agent!r}; known: {', '.join(self.known) or 'none'}.{meant} "
            "Submit with allow_unknown=True (`--allow-unknown`) if its workers are still to come."
        )


class RunExistsError(DrangueError, ValueError):
    """The run id is taken by a run with another agent or input. `run_id` holds it."""

    def __init__(self, run_id: str, what: str) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id!r} exists with another {what}. Take a new run_id, or submit what it was given.")


class TurnExistsError(DrangueError, ValueError):
    """The turn id is taken by another text. `run_id` and `turn_id` hold what was asked for."""

    def __init__(self, run_id: str, turn_id: str) -> None:
        self.run_id = run_id
        self.turn_id = turn_id
        super().__init__(
            f"turn {turn_id!r} of run {run_id!r} has another text. Take a new turn_id, or repeat its text."
        )


class InFlightError(DrangueError, ValueError):
    """New input for a run whose turn has not ended. `run_id` holds it."""

    def __init__(self, run_id: str, status: str) -> None:
        self.run_id = run_id
        super().__init__(
            f"run {run_id!r} is in flight ({status}). Resume it without input, or wait until its turn has ended."
        )


class NotPendingError(DrangueError, ValueError):
    """The approval asked for is not waiting. `run_id` holds the run, `pending` the call ids that do wait."""

    def __init__(self, run_id: str, call_id: str | None, pending: Iterable[str]) -> None:
        self.run_id = run_id
        self.call_id = call_id
        self.pending = tuple(pending)
        if call_id is None:
            message = f"run {run_id!r} has no pending approval. See what waits with `drangue approvals`."
        else:
            waiting = ", ".join(self.pending) or "none"
            message = f"call {call_id!r} of run {run_id!r} is not pending; pending: {waiting}. Decide one of those."
        super().__init__(message)


class ChangedArgumentsError(DrangueError, ValueError):
    """Somebody has changed the arguments that wait for leave since they were looked at. `run_id` and `call_id` say
    where."""

    def __init__(self, run_id: str, call_id: str) -> None:
        self.run_id = run_id
        self.call_id = call_id
        super().__init__(
            f"the arguments of call {call_id!r} of run {run_id!r} are not those the model asked for, or that you saw: "
            "somebody has changed them. Look again with `drangue approvals`, and grant what is shown there."
        )


class SamePersonError(DrangueError, ValueError):
    """A call that needs several people was granted twice by one. `run_id`, `call_id` and `by` say which and by whom."""

    def __init__(self, run_id: str, call_id: str, by: str) -> None:
        self.run_id = run_id
        self.call_id = call_id
        self.by = by
        super().__init__(
            f"{by} has granted call {call_id!r} of run {run_id!r} already; somebody else must grant it too."
        )


class NotUnknownError(DrangueError, ValueError):
    """The outcome of the call is known. `run_id` holds the run, `unknown` the call ids whose outcome is not."""

    def __init__(self, run_id: str, call_id: str | None, unknown: Iterable[str]) -> None:
        self.run_id = run_id
        self.call_id = call_id
        self.unknown = tuple(unknown)
        if call_id is None:
            message = f"run {run_id!r} has no unknown outcome. See which have with `drangue runs --unknown`."
        else:
            rest = ", ".join(self.unknown) or "none"
            message = (
                f"the outcome of call {call_id!r} of run {run_id!r} is not unknown; unknown: {rest}. "
                f"See `drangue show {run_id}`."
            )
        super().__init__(message)


class ConflictError(DrangueError):
    """Another event stands at this place of the log already. `run_id` and `seq` name the place."""

    def __init__(self, run_id: str, seq: int, message: str = "") -> None:
        self.run_id = run_id
        self.seq = seq
        super().__init__(message or f"run {run_id!r} already holds another event at {seq}. Load the log and try again.")


class LeaseHeldError(DrangueError):
    """Another process is performing a step of this run right now. `run_id` holds it."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"another process is working on run {run_id!r}. Try again when its lease has lapsed.")


class WaitTimeout(DrangueError, TimeoutError):
    """A wait ended before the run stopped; the run goes on. `run_id` and `status` hold what is known."""

    def __init__(self, run_id: str, status: str, timeout_s: float) -> None:
        self.run_id = run_id
        self.status = status
        super().__init__(
            f"run {run_id!r} is still {status} after {timeout_s:g} s and goes on. Wait again, or look with "
            f"`drangue show {run_id}`."
        )


class RunFailedError(DrangueError):
    """A run failed for good. `run_id`, `error` and `category` hold the recorded reason."""

    def __init__(self, run_id: str, error: str, category: str) -> None:
        self.run_id = run_id
        self.error = error
        self.category = category
        super().__init__(f"run {run_id!r} failed ({category}): {error}. Resume it when the cause is mended.")


class FormatError(DrangueError):
    """A log holds an event of a format newer than this program knows. Upgrade before touching the run."""


class ToolError(DrangueError):
    """A tool (or a model) failed. Raise one of the kinds below to say how the failure is to be treated."""


class TransientError(ToolError):
    """Worth another attempt soon: a refused connection, an overloaded server."""


class NotSentError(TransientError):
    """The call did not get as far as the other side, so nothing happened there: a refused connection."""


class RateLimitError(TransientError):
    """The other side asks to wait.

    `retry_after` may be given as a Retry-After header has it (a number of seconds or an HTTP date) or as a datetime,
    UTC if it names no zone. The attribute holds seconds from now, never negative, or None for what names no time.
    """

    retry_after: float | None

    def __init__(self, message: str = "rate limited", *, retry_after: float | str | datetime | None = None) -> None:
        self.retry_after = _seconds_from_now(retry_after)
        super().__init__(message)


class PermanentError(ToolError):
    """Another attempt would fail alike."""


class AuthError(ToolError):
    """Credentials are missing or refused."""


class ValidationError(ToolError):
    """The arguments or the result are not acceptable."""


def may_have_cost(error: BaseException) -> bool:
    """Whether a failed call may have been billed, or had its effect, all the same. An error may say so itself, by an
    attribute of this name."""
    return bool(getattr(error, "may_have_cost", not isinstance(error, RateLimitError | NotSentError)))


def _seconds_from_now(wanted: Any) -> float | None:
    """Seconds to wait, from whatever a server sent. It runs while another failure is handled, so it must not raise."""
    try:
        seconds = float(wanted)
    except (TypeError, ValueError, OverflowError):
        try:
            moment = wanted if isinstance(wanted, datetime) else parsedate_to_datetime(wanted)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            seconds = (moment - datetime.now(UTC)).total_seconds()
        except (AttributeError, TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), LONGEST_WAIT_S) if math.isfinite(seconds) else None
