"""Errors: one family, ids as attributes, messages that say what to do next."""

from __future__ import annotations

import pickle

import pytest

from drangue_client import errors
from drangue_client.errors import (
    AuthError,
    ConflictError,
    DatabaseUnavailable,
    DrangueError,
    InFlightError,
    LeaseHeldError,
    NotPendingError,
    PermanentError,
    QueueUnavailable,
    RateLimitError,
    RunExistsError,
    RunFailedError,
    SettingsError,
    ToolError,
    TransientError,
    UnknownAgentError,
    UnknownRunError,
    ValidationError,
    WaitTimeout,
)

EXAMPLES = [
    SettingsError("DRANGUE_X is wrong."),
    DatabaseUnavailable("away"),
    QueueUnavailable("away"),
    UnknownRunError("r1"),
    UnknownAgentError("oncal", ["oncall", "shop"]),
    RunExistsError("r1", "input"),
    InFlightError("r1", "paused"),
    NotPendingError("r1", None, []),
    NotPendingError("r1", "c9", ["c1", "c2"]),
    ConflictError("r1", 3),
    LeaseHeldError("r1"),
    WaitTimeout("r1", "running", 2.5),
    RunFailedError("r1", "gone", "permanent"),
    TransientError("busy"),
    RateLimitError("slow down", retry_after=3.0),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_to_another_process(error: DrangueError) -> None:
    """Tools run in child processes, and an error that cannot be unpickled there takes its ids, or the pool, with it."""
    arrived = pickle.loads(pickle.dumps(error))
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))


def test_all_errors_are_one_family() -> None:
    """`except DrangueError` is what a careful application writes."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaseException)]
    assert [kind for kind in kinds if not issubclass(kind, DrangueError)] == []


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (UnknownRunError, KeyError),
        (UnknownAgentError, LookupError),
        (RunExistsError, ValueError),
        (InFlightError, ValueError),
        (NotPendingError, ValueError),
        (WaitTimeout, TimeoutError),
    ],
)
def test_an_error_is_also_the_builtin_that_fits(kind: type, builtin: type) -> None:
    """Callers catch what they know."""
    assert issubclass(kind, builtin)


@pytest.mark.parametrize("kind", [TransientError, PermanentError, AuthError, ValidationError])
def test_what_tools_raise_has_one_root(kind: type) -> None:
    """A rate limit passes in time, so it is transient; the others are not."""
    assert issubclass(kind, ToolError)
    assert issubclass(kind, TransientError) is (kind is TransientError)
    assert issubclass(RateLimitError, TransientError)


def test_ids_are_attributes() -> None:
    """Nobody parses a message."""
    assert UnknownRunError("r1").run_id == "r1"
    assert (UnknownAgentError("x", ["b", "a"]).agent, UnknownAgentError("x", ["b", "a"]).known) == ("x", ("a", "b"))
    assert (ConflictError("r1", 3).run_id, ConflictError("r1", 3).seq) == ("r1", 3)
    assert (WaitTimeout("r1", "paused", 2).run_id, WaitTimeout("r1", "paused", 2).status) == ("r1", "paused")
    failed = RunFailedError("r1", "gone", "permanent")
    assert (failed.run_id, failed.error, failed.category) == ("r1", "gone", "permanent")
    pending = NotPendingError("r1", "c9", ["c1"])
    assert (pending.run_id, pending.call_id, pending.pending) == ("r1", "c9", ("c1",))
    assert [kind("r1", "x").run_id for kind in (RunExistsError, InFlightError)] == ["r1", "r1"]
    assert LeaseHeldError("r1").run_id == "r1"


@pytest.mark.parametrize(
    ("error", "fragments"),
    [
        (UnknownRunError("r1"), ["'r1'", "drangue runs"]),
        (UnknownAgentError("oncal", ["oncall", "shop"]), ["'oncal'", "oncall, shop", "Did you mean 'oncall'?"]),
        (UnknownAgentError("x", []), ["'x'", "none", "--allow-unknown"]),
        (RunExistsError("r1", "input"), ["'r1'", "another input", "new run_id"]),
        (InFlightError("r1", "paused"), ["'r1'", "in flight", "paused", "Resume"]),
        (NotPendingError("r1", None, []), ["'r1'", "no pending approval", "drangue approvals"]),
        (NotPendingError("r1", "c9", ["c1", "c2"]), ["'c9'", "not pending", "c1, c2"]),
        (ConflictError("r1", 3), ["'r1'", "3", "try again"]),
        (LeaseHeldError("r1"), ["'r1'", "Try again"]),
        (WaitTimeout("r1", "running", 2.5), ["'r1'", "running", "2.5 s", "drangue show r1"]),
        (RunFailedError("r1", "gone", "permanent"), ["'r1'", "gone", "permanent", "Resume"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_message_names_the_run_the_fact_and_the_next_step(error: DrangueError, fragments: list[str]) -> None:
    """Someone reads it at night; log alerts match on these words."""
    assert [fragment for fragment in fragments if fragment not in str(error)] == []


def test_no_name_is_suggested_where_none_is_close() -> None:
    """A wild guess costs more than none."""
    assert "Did you mean" not in str(UnknownAgentError("zzz", ["oncall"]))


def test_an_unknown_run_reads_as_a_sentence() -> None:
    """A KeyError shows the repr of its message, quotes and all."""
    assert str(UnknownRunError("r1")).startswith("there is no run 'r1'")


def test_a_conflict_may_be_told_in_other_words() -> None:
    """Stores of other makers say what they know."""
    assert str(ConflictError("r1", 3, "taken")) == "taken"


def test_a_rate_limit_needs_no_words() -> None:
    """`raise RateLimitError` is enough."""
    assert (str(RateLimitError()), RateLimitError().retry_after) == ("rate limited", None)
