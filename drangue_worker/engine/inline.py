"""The inline shell: one run, driven in this process by the same steps, claims and rules as the fleet's.

There is no queue: opened steps are performed as tasks of the running event loop, and the waits that a sweep would end
are waited for here. It is what `Agent.run` does, and the double that tests of agents run on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drangue_client.answer import schema_of
from drangue_client.errors import LeaseHeldError, RunFailedError
from drangue_client.events import Fact
from drangue_client.result import Result
from drangue_client.run import MOVING
from drangue_client.store.values import Look, NewRun, RunRow, StepRef
from drangue_client.submission import check_input
from drangue_client.turns import check_turn_id, resume, resumed, say
from drangue_client.wire.signals import POLL_S
from drangue_client.wire.tracing import current_traceparent
from drangue_worker.engine.coordinate import Next, move_on
from drangue_worker.engine.perform import Performed, perform
from drangue_worker.engine.runtime import Runtime
from drangue_worker.engine.step import told_to_stop
from drangue_worker.observability.logs import get_logger

log = get_logger("drangue.inline")

_SHORTEST_S = 0.01  # between two looks at a clock that does not move on


def _nobody() -> None:
    """Whom a run's moves are told when nobody listens."""


async def begin(
    runtime: Runtime,
    agent: str,
    run_id: str,
    input: str | None,
    output_schema: Any,
    turn_id: str | None,
    labels: Mapping[str, str] | None = None,
) -> RunRow:
    """Begin a run, or another turn of one, or find what was begun before; returns the run as it stood until now.

    Raises InFlightError for a new input while a turn goes on, TurnExistsError, and TypeError or ValueError for what
    cannot be run.
    """
    text, schema = check_input("" if input is None else input), schema_of(output_schema)
    turn_id = check_turn_id(turn_id)
    asked = {"output_schema": schema, "turn_id": turn_id, "traceparent": current_traceparent()}
    overrides = {name: value for name, value in asked.items() if value is not None}
    new = NewRun(run_id, agent, text, executor="inline", overrides=overrides, labels=labels or {})
    row, created = (await runtime.database(runtime.log.submit, [new]))[0]
    if created:
        return row
    look = await runtime.database(runtime.log.look, run_id)
    recorded = look.run.terms.output_schema if look.run.terms else row.overrides.get("output_schema")
    if schema is not None and schema != recorded:
        raise ValueError(
            f"output_schema differs from the one run {run_id!r} began with, which holds for all its turns. "
            "Leave it out, or take a new run_id."
        )
    said = input is not None if turn_id is not None else bool(text) and not await _said_before(runtime, row, text)
    if said:
        await runtime.database(say, runtime.log, run_id, text, turn_id)
    return row


async def _said_before(runtime: Runtime, row: RunRow, text: str) -> bool:
    """Without a turn id, a text is told from a new one by being the first or the latest that was said."""
    if text == row.input:
        return True
    events = await runtime.database(runtime.log.events, row.run_id)
    later = [event.payload["text"] for event in events if event.type == "user_message"]
    return bool(later) and text == later[-1]


async def go_on(runtime: Runtime, run_id: str, moved: Callable[[], None] = _nobody) -> Result:
    """Work on a run until it has ended or waits for a person, and read it; one that has ended is only read.

    A failed run is tried again. One that belongs to a fleet is waited for, as a client would. Raises what failed it.
    """
    look = await runtime.database(runtime.log.look, run_id)
    _say_what_changed(runtime, look)
    if look.row.executor == "celery":
        await _wait_for_fleet(runtime, run_id, look.run.ended == "failed", moved)
    elif look.run.ended is None or look.run.ended == "failed":
        with runtime.span("run", run_id=run_id, agent=look.row.agent) as span:
            await drive(runtime, look, (resumed(look),) if look.run.ended else (), moved)
            result = await _result(runtime, run_id)
            if result.status == "paused":
                span.set("status", "paused")
            else:
                span.set("output", result.output)
        return result
    return await _result(runtime, run_id)


def _say_what_changed(runtime: Runtime, look: Look) -> None:
    """Tools come and go between deploys: the run is told of those it began with, and the log of the difference."""
    blueprint = runtime.registry.get(look.row.agent)
    if (
        look.run.ended
        or look.run.terms is None
        or blueprint is None
        or set(look.run.terms.tools) == set(blueprint.tools)
    ):
        return
    was, now = ", ".join(sorted(look.run.terms.tools)) or "none", ", ".join(sorted(blueprint.tools)) or "none"
    log.warning("tools_changed", run_id=look.row.run_id, change=f"recorded with tools {was}; the agent now has {now}")


async def _result(runtime: Runtime, run_id: str) -> Result:
    result = Result.from_events(run_id, await runtime.database(runtime.log.events, run_id))
    if result.status == "failed":
        raise RunFailedError(run_id, result.error or "", result.reason or "error")
    return result


