"""Submissions: what may be submitted, in the form a row holds it, and what became of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drangue_client import checks
from drangue_client.answer import schema_of
from drangue_client.errors import RunExistsError, UnknownAgentError
from drangue_client.events import normalise
from drangue_client.limits import Limits
from drangue_client.store.port import Log
from drangue_client.store.values import NewRun, RunRow
from drangue_client.turns import check_turn_id
from drangue_client.wire.queue import HANDOFF_S
from drangue_client.wire.tracing import current_traceparent

MOST = 10_000  # runs in one submission: one statement, and one command to Redis


@dataclass(frozen=True, slots=True)
class Submission:
    """What `submit` did: `created` is False where the run was there already, `sent` where Redis could not be told."""

    run_id: str
    created: bool
    sent: bool


def to_submit(
    agent: str,
    *,
    priority: int,
    labels: Mapping[str, str] | None,
    output_schema: Any,
    turn_id: str | None,
    tokens: bool,
    deadline: float | None,
    not_before: float | None,
    limits: Limits | None,
) -> NewRun:
    """What all runs of one submission are asked for, but for their ids and inputs. TypeError or ValueError for what
    cannot be asked."""
    checks.count("priority", priority, most=9)
    turn_id = check_turn_id(turn_id)
    checks.name("agent", agent, "the name of an agent")
    checks.flag("tokens", tokens)
    checks.seconds("deadline", deadline, optional=True)
    checks.moment("not_before", not_before, optional=True)
    limits = None if checks.kind("limits", limits, Limits, "a Limits", optional=True) == Limits() else limits
    asked = {
        "output_schema": schema_of(output_schema),
        "turn_id": turn_id,
        "tokens": tokens or None,
        "deadline_s": deadline,
        "not_before": not_before,
        "limits": normalise(limits.to_json()) if limits else None,
        "traceparent": current_traceparent(),
    }
    return NewRun(
        "",
        agent,
        "",
        priority=priority,
        labels=check_labels(labels),
        overrides={name: value for name, value in asked.items() if value is not None},
        wake_in_s=HANDOFF_S,
        not_before=not_before,
    )


def check_inputs(inputs: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """The inputs of several runs by their ids, which are made where none are given. TypeError or ValueError for what
    is neither {run_id: text} nor texts, and for too many."""
    if isinstance(inputs, Mapping):
        given = {checks.printable("a run_id in inputs", run_id): (run_id, text) for run_id, text in inputs.items()}
    else:
        texts = checks.many("inputs", inputs, "a list of texts, or {run_id: text}")
        given = {check_run_id(None): (place, text) for place, text in enumerate(texts)}
    if len(given) > MOST:
        raise ValueError(f"inputs has {len(given):,} texts, and {MOST:,} can be submitted at once. Submit it in parts.")
    return {run_id: check_input(text, f"inputs[{place!r}]") for run_id, (place, text) in given.items()}


def check_agent(log: Log, new: Sequence[NewRun], limits: Limits | None, allow_unknown: bool) -> frozenset[str]:
    """The agents that some worker has said to serve. Raises where the one of these runs is not among them, where there
    are any, and for limits that it cannot have. Asked through the log that the runs are written to: on an event loop
    any other question would block it."""
    if allow_unknown and limits is None:
        return frozenset()
    known, agent = {row.name: row for row in log.agents()}, new[0].agent
    if known and agent not in known and not allow_unknown:
        raise UnknownAgentError(agent, list(known))
    if limits is None or agent not in known:
        return frozenset(known)
    try:
        limits.check(known[agent].summary["tools"])
    except ValueError:
        ids = [one.run_id for one in new]
        if len(log.rows(ids)) < len(ids):  # repeating a submission is safe, whatever has been deployed since
            raise
    return frozenset(known)


def check_run_id(run_id: str | None) -> str:
    """The id to use: `run_id`, or a fresh one of 32 hex digits, of which the first twelve are the milliseconds since
    1970: what is new lies together in every index. TypeError or ValueError for what cannot name a run."""
    if run_id is None:
        return f"{time.time_ns() // 1_000_000:012x}{uuid.uuid4().hex[:20]}"
    return checks.printable("run_id", run_id, "Choose another, or leave it out.")


def check_input(input: str, argument: str = "input") -> str:
    """The input as a log holds it. TypeError for what is no text."""
    return str(normalise(checks.text(argument, input, then="Put structured input into JSON.", hidden=True)))


def check_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """The labels as a row holds them. TypeError for what is not {text: text}."""
    checks.kind("labels", labels, Mapping, "{name: value}, both text", optional=True)
    for name, value in (labels or {}).items():
        checks.text("a name in labels", name)
        checks.text(f"labels[{name!r}]", value, then="Write it as text.")
    kept: dict[str, str] = normalise(labels or {})
    return kept


def check_same(row: RunRow, new: NewRun) -> None:
    """Raise RunExistsError unless the run was submitted with these."""
    if row.agent != new.agent:
        raise RunExistsError(row.run_id, f"agent ({row.agent!r})")
    if row.input != normalise(new.input):
        raise RunExistsError(row.run_id, "input")
    for name in ("output_schema", "limits"):
        if row.overrides.get(name) != new.overrides.get(name):
            raise RunExistsError(row.run_id, name)
