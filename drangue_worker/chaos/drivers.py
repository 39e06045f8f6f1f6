"""Who uses the fleet during a soak: one who submits its runs, one who is asked about calls, and one who cancels.

All go on through every outage, as applications and people do, and repeat themselves now and then.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psycopg

from drangue_client.client import Client
from drangue_client.errors import DatabaseUnavailable, NotPendingError
from drangue_worker.chaos.cancels import Cancel
from drangue_worker.chaos.plan import AGENT, PlannedCall, PlannedRun
from drangue_worker.chaos.recovery import CONNECT_S

AGAIN_S = 0.3  # before asking again a database that was away
FOLLOW_S = 0.1  # between two looks at the runs that are to be cancelled
LOOK_S = 0.5  # between two looks at what waits for approval
REPEATED = 10  # every so many submissions one is sent twice


@dataclass
class Submitter:
    """Submits the plan's runs, evenly over `seconds`, whatever is away meanwhile.

    `acknowledged` are the runs that `submit` said it recorded, `unsent` counts those of which it said that no worker
    could be told.
    """

    client: Client
    plans: Sequence[PlannedRun]
    seconds: float
    acknowledged: list[PlannedRun] = field(default_factory=list)
    unsent: int = 0

    @property
    def over(self) -> bool:
        """Whether every run is submitted."""
        return len(self.acknowledged) == len(self.plans)

    def work(self, stopped: threading.Event) -> None:
        """Submit until all are acknowledged, or until `stopped`."""
        began = time.monotonic()
        for number, plan in enumerate(self.plans):
            due = began + self.seconds * number / len(self.plans)
            if stopped.wait(max(0.0, due - time.monotonic())):
                return
            while not self._submit(plan):
                if stopped.wait(AGAIN_S):
                    return
            self.acknowledged.append(plan)
            if number % REPEATED == 0:
                self._submit(plan)

    def _submit(self, plan: PlannedRun) -> bool:
        try:
            submission = self.client.submit(AGENT, plan.input, run_id=plan.run_id, allow_unknown=True)
        except DatabaseUnavailable:
            return False
        self.unsent += not submission.sent
        return True


@dataclass
class Approver:
    """Decides by the plan what waits for a person, `calls` by their keys."""

    client: Client
    calls: Mapping[str, PlannedCall]

    def work(self, stopped: threading.Event) -> None:
        """Decide until `stopped`."""
        while not stopped.wait(LOOK_S):
            try:
                for request in self.client.pending_approvals():
                    self._decide(request["run_id"], request["call_id"], request["step"])
            except DatabaseUnavailable:
                continue

    def _decide(self, run_id: str, call_id: str, step: int) -> None:
        granted = self.calls[f"{run_id}:{step}"].granted
        try:
            if granted:
                self.client.approve(run_id, call_id, by="chaos")
            else:
                self.client.reject(run_id, call_id, by="chaos", reason="the plan says no")
        except NotPendingError:
            return  # decided the last time, and the answer got lost


@dataclass
class Canceller:
    """Cancels, by the plan, runs that have got somewhere. `asked` says of each what came of it."""

    client: Client
    plans: Sequence[PlannedRun]
    asked: dict[str, Cancel] = field(default_factory=dict)

    def work(self, stopped: threading.Event) -> None:
        """Cancel until all that are to be cancelled are, or until `stopped`."""
        places = {plan.run_id: plan.cancel_at for plan in self.plans if plan.cancel_at is not None}
        while places and not stopped.wait(FOLLOW_S):
            for run_id, head in self._heads(list(places)).items():
                if head >= places[run_id] and self._cancel(run_id):
                    del places[run_id]

    def _heads(self, ids: Sequence[str]) -> dict[str, int]:
        query = "select run_id, head_seq from runs where run_id = any(%s)"
        try:
            with psycopg.connect(self.client.settings.database_url, connect_timeout=CONNECT_S) as connection:
                return dict(connection.execute(query, (ids,)).fetchall())
        except psycopg.OperationalError:
            return {}

    def _cancel(self, run_id: str) -> bool:
        # Known before it is acknowledged: it may have been done, and only the answer be lost.
        self.asked.setdefault(run_id, Cancel(math.inf, False))
        try:
            done = self.client.cancel(run_id, by="chaos", reason="as planned")
        except DatabaseUnavailable:
            return False
        self.asked[run_id] = Cancel(time.time(), done)
        return True
