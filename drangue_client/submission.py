"""Submissions: what may be submitted, in the form a row holds it, and what became of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drangue_client import checks
from drangue_client.errors import RunExistsError
from drangue_client.events import normalise
from drangue_client.store.values import RunRow


@dataclass(frozen=True, slots=True)
class Submission:
    """What `submit` did: `created` is False where the run was there already, `sent` where Redis could not be told."""

    run_id: str
    created: bool
    sent: bool


def check_run_id(run_id: str | None) -> str:
    """The id to use: `run_id`, or a fresh one of 32 hex digits, of which the first twelve are the milliseconds since
    1970: what is new lies together in every index. TypeError or ValueError for what cannot name a run."""
    if run_id is None:
        return f"{time.time_ns() // 1_000_000:012x}{uuid.uuid4().hex[:20]}"
    return checks.printable("run_id", run_id, "Choose another, or leave it out.")


def check_input(input: str) -> str:
    """The input as a log holds it. TypeError for what is no text."""
    return str(normalise(checks.text("input", input, then="Put structured input into JSON.", hidden=True)))


def check_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """The labels as a row holds them. TypeError for what is not {text: text}."""
    checks.kind("labels", labels, Mapping, "{name: value}, both text", optional=True)
    for name, value in (labels or {}).items():
        checks.text("a name in labels", name)
        checks.text(f"labels[{name!r}]", value, then="Write it as text.")
    kept: dict[str, str] = normalise(labels or {})
    return kept


def check_same(
    row: RunRow, agent: str, input: str, output_schema: Any = None, limits: Mapping[str, Any] | None = None
) -> None:
    """Raise RunExistsError unless the run was submitted with these."""
    if row.agent != agent:
        raise RunExistsError(row.run_id, f"agent ({row.agent!r})")
    if row.input != normalise(input):
        raise RunExistsError(row.run_id, "input")
    if row.overrides.get("output_schema") != output_schema:
        raise RunExistsError(row.run_id, "output_schema")
    if row.overrides.get("limits") != limits:
        raise RunExistsError(row.run_id, "limits")
