"""What people and applications do about runs that are there: decide what waits, end a run, take it up again, say what
became of a call. Each is recorded in Postgres first, and then the workers are told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from drangue_client import checks
from drangue_client.errors import QueueUnavailable, UnknownRunError
from drangue_client.folding import fold
from drangue_client.result import unknown_outcomes
from drangue_client.store.port import Log
from drangue_client.store.values import RunRow, StepRef
from drangue_client.submission import Submission
from drangue_client.turns import cancel, resume
from drangue_client.unknowns import record_outcome
from drangue_client.verdicts import Verdict, record_verdict
from drangue_client.waiting import requests_of, watch
from drangue_client.wire.queue import Sender
from drangue_client.wire.signals import Doorbell


class Steering:
    """The part of a Client that changes where a run goes."""

    log: Log
    _sender: Sender
    _doorbell: Doorbell

    def resume(self, run_id: str, *, by: str = "", reason: str = "") -> Submission:
        """Take a failed run up again where it failed, its steps with fresh retries, and tell the workers.

        A run that has not failed is left as it is (`created` is False then), so repeating is safe. UnknownRunError.
        """
        row, opened = resume(self.log, run_id, by=by, reason=reason)
        failed = row.status == "failed"
        return Submission(run_id, failed, self._tell([row], opened=opened) if failed else True)

    def cancel(self, run_id: str, *, by: str = "", reason: str = "", connection: Any = None) -> bool:
        """End the turn a run is at, now: what is queued never starts, what is under way is told to stop.

        Workers hear of it within a second. A model call is aborted, a reversible tool is stopped; an irreversible one
        that has begun is let finish, so that its outcome is known, unless the tool's `on_cancel` says otherwise. The
        run reads `cancelled` at once, and `say` goes on with it when all of that has stopped. A run that has ended is
        left as it is (False), so repeating is safe. UnknownRunError. `connection` as in `submit`.
        """
        row, done = cancel(self._log(connection), run_id, by=by, reason=reason)
        if done and connection is None:
            self._doorbell.ring([run_id])
            self._tell([row])
        return done

    def pending_approvals(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """Requests that wait for a person: {run_id, agent, step, call_id, tool, arguments, arguments_hash, reasoning,
        text}, and as far as its policy has them {people, granted_by, group, escalates_at, escalated_to, expires_at}.

        Where somebody has changed the arguments, `asked_arguments` are those of the model. Of one run, or of every
        run, of which the newest 1000 are looked at. An unknown run has none.
        """
        return [item for row in self._rows(run_id, asked=True) for item in requests_of(self.log, row)]

    def watch_approvals(self, *, timeout: float | None = None) -> Iterator[dict[str, Any]]:
        """Every request that waits for a person, as `pending_approvals` has it: those there are, then new ones as they
        come, until `timeout` seconds are over (None: for ever; 0: those there are).

        Each comes once, and again when it has changed in what whoever decides must know: put to another group, granted
        by one of several people, or with other arguments, which is another `arguments_hash`. That it was decided or has
        expired is not told: `approve` refuses then. New ones come at once, or within 5 seconds where Redis is away or
        lost the announcement. A new watch, as after a restart, tells all that waits anew, so what is sent to people
        must be safe to repeat: know it by run_id, step, arguments_hash. Of more than 10,000 such runs the newest are
        looked at. Raises DatabaseUnavailable where Postgres is away: watch again then.
        """
        yield from watch(self.log, self._doorbell, timeout)

    def unknown_outcomes(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """Calls of which nobody knows whether they took effect: {run_id, step, call_id, tool, arguments, asked, since}.

        Of one run, or of every run. `asked` says that the run waits for `give_outcome`. An unknown run has none.
        """
        found = []
        for row in self._rows(run_id, unknown=True):
            events = self.log.events(row.run_id)
            found += [{"run_id": row.run_id, **item} for item in unknown_outcomes(fold(events), events)]
        return found

    def approve(
        self,
        run_id: str,
        call_id: str | None = None,
        *,
        arguments: Mapping[str, Any] | None = None,
        arguments_hash: str | None = None,
        by: str = "",
        reason: str = "",
        connection: Any = None,
    ) -> dict[str, Any]:
        """Grant a waiting call, the oldest one unless `call_id` names it, and let the run go on.

        Returns the request, with how many people are still `missing`. The first verdict on a call holds:
        NotPendingError for a call that is not waiting. With `arguments` the call is made with those in place of the
        model's; ValidationError where the tool's schema refuses them. `arguments_hash` is that of the request you have
        seen: a grant that names it counts for nothing else (ChangedArgumentsError), and is needed once somebody has
        changed the arguments. Of a call that needs several people, each must be
        another one: SamePersonError. UnknownRunError if there is no such run. `connection` as in `submit`.
        """
        return self._decide(run_id, call_id, "approval_granted", by, reason, connection, arguments, arguments_hash)

    def reject(
        self, run_id: str, call_id: str | None = None, *, by: str = "", reason: str = "", connection: Any = None
    ) -> dict[str, Any]:
        """Deny a waiting call; the model is told `reason`. Otherwise as `approve`."""
        return self._decide(run_id, call_id, "approval_denied", by, reason, connection)

    def give_outcome(
        self, run_id: str, call_id: str | None = None, *, happened: bool, note: str = "", by: str = "", reason: str = ""
    ) -> dict[str, Any]:
        """Say what became of a call whose outcome is unknown, the oldest one unless `call_id` names it.

        `note` is what the model is told: of a call that `happened`, its result. A run that waits for it goes on; in one
        that went on without, the model is told with its next call. Nothing is executed. Returns the call; the first
        word on it holds: NotUnknownError for a call whose outcome is known. UnknownRunError.
        """
        item, row = record_outcome(self.log, run_id, call_id, happened=happened, note=note, by=by, reason=reason)
        self._tell([row])
        return {**item, "run_id": run_id, "executor": row.executor}

    def _rows(self, run_id: str | None, **filters: Any) -> list[RunRow]:
        """The row of one run, if there is such a run, or those of all that the filters let through."""
        if run_id is None:
            return self.log.runs(limit=1000, **filters)
        try:
            return [self.log.look(checks.text("run_id", run_id)).row]
        except UnknownRunError:
            return []

    def _decide(
        self,
        run_id: str,
        call_id: str | None,
        verdict: Verdict,
        by: str,
        reason: str,
        connection: Any,
        arguments: Mapping[str, Any] | None = None,
        arguments_hash: str | None = None,
    ) -> dict[str, Any]:
        log = self._log(connection)
        request, row = record_verdict(log, run_id, call_id, verdict, by, reason, arguments, arguments_hash)
        self._tell([row], connection)
        if request["missing"] and connection is None:
            self._doorbell.ring((), [run_id])  # it waits on, for somebody else, who must know what has changed
        return {**request, "run_id": run_id, "executor": row.executor}

    def _log(self, connection: Any) -> Log:
        """The log, by itself or as a part of a transaction of the caller's."""
        if connection is None:
            return self.log
        from drangue_client.store.riding import RidingLog

        return RidingLog(connection)

    def _tell(self, rows: Sequence[RunRow], connection: Any = None, opened: Sequence[StepRef] = ()) -> bool:
        """Tell the workers that runs have moved, unless that is still to be committed; whether Redis took it."""
        if connection is not None:
            return False
        theirs = [row for row in rows if row.executor == "celery"]
        try:
            self._sender.coordinate(theirs)
            self._sender.steps(opened if theirs else ())
        except QueueUnavailable:
            return False  # recorded with a wake-up time: the sweep of any worker sends it
        return True
