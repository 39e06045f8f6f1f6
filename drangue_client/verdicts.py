"""Verdicts: a person's answer to a request that waits. One rule for applications and for agents in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drangue_client import checks
from drangue_client.appending import append
from drangue_client.errors import NotPendingError
from drangue_client.events import Fact
from drangue_client.result import pending_requests
from drangue_client.store.port import Log, Look, RunRow
from drangue_client.wire.queue import HANDOFF_S


def record_verdict(
    log: Log, run_id: str, call_id: str | None, verdict: Any, by: str, reason: str
) -> tuple[dict[str, Any], RunRow]:
    """Append a verdict under the run's lock; returns the request it decided. Raises NotPendingError."""
    checks.text("run_id", run_id)
    checks.text("by", by)
    checks.text("reason", reason, hidden=True)
    chosen: list[dict[str, Any]] = []

    def decided(look: Look) -> Sequence[Fact]:
        request = _choose(log, look, call_id)
        chosen.append(request)
        payload = {"call_id": request["call_id"], "by": by, "reason": reason}
        return (Fact(verdict, {**payload, "arguments_hash": request["arguments_hash"]}, step=request["step"]),)

    look, _ = append(log, run_id, decided, wake_in_s=HANDOFF_S)
    return chosen[-1], look.row


def _choose(log: Log, look: Look, call_id: str | None) -> dict[str, Any]:
    waiting = pending_requests(look.run, log.events(look.row.run_id)) if look.run.pending else []
    for request in waiting:
        if call_id in (None, request["call_id"]):
            return request
    raise NotPendingError(look.row.run_id, call_id, [request["call_id"] for request in waiting])