async def _wait_for_fleet(runtime: Runtime, run_id: str, failed: bool, moved: Callable[[], None]) -> None:
    """Wait, as a client would, until the workers a run belongs to have brought it to a stop; a failed one goes on."""
    if failed:
        await runtime.database(resume, runtime.log, run_id)
    while (await runtime.database(runtime.log.look, run_id)).row.status in MOVING:
        moved()
        await asyncio.sleep(POLL_S)


async def drive(runtime: Runtime, look: Look, first: Sequence[Fact] = (), moved: Callable[[], None] = _nobody) -> None:
    """Work on a run until it has ended or waits for a person; `moved` is called whenever its log may have grown.

    Raises what failed the run, once the steps beside it have ended, and LeaseHeldError when all that is left is held by
    another process. When cancelled, steps in flight are given back.
    """
    run_id = look.row.run_id
    look, opened = await runtime.database(_take_up, runtime, look, first)
    ends_at = _ends_at(look)
    running: dict[asyncio.Task[Performed], int] = {}
    over = asyncio.Event()
    failed: BaseException | None = None
    try:
        while True:
            moved()
            if time.monotonic() >= ends_at and not over.is_set():
                look, _ = await runtime.database(_take_up, runtime, look)
                opened = ()
                if look.run.ended:
                    over.set()
                else:  # the database's clock decides, and it may have been set back
                    ends_at = _ends_at(look)
            runtime.alone = len(opened) == 1 and not running and not told_to_stop()
            if runtime.alone and ends_at == math.inf:  # nothing else can happen meanwhile: a task would be for nothing
                performed = await perform(runtime, run_id, opened[0].step)
                if told_to_stop():  # and the step has been given back
                    raise asyncio.CancelledError
                failed = failed or performed.error
                opened = _fresh([performed])
                continue
            held = False
            for ref in opened:
                running[asyncio.create_task(perform(runtime, run_id, ref.step))] = ref.step
            if not opened:
                held = await _start_open_steps(runtime, run_id, running, over)
            if not running:
                if failed:
                    raise failed
                if held:
                    raise LeaseHeldError(run_id)
                return
            left_s = None if over.is_set() or ends_at == math.inf else max(0.0, ends_at - time.monotonic())
            finished, _ = await asyncio.wait(running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                del running[task]
                failed = failed or task.result().error
            opened = _fresh([task.result() for task in finished])
    finally:
        await _stop(running)
        moved()


def _take_up(runtime: Runtime, look: Look, first: Sequence[Fact] = ()) -> tuple[Look, tuple[StepRef, ...]]:
    """Move a run on as a coordinator does: how it stands then, and the steps that this has opened."""
    run_id = look.row.run_id
    moved = move_on(runtime, [Next(run_id, tuple(first), look=look)])[0]
    return runtime.log.look(run_id), _fresh([Performed(moved.opened)])


def _fresh(performed: Sequence[Performed]) -> tuple[StepRef, ...]:
    """What to start next; nothing where the log has to be asked: a step that opened none may have waited for others,
    and one that was tried before may not be due yet."""
    opened = [ref for one in performed for ref in one.opened]
    return tuple(opened) if all(one.opened for one in performed) and not any(ref.attempt for ref in opened) else ()


def _ends_at(look: Look) -> float:
    """When to look whether the turn's time is over, by the monotonic clock."""
    if look.run.deadline_at is None:
        return math.inf
    return time.monotonic() + max(_SHORTEST_S, look.run.deadline_at - look.now)


async def _start_open_steps(
    runtime: Runtime, run_id: str, running: dict[asyncio.Task[Performed], int], over: asyncio.Event
) -> bool:
    """Start every open step that is free; returns whether another process holds one."""
    held = False
    for ref, delay_s, live in await runtime.database(runtime.log.open_steps, run_id):
        if ref.step in running.values():
            continue
        if live:
            held = True
        else:
            running[asyncio.create_task(_later(runtime, ref, delay_s, over))] = ref.step
    return held


async def _later(runtime: Runtime, ref: StepRef, delay_s: float, over: asyncio.Event) -> Performed:
    """Perform a step when its backoff is over, or find, when the turn is, that it is no more to be done."""
    if delay_s > 0:
        await asyncio.wait({ended := asyncio.ensure_future(over.wait())}, timeout=delay_s)
        ended.cancel()
    return await perform(runtime, ref.run_id, ref.step)


async def _stop(running: dict[asyncio.Task[Performed], int]) -> None:
    for task in running:
        task.cancel()
    outcomes: list[Any] = await asyncio.gather(*running, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):  # what stops the drive is raised; this one only came on top
            log.warning("step_abandoned", error=str(outcome))
