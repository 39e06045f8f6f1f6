"""Killing: what becomes of the processes of a prefork pool whose calls go on too long, and of what the dead have held.

It is asked for in the worker's main process, whose children they are: while it lives, an id of theirs is nobody else's
until it has been told of their end.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from drangue_client.run import OVER
from drangue_client.store.values import KILLED, REAPED, Release, StepRef
from drangue_client.turns import close
from drangue_worker.fleet.worker import FleetRuntime
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.worker")

UNWANTED_S = 3.0  # a call that was told to stop with its turn has so long to end by itself


def give_back_of_ended(fleet: FleetRuntime, buried: set[str]) -> None:
    """Give back what processes of the pool hold that have ended by themselves: nobody waits for their leases. Nothing
    of theirs can be recorded any more, and nothing be done: what their tools had started is ended first, of all but the
    `buried`, which has been done for.

    The log is asked who holds something, not the pool who has gone: one that lived for a moment only was seen by
    nobody, and what a dying one had asked Postgres for may be granted after its death."""
    for worker in fleet.log.holders(fleet.worker):
        child = _process_of(worker)
        if _lives(child):
            continue
        if worker not in buried:  # once: its number may soon be somebody else's
            buried.add(worker)
            _kill(os.killpg, child)
        given_back = fleet.log.release_worker(worker, REAPED)
        if given_back:
            log.warning("process_ended", child=child, steps=len(given_back))
            fleet.sender.steps(given_back)


def kill_overdue(fleet: FleetRuntime) -> None:
    """Kill each process of the pool that holds a step beyond its time. The pool replaces it; the step is given back, so
    that another child records the timeout, or, where its turn is over, closed."""
    given_back: list[StepRef] = []
    killed: set[str] = set()
    while True:  # asked anew before each kill: a child that has ended its step may be at somebody else's by now
        overdue = [held for held in fleet.log.overdue(fleet.worker, UNWANTED_S) if held.ask.token not in killed]
        found = next((held for held in overdue if _lives(_process_of(held.ask.worker))), None)
        if found is None:  # or dead already: then it is given back
            break
        killed.add(found.ask.token)
        child = _process_of(found.ask.worker)
        log.warning("process_killed", run_id=found.ask.run_id, step=found.ask.step, child=child)
        end(child)
        if fleet.log.look(found.ask.run_id).run.ended in OVER:
            close(fleet.log, found)
        else:
            released = fleet.log.release([Release(found.ask, category=KILLED, lost=True)])
            given_back += [ref for ref in released if ref]
    fleet.sender.steps(given_back)


def end(child: int) -> None:
    """Kill a process of the pool with all that its tools have started: each leads a group of its own."""
    _kill(os.killpg, child)
    _kill(os.kill, child)  # one that was only just forked leads none yet


def _kill(how: Callable[[int, int], None], process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter of another account, to whom it fell
        how(process, signal.SIGKILL)


def _lives(child: int) -> bool:
    """Whether a process of the pool has not ended. The pool itself looks only every five seconds where something the
    process has started holds its pipes; who is asked here stays to be reaped by the pool."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:  # reaped
        return False


def _process_of(worker: str) -> int:
    return int(worker.rpartition(".")[2])
