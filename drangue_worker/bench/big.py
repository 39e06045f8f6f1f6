"""A run of 100,000 events beside one of 1,000: what a step of it costs must not depend on how long it has been.

The long history is written through the log itself, as moves of facts that a real short run has left; then workers
perform further steps of it. What is timed begins with a decision that asks for tools and ends with the last result, so
it is claims and settlements alone: a model step must read its conversation at least once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from drangue_client.errors import DrangueError
from drangue_client.events import Event, Fact
from drangue_client.folding import fold
from drangue_client.run import Run
from drangue_client.store.values import Move, NewRun
from drangue_client.wire.queue import Sender
from drangue_worker.bench.alone import Alone, Line
from drangue_worker.bench.measure import Bench
from drangue_worker.bench.ours import Fleet
from drangue_worker.bench.shapes import AGENT, Shape

SMALL, BIG = 1_000, 100_000
PHASES = 5  # further decisions, each asking for TOOLS tools
TOOLS = 20
CHUNK = 2_000  # events in one move
LONGEST_S = 600.0
MOST = 1.1  # times the small run's


def measure_big(bench: Bench, scale: float, repeat: int) -> Alone:
    """Seconds per tool step at either size, medians over `repeat` runs of each, in turn."""
    big = max(2 * SMALL, round(BIG * scale))
    bench.use(Fleet())
    seed = _seed(bench)
    _seconds_per_step(bench, seed, SMALL, "big-warm")
    found: dict[int, list[float]] = {SMALL: [], big: []}
    for number in range(repeat):
        for size in found:
            seconds = _seconds_per_step(bench, seed, size, f"big-{size}-{number}")
            bench.tell(f"{'big':10}{size:<8} events          {1000 * seconds:.3g} ms per step")
            found[size].append(seconds)
    small, large = median(found[SMALL]), median(found[big])
    return Alone(
        "big",
        (
            Line("big_small_ms", f"tool step of a run of {SMALL:,} events", 1000 * small, "ms"),
            Line("big_ms", f"tool step of a run of {big:,} events", 1000 * large, "ms"),
            Line("big_ratio", "the second by the first", large / small, "", MOST),
        ),
    )


def _seed(bench: Bench) -> list[Event]:
    """The log of a real run of two rounds."""
    run_id = "big-seed"
    bench.ours.client.submit(AGENT, Shape(rounds=2).to_input(), run_id=run_id)
    result = bench.ours.client.result(run_id, timeout=LONGEST_S)
    if result.status != "completed":
        raise DrangueError(f"the run that the long ones are made from ended as {result.status} ({result.reason})")
    return result.events


def _seconds_per_step(bench: Bench, seed: Sequence[Event], size: int, run_id: str) -> float:
    """Write a run of `size` events, have workers go on with it, and see how long its tool steps take."""
    log = bench.ours.client.log
    first = next(place for place, event in enumerate(seed) if event.type == "model_decision")
    rounds = (size - first) // 2
    shape = Shape(rounds=rounds + PHASES, calls=TOOLS)
    new = NewRun(run_id, AGENT, shape.to_input(), wake_in_s=LONGEST_S)
    log.submit([new])
    opening = [_told(event, shape) for event in seed[:first]]
    _write(log, run_id, [*opening, *_history(seed, rounds)])
    Sender(bench.ours.settings_of(Fleet())).coordinate([log.look(run_id).row])
    bench.ours.await_end(run_id, LONGEST_S)
    spans = bench.ours.connection.execute(
        "select extract(epoch from max(recorded_at) filter (where type = 'tool_result')"
        " - min(recorded_at) filter (where type = 'model_decision'))::float8 from ("
        "  select recorded_at, type, count(*) filter (where type = 'model_decision') over (order by seq) as decision"
        "  from events where run_id = %s and seq >= %s"
        ") as tail group by decision having count(*) > 2",
        (run_id, len(opening) + 2 * rounds),
    ).fetchall()
    if len(spans) != PHASES:
        raise DrangueError(f"the run {run_id} went through {len(spans)} decisions that ask for tools, not {PHASES}")
    return median(float(seconds) for (seconds,) in spans) / TOOLS


def _told(event: Event, shape: Shape) -> Fact:
    """An opening event, of a run with another input."""
    payload = {**event.payload, "input": shape.to_input()} if "input" in event.payload else event.payload
    return Fact(event.type, payload, event.step)


def _history(seed: Sequence[Event], rounds: int) -> Iterator[Fact]:
    """So many rounds of a decision and its result, like the seed's first, each with steps and ids of its own."""
    decision = next(event for event in seed if event.type == "model_decision")
    result = next(event for event in seed if event.type == "tool_result")
    for number in range(rounds):
        call_id = f"call_{number}_0"
        calls = [{**call, "id": call_id} for call in decision.payload["tool_calls"]]
        yield Fact("model_decision", {**decision.payload, "tool_calls": calls}, 2 * number + 1)
        yield Fact("tool_result", _with_id(result.payload, call_id), 2 * number + 2)


def _with_id(payload: dict[str, Any], call_id: str) -> dict[str, Any]:
    return {name: call_id if name == "call_id" else value for name, value in payload.items()}


def _write(log: Any, run_id: str, facts: Sequence[Fact]) -> None:
    run = Run()
    for begin in range(0, len(facts), CHUNK):
        chunk = tuple(facts[begin : begin + CHUNK])
        head = run.seq
        run = fold((fact.at(seq) for seq, fact in enumerate(chunk, start=head + 1)), onto=run)
        # Nobody is to move it on before it is whole.
        moved = log.settle([Move(run_id, head, replace(run, deadline_at=None), chunk, wake_in_s=LONGEST_S)])[0]
        if moved.verdict != "ok":
            raise DrangueError(f"the run {run_id} was changed by somebody else while it was written")
