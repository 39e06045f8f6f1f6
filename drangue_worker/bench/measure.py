"""Repetitions in turn: ours, the chain, ours, the chain. What disturbs one of a machine's minutes disturbs both."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Self

from drangue_worker.bench.counting import Counts, counting
from drangue_worker.bench.local import Inline, Local
from drangue_worker.bench.ours import Fleet, Ours
from drangue_worker.bench.profiling import let_be_watched, profiling
from drangue_worker.bench.raw import Chain, Raw
from drangue_worker.bench.stack import Stack
from drangue_worker.bench.usage import NOTHING, Meter, Usage
from drangue_worker.bench.workloads import Side, Workload

WARM = 0.1  # of a repetition's runs, before the first that counts
COUNTED_RUNS = 300  # at most: counting is slow, and the numbers are per step
SUBMITTERS = 4  # threads that submit a burst


@dataclass(frozen=True, slots=True)
class Played:
    """One side of one workload: the figure of each repetition, and what a repetition took."""

    side: Side
    figures: tuple[float, ...]
    usage: Usage  # of the repetition whose figure is nearest to the median
    peak: int  # bytes of the workers together, the most of any repetition
    runs: int
    counts: Counts | None = None
    counted_steps: int = 0

    @property
    def figure(self) -> float:
        """The median."""
        return median(self.figures)

    @property
    def per_step(self) -> dict[str, float | None]:
        """What was counted, per step; empty where nothing was."""
        return self.counts.per(self.counted_steps) if self.counts else {}

    def per_1000_runs(self, seconds: float) -> float:
        """What so many seconds of a repetition are for a thousand runs."""
        return 1000 * seconds / self.runs


@dataclass(frozen=True, slots=True)
class Measured:
    """One workload. `ours` is the better of `tried`; `raw` is None where the chain could not be played, `profile`
    seconds by stack where that was asked for."""

    workload: Workload
    ours: Played
    tried: tuple[Played, ...]
    raw: Played | None
    profile: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Ours to the chain's: of steps per second or of seconds, as the workload counts."""
        return self.ours.figure / self.raw.figure if self.raw else None

    @property
    def met(self) -> bool | None:
        """Whether the ratio is what is wanted."""
        if self.ratio is None:
            return None
        if self.workload.more_is_better:
            return self.ratio >= self.workload.target
        return self.ratio <= self.workload.target


class Bench:
    """The players on a stack; `tell` is given a line about each thing that was measured."""

    def __init__(self, stack: Stack, tell: Callable[[str], None]) -> None:
        self.stack = stack
        self.tell = tell

    def __enter__(self) -> Self:
        self._exits = ExitStack()
        self.ours = Ours(self.stack, SUBMITTERS)
        self._exits.callback(self.ours.close)
        self.raw = Raw(self.stack, SUBMITTERS)
        self._exits.callback(self.raw.close)
        self.local = Local(self.stack.folder)
        return self

    def __exit__(self, *exc: object) -> None:
        self._exits.close()

    def use(self, side: Side) -> tuple[Ours | Raw | Local, list[int]]:
        """Have one side at work and all others still; returns who plays and the workers' process ids."""
        if isinstance(side, Fleet):
            return self.ours, self.ours.use(side)
        if isinstance(side, Chain):
            return self.raw, self.raw.use(side)
        return self.local, self.stack.workers.use(())

    def measure(self, workload: Workload, repeat: int, *, counts: bool, fsyncs: bool, profile: bool) -> Measured:
        """Play a workload `repeat` times on every side, in turn; then count and profile, which disturb the time."""
        sides: list[Side] = [*workload.fleets]
        if workload.missing() is None:
            sides.append(workload.chain)
        found: list[list[tuple[float, Usage, int]]] = [[] for _ in sides]
        for side in sides:
            workload.scaled(WARM).play(self.use(side)[0])
        for _ in range(repeat):
            for place, one in enumerate(self._repetition(workload, sides)):
                found[place].append(one)
        played = [_played(side, found[place], workload.turn.runs * workload.turns) for place, side in enumerate(sides)]
        best = max if workload.more_is_better else min
        tried = tuple(one for one in played if not isinstance(one.side, Chain))
        ours = best(tried, key=lambda one: one.figure)
        raw = next((one for one in played if isinstance(one.side, Chain)), None)
        if counts and not isinstance(ours.side, Inline):  # there is no server to ask
            ours, raw = self._counted(workload, ours, fsyncs), raw and self._counted(workload, raw, fsyncs)
        seconds = self._profile(workload, ours.side) if profile else {}
        return Measured(workload, ours, tried, raw, seconds)

    def _repetition(self, workload: Workload, sides: Sequence[Side]) -> list[tuple[float, Usage, int]]:
        """One repetition of every side, in turns."""
        turns: list[list[tuple[float, Usage, int]]] = [[] for _ in sides]
        for _ in range(workload.turns):
            for place, side in enumerate(sides):
                turns[place].append(self._turn(workload.turn, side))
        found = []
        for side, its in zip(sides, turns, strict=True):
            figure = median(figure for figure, _, _ in its)
            found.append((figure, sum((used for _, used, _ in its), NOTHING), max(peak for _, _, peak in its)))
            self.tell(f"{workload.name:10}{_name(side):24}{figure:.4g} {workload.unit}")
        return found

    def _turn(self, turn: Workload, side: Side) -> tuple[float, Usage, int]:
        player, pids = self.use(side)
        meter = Meter(tuple(pids), self.stack.servers.postgres_pid or 0, self.stack.servers.redis_pid or 0)
        meter.forget_peak()
        before = meter.read()
        figure = turn.play(player)
        return figure, meter.read() - before, meter.peak()

    def _counted(self, workload: Workload, played: Played, fsyncs: bool) -> Played:
        """The same with counts, of a repetition of its own."""
        side = replace(played.side, quiet=True) if isinstance(played.side, Fleet) else played.side
        workload = replace(workload, runs=min(workload.runs, COUNTED_RUNS))
        player, _ = self.use(side)
        workload.scaled(WARM).play(player)
        self.tell(f"{workload.name:10}{_name(side):24}counting")
        where = (self.stack.database_url, self.stack.redis_url)
        if isinstance(side, Chain):
            where = (self.stack.raw_database_url, self.stack.raw_redis_url)
        with counting(*where, fsyncs=fsyncs, without=["bench"]) as counted:
            workload.play(player)
        return replace(played, counts=counted.counts, counted_steps=workload.runs * workload.shape.steps)

    def _profile(self, workload: Workload, side: Side) -> dict[str, float]:
        """Seconds by stack, of a repetition of its own in processes that let themselves be watched."""
        if isinstance(side, Fleet):
            side = replace(side, profiled=True)
        player, pids = self.use(side)
        if isinstance(side, Inline):
            let_be_watched()
            pids = [os.getpid()]
        workload.scaled(WARM).play(player)
        self.tell(f"{workload.name:10}{_name(side):24}profiling")
        with profiling(pids, self.stack.folder) as seconds:
            workload.play(player)
        return seconds


def _name(side: Side) -> str:
    if isinstance(side, Inline):
        return "ours, inline"
    who = "ours" if isinstance(side, Fleet) else "raw"
    return f"{who}, {side.processes} worker{'s' if side.processes > 1 else ''}"


def _played(side: Any, found: list[tuple[float, Usage, int]], runs: int) -> Played:
    figures = tuple(figure for figure, _, _ in found)
    typical = min(found, key=lambda one: abs(one[0] - median(figures)))
    return Played(side, figures, typical[1], max(peak for _, _, peak in found), runs)
