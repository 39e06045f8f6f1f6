"""Sweep: put back in motion whatever stopped moving. Any number of workers may sweep at once.

Four things stop: a step whose worker died, a step whose backoff is over, a run that is due, and a step whose message
was lost. The first three are certain and sent at once. The last is only suspected, since a message that still waits in
a long queue looks the same. Where a queue holds fewer messages than unclaimed steps, and now and then where it holds
enough, since some may be doubled, what waits there is read; a step is sent again whose message was seen nowhere for a
while: it may be on its way into the queue, or to its claim. On the latter nobody sees it, unless workers keep a copy of
what they have fetched (`broker_acks`), so this is also what finds the messages that died with a worker.
What is left of turns that are over, its worker dead, is closed: nobody else can claim it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from drangue_client.errors import DatabaseUnavailable, QueueUnavailable
from drangue_client.settings import Settings
from drangue_client.store.port import Log
from drangue_client.store.values import RunRow, StepRef
from drangue_client.turns import close
from drangue_client.wire.queue import COORDINATE_QUEUE, HANDOFF_S, Sender
from drangue_worker.engine.leases import HALT_S
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.sweep")

BACK_S = 5.0  # within which every worker has noticed that the database is back
READ = 1000  # messages of each priority: those of the steps in doubt are among the next, whatever else lies there
LIMIT = 500  # of each kind in one sweep: what a flushed Redis lost is back within seconds


@dataclass
class Swept:
    """What one sweep sent: counts by cause. `recovered` are steps whose worker died, `due` those whose backoff is over,
    `resent` those whose message was lost."""

    runs: int = 0
    recovered: int = 0
    due: int = 0
    resent: int = 0

    def __bool__(self) -> bool:
        return bool(self.runs or self.recovered or self.due or self.resent)


@dataclass
class Sweeper:
    """One process's sweeper. `suspects` are the steps whose message was nowhere to be found, and since when, `read_at`
    when each queue was read last."""

    log: Log
    sender: Sender
    settings: Settings
    suspects: dict[tuple[str, int], float] = field(default_factory=dict)
    read_at: dict[str, float] = field(default_factory=dict)

    def sweep(self) -> Swept:
        """Look once and send what is due. Raises DatabaseUnavailable or QueueUnavailable; then nothing is lost."""
        swept = Swept()
        due = self._due_runs()
        self.sender.coordinate(due)
        swept.runs = len(due)
        recovered = self.log.recover(self.settings.patience_s, LIMIT)
        self._send(recovered)
        swept.recovered = sum(ref.urgent for ref in recovered)
        swept.due = len(recovered) - swept.recovered
        lost = self.log.mark_sent(self._lost())  # of two sweepers that miss the same message, one marks it
        self._send([replace(ref, urgent=ref.attempt > 0) for ref in lost])
        swept.resent = len(lost)
        self._close()
        if swept:
            log.info("swept", **asdict(swept))
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
        waiting = self.sender.waiting([state.queue for state in states]) if states else {}
        missing: list[StepRef] = []
        now = time.monotonic()
        for state in states:
            looked_s = now - self.read_at.get(state.queue, -math.inf)
            known = any((ref.run_id, ref.step) in self.suspects for ref in state.doubtful)
            if known or state.unclaimed > waiting[state.queue] or looked_s >= self.settings.patience_s:
                self.read_at[state.queue] = now
                there = self.sender.on_the_way(state.queue, READ, self.settings.lease_s)
                missing += [ref for ref in state.doubtful if (ref.run_id, ref.step) not in there]
        self.suspects = {key: self.suspects.get(key, now) for key in ((ref.run_id, ref.step) for ref in missing)}
        while_s = min(HANDOFF_S, self.settings.patience_s)
        return [ref for ref in missing if now - self.suspects[ref.run_id, ref.step] >= while_s]

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
