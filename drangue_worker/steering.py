"""What people do about the runs of an agent: decide what waits for them, end a run, say what became of a call.

Beside a program that works on them, or instead: all of it is recorded in the store, and `resume` goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from drangue_client import checks
from drangue_client.folding import fold
from drangue_client.result import pending_requests, unknown_outcomes
from drangue_client.store.port import Log
from drangue_client.turns import cancel
from drangue_client.unknowns import record_outcome
from drangue_client.verdicts import Verdict, record_verdict


class Steering:
    """The part of an Agent that needs no more than its store."""

    @property
    def store(self) -> Log:
        """Where its runs are recorded."""
        raise NotImplementedError

    async def approve(
        self,
        run_id: str,
        call_id: str | None = None,
        *,
        arguments: Mapping[str, Any] | None = None,
        arguments_hash: str | None = None,
        by: str = "",
        reason: str = "",
    ) -> None:
        """Grant a waiting call, the oldest unless `call_id` names one, with its own `arguments` or others; `resume`
        goes on. NotPendingError if none waits; as `Client.approve`."""
        await self._verdict(run_id, call_id, "approval_granted", by, reason, arguments, arguments_hash)

    async def reject(self, run_id: str, call_id: str | None = None, reason: str = "", *, by: str = "") -> None:
        """Deny a waiting call; the model is told `reason`. Otherwise as `approve`."""
        await self._verdict(run_id, call_id, "approval_denied", by, reason)

    async def cancel(self, run_id: str, *, by: str = "", reason: str = "") -> bool:
        """End the turn that a run is at, whoever works on it; False where it had ended. As `Client.cancel`."""
        return (await asyncio.to_thread(cancel, self.store, run_id, by=by, reason=reason))[1]

    async def pending_approvals(self, run_id: str) -> list[dict[str, Any]]:
        """Requests that wait for a person: {step, call_id, tool, arguments, reasoning, text}; none for no run."""
        events = await asyncio.to_thread(self.store.events, checks.text("run_id", run_id))
        return pending_requests(fold(events), events)

    async def unknown_outcomes(self, run_id: str) -> list[dict[str, Any]]:
        """Calls of which nobody knows whether they took effect: {step, call_id, tool, arguments, asked, since}; none
        for no run."""
        events = await asyncio.to_thread(self.store.events, checks.text("run_id", run_id))
        return unknown_outcomes(fold(events), events)

    async def give_outcome(
        self, run_id: str, call_id: str | None = None, *, happened: bool, note: str = "", by: str = "", reason: str = ""
    ) -> None:
        """Say what became of a call whose outcome is unknown; `resume` goes on. As `Client.give_outcome`."""
        await asyncio.to_thread(
            record_outcome, self.store, run_id, call_id, happened=happened, note=note, by=by, reason=reason
        )

    async def _verdict(
        self,
        run_id: str,
        call_id: str | None,
        verdict: Verdict,
        by: str,
        reason: str,
        arguments: Mapping[str, Any] | None = None,
        arguments_hash: str | None = None,
    ) -> None:
        decided = (run_id, call_id, verdict, by, reason, arguments, arguments_hash)
        await asyncio.to_thread(record_verdict, self.store, *decided)
