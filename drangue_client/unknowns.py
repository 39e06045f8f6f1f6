"""Unknown outcomes: irreversible calls of which nobody knows whether they took effect, until a person says so.

They are never repeated. The model is told that it is unknown, or, by the tool's own policy, a person is asked first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drangue_client import checks
from drangue_client.appending import append
from drangue_client.errors import NotUnknownError
from drangue_client.events import Fact
from drangue_client.outcomes import approved_as, found_out
from drangue_client.result import unknown_outcomes
from drangue_client.store.port import Log
from drangue_client.store.values import Look, RunRow
from drangue_client.wire.queue import HANDOFF_S


def record_outcome(
    log: Log, run_id: str, call_id: str | None, *, happened: bool, note: str, by: str, reason: str
) -> tuple[dict[str, Any], RunRow]:
    """Append what became of an unknown call, under the run's lock; returns the call. Raises NotUnknownError.

    A call that the run waits for gets it as its result. One that the model was told of as unknown is corrected, where
    the model has not read that yet, and else told of with its next call.
    """
    checks.text("run_id", run_id)
    checks.text("call_id", call_id, "the id of a call", blank=False, optional=True)
    checks.flag("happened", happened)
    checks.text("note", note, hidden=True)
    checks.text("by", by)
    checks.text("reason", reason, hidden=True)
    chosen: list[dict[str, Any]] = []

    def given(look: Look) -> Sequence[Fact]:
        unknown = unknown_outcomes(look.run, log.events(run_id)) if look.run.unknown else []
        item = next((one for one in unknown if call_id in (None, one["call_id"])), None)
        if item is None:
            raise NotUnknownError(run_id, call_id, [one["call_id"] for one in unknown])
        chosen.append(item)
        step, name = item["step"], item["tool"]
        told = {"call_id": item["call_id"], "happened": happened, "by": by, "reason": reason}
        content = found_out(name, happened, note)
        if "asked_arguments" in item:
            content = approved_as(item["arguments"], content)
        result = {"call_id": item["call_id"], "name": name, "content": content}
        return (
            Fact("outcome_given", told, step),
            Fact("tool_result" if item["asked"] else "outcome_corrected", result, step),
        )

    look, _ = append(log, run_id, given, wake_in_s=HANDOFF_S)
    return chosen[-1], look.row
