"""Sweep: put back in motion whatever stopped moving. Any number of workers may sweep at once.

Four things stop: a step whose worker died, a step whose backoff is over, a run that is due, and a step whose message
was lost. The first three are certain and sent at once. The last is only suspected, since a message that still waits in
a long queue looks the same: it is sent again when the queue holds fewer messages than unclaimed steps, twice in a row.
What is left of turns that are over, its worker dead, is closed: nobody else can claim it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from drangue_client.errors import DatabaseUnavailable, QueueUnavailable
from drangue_client.settings import Settings
from drangue_client.store.port import Log, RunRow, StepRef
from drangue_client.turns import close
from drangue_client.wire.queue import COORDINATE_QUEUE, Sender
from drangue_worker.engine.leases import HALT_S
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.sweep")

BACK_S = 5.0  # within which every worker has noticed that the database is back
LIMIT = 500  # of each kind in one sweep: what a flushed Redis lost is back within seconds


@dataclass
class Swept:
    """What one sweep sent: counts by cause."""

    runs: int = 0
    recovered: int = 0
    resent: int = 0

    def __bool__(self) -> bool:
        return bool(self.runs or self.recovered or self.resent)


@dataclass
class Sweeper:
    """One process's sweeper. `suspects` are the steps whose message was in doubt at the last sweep."""

    log: Log
    sender: Sender
    settings: Settings
    suspects: set[tuple[str, int]] = field(default_factory=set)

    def sweep(self) -> Swept:
        """Look once and send what is due. Raises DatabaseUnavailable or QueueUnavailable; then nothing is lost."""
        swept = Swept()
        due = self._due_runs()
        self.sender.coordinate(due)
        swept.runs = len(due)
        recovered = self.log.recover(self.settings.patience_s, LIMIT)
        self._send(recovered)
        swept.recovered = len(recovered)
        lost = self._lost()
        if lost:
            self.log.mark_sent(lost)
            self._send(lost)
        swept.resent = len(lost)
        self._close()
        if swept:
            log.info("swept", runs=swept.runs, recovered=swept.recovered, resent=swept.resent)
        return swept

    def _close(self) -> None:
        for held in self.log.left_behind(LIMIT):
            try:
                close(self.log, held)
            except DatabaseUnavailable:
                raise
            except Exception:  # one damaged run must not keep the others waiting
                log.exception("close_failed", run_id=held.ask.run_id, step=held.ask.step)

    def _due_runs(self) -> list[RunRow]:
        """Runs to send a coordinator to: those that no waiting message can be for, and always the oldest one."""
        due = sorted(self.log.wake(self.settings.patience_s, LIMIT), key=lambda row: row.created_at)
        if len(due) < 2:
            return due
        waiting = self.sender.waiting([COORDINATE_QUEUE])[COORDINATE_QUEUE]
        return due[: max(1, len(due) - waiting)]

    def _lost(self) -> list[StepRef]:
        states = self.log.queues(self.settings.patience_s, LIMIT)
        if not states:
            self.suspects = set()
            return []
        waiting = self.sender.waiting([state.queue for state in states])
        missing: list[StepRef] = []
        for state in states:
            missing += state.doubtful[: max(0, state.unclaimed - waiting[state.queue])]
        # A message between its queue and its claim is in neither count: only a doubt that lasts is acted upon.
        lost = [ref for ref in missing if (ref.run_id, ref.step) in self.suspects]
        self.suspects = {(ref.run_id, ref.step) for ref in missing}
        return lost

    def _send(self, refs: Sequence[StepRef]) -> None:
        try:
            self.sender.steps(refs)
        except QueueUnavailable:
            self.log.mark_unsent(refs)
            raise


def renewing_s(settings: Settings, away_s: float) -> float:
    """How many seconds a sweep waits after the database was away for at most `away_s`, until all who live have renewed.

    Who lives had renewed at the latest a renewal and a beat before that, and tries again every 2 s. 0 where no lease of
    theirs can have lapsed by the time they have: an outage of some seconds delays nobody.
    """
    left_s = settings.lease_s - settings.renew_s - HALT_S - away_s
    return 0.0 if left_s >= BACK_S else min(settings.lease_s, BACK_S)


def sweep_until(
    stopped: Callable[[float], bool], sweeper: Sweeper, interval: Callable[[], float], first: Callable[[], None]
) -> None:
    """Sweep at intervals (seconds, asked anew each time) until `stopped(seconds)`, which waits, says so.

    `first` is called before each sweep. What is away is logged and tried again. When the database is back after an
    error, every worker that lives renews before its steps could be taken for dead: it has the time to, or is given it.
    """
    wait, good_at = interval(), time.monotonic()
    was_away = False
    while not stopped(wait):
        wait = interval()
        try:
            first()
            if was_away:
                sweeper.log.agents()  # the first good answer
                was_away = False
                pause_s = renewing_s(sweeper.settings, time.monotonic() - good_at)
                if pause_s:
                    wait = pause_s
                    continue
            sweeper.sweep()
            good_at = time.monotonic()
        except DatabaseUnavailable as error:
            was_away = True
            log.warning("sweep_failed", error=str(error))
        except QueueUnavailable as error:
            log.warning("sweep_failed", error=str(error))
        except Exception:
            log.exception("sweep_failed")  # the last net must not end with a surprise; the next interval tries again
