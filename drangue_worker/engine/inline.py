"""The inline shell: one run, driven in this process by the same steps, claims and rules as the fleet's.

There is no queue: opened steps are performed as tasks of the running event loop, and the waits that a sweep would end
are waited for here. It is what `Agent.run` does, and the double that tests of agents run on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from drangue_client.errors import LeaseHeldError
from drangue_client.events import Fact
from drangue_client.store.port import StepRef
from drangue_worker.engine.coordinate import coordinate
from drangue_worker.engine.perform import Performed, perform
from drangue_worker.engine.runtime import Runtime
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.inline")


async def drive(runtime: Runtime, run_id: str, first: Sequence[Fact] = (), moved: asyncio.Event | None = None) -> None:
    """Work on a run until it has ended or waits for a person; `moved` is set whenever its log may have grown.

    Raises what failed the run, LeaseHeldError when all that is left is held by another process. When cancelled, steps
    in flight are given back.
    """
    await runtime.database(coordinate, runtime, run_id, first)
    running: dict[asyncio.Task[Performed], int] = {}
    try:
        while True:
            if moved:
                moved.set()
            held = await _start_open_steps(runtime, run_id, running)
            if not running:
                if held:
                    raise LeaseHeldError(run_id)
                return
            finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                del running[task]
                performed = task.result()
                if performed.error:
                    raise performed.error
    finally:
        await _stop(running)
        if moved:
            moved.set()


async def _start_open_steps(runtime: Runtime, run_id: str, running: dict[asyncio.Task[Performed], int]) -> bool:
    """Start every open step that is free; returns whether another process holds one."""
    held = False
    for ref, delay_s, live in await runtime.database(runtime.log.open_steps, run_id):
        if ref.step in running.values():
            continue
        if live:
            held = True
        else:
            running[asyncio.create_task(_later(runtime, ref, delay_s))] = ref.step
    return held


async def _later(runtime: Runtime, ref: StepRef, delay_s: float) -> Performed:
    if delay_s > 0:
        await asyncio.sleep(delay_s)
    return await perform(runtime, ref.run_id, ref.step)


async def _stop(running: dict[asyncio.Task[Performed], int]) -> None:
    for task in running:
        task.cancel()
    outcomes: list[Any] = await asyncio.gather(*running, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):  # what stops the drive is raised; this one only came on top
            log.warning("step_abandoned", error=str(outcome))
