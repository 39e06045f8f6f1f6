"""A fleet's load on the log without a fleet: runs of ten steps, many at a time, by a few threads."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from drangue_client.store.log import SqlLog
from drangue_client.store.values import Claimed, Move, NewRun
from tests.contract.log_scenes import LEASE_S, STARTED, ask, decision, finished, model, move, result, tool

STEPS = 10  # of a run: model, tool, model, tool ...
BATCH = 32  # runs that one thread moves on at once


def churn(log: SqlLog, steps: int, threads: int = 4) -> int:
    """Do so many steps, of runs that all end; returns how many were done."""
    batches = -(-steps // (STEPS * BATCH))
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: runs(log), range(batches)))


def runs(log: SqlLog) -> int:
    """BATCH runs from their submission to their end; returns how many steps that were."""
    ids = sorted(uuid.uuid4().hex for _ in range(BATCH))
    log.submit([NewRun(run_id, "oncall", "disk full", wake_in_s=5.0) for run_id in ids])
    _settle(log, [move(log.look(run_id), STARTED, opens=(model(1),)) for run_id in ids])
    for step in range(1, STEPS + 1):
        claims = log.claim([ask(run_id, step) for run_id in ids], LEASE_S)
        _settle(log, [_moved_on(claimed, step) for claimed in claims if claimed])
    return len(ids) * STEPS


def _moved_on(claimed: Claimed, step: int) -> Move:
    on = partial(move, claimed.look, claim=claimed.ask)
    if step % 2 == 0:
        last = step == STEPS
        return on(
            result(step, "x" * 200), *([finished(step)] if last else ()), opens=() if last else (model(step + 1),)
        )
    return on(decision(step, "read_logs", text="y" * 100), opens=(tool(step + 1),))


def _settle(log: SqlLog, moves: Sequence[Move]) -> None:
    answers = log.settle(moves)
    assert {answer.verdict for answer in answers} == {"ok"}, answers
    assert len(moves) == BATCH
