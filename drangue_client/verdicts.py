"""Verdicts: a person's answer to a request that waits. One rule for applications and for agents in one process."""

from __future__ import annotations

from typing import Any

from drangue_client import checks
from drangue_client.errors import NotPendingError
from drangue_client.events import Fact
from drangue_client.result import pending_requests
from drangue_client.run import Run, fold
from drangue_client.store.port import Log, Look, Move, RunRow
from drangue_client.wire.queue import HANDOFF_S


def record_verdict(
    log: Log, run_id: str, call_id: str | None, verdict: Any, by: str, reason: str
) -> tuple[dict[str, Any], RunRow]:
    """Append a verdict under the run's lock; returns the request it decided. Raises NotPendingError."""
    checks.text("run_id", run_id)
    checks.text("by", by)
    checks.text("reason", reason, hidden=True)
    look = log.look(run_id)
    while True:
        request = _choose(log, look, call_id)
        payload = {"call_id": request["call_id"], "by": by, "reason": reason}
        payload["arguments_hash"] = request["arguments_hash"]
        fact = Fact(verdict, payload, step=request["step"])
        run: Run = fold([fact.at(look.run.seq + 1)], onto=look.run)
        moved = log.settle([Move(run_id, look.row.head_seq, run, facts=(fact,), wake_in_s=HANDOFF_S)])[0]
        if moved.verdict == "ok":
            return request, look.row
        assert moved.look is not None
        look = moved.look


def _choose(log: Log, look: Look, call_id: str | None) -> dict[str, Any]:
    waiting = pending_requests(look.run, log.events(look.row.run_id)) if look.run.pending else []
    for request in waiting:
        if call_id in (None, request["call_id"]):
            return request
    raise NotPendingError(look.row.run_id, call_id, [request["call_id"] for request in waiting])
