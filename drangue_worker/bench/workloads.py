"""The workloads that are a pair: what our runs do, and the bare chain that commits as many rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from drangue_worker.bench.local import Inline, Local
from drangue_worker.bench.ours import Fleet, Ours
from drangue_worker.bench.raw import Chain, Raw, has_gevent
from drangue_worker.bench.shapes import Shape

Way = Literal["burst", "crowd", "one_by_one", "makespan"]
Side = Fleet | Inline | Chain

THREADS = Chain("raw", 2)
ONE = Chain("raw", 1)
GREEN = Chain("green", 1, "gevent", 1100)
PLAIN, PLAIN_TWO = Fleet(), Fleet(processes=2)
SLOW, SLOW_TWO = Fleet("slow", concurrency=1100), Fleet("slow", 2, concurrency=1100)
THREE = Shape()


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of the table.

    `fleets` are tried one after the other and the better one counts. `runs` is how many a repetition takes at scale 1.
    `target` is the ratio to the chain that is wanted: of steps per second at least, of seconds at most. A repetition
    has so many `turns`, in which the sides alternate: a machine's mood lasts for seconds, and so does a repetition.
    """

    name: str
    about: str
    way: Way
    shape: Shape
    runs: int
    fleets: tuple[Fleet | Inline, ...]
    chain: Chain
    target: float
    turns: int = 1

    @property
    def more_is_better(self) -> bool:
        """Whether the figure is steps per second; else it is seconds."""
        return self.way in ("burst", "crowd")

    @property
    def unit(self) -> str:
        """What the figure counts."""
        return "steps/s" if self.more_is_better else "s"

    def scaled(self, scale: float) -> Workload:
        """The same with fewer runs, at least one."""
        runs = max(1, round(self.runs * scale))
        return replace(self, runs=runs, turns=min(self.turns, runs))

    @property
    def turn(self) -> Workload:
        """What a side plays in one turn."""
        return replace(self, runs=self.runs // self.turns, turns=1)

    def play(self, side: Ours | Raw | Local) -> float:
        """One repetition; returns the figure."""
        seconds: float = getattr(side, self.way)(self.shape, self.runs)
        return self.runs * self.shape.steps / seconds if self.more_is_better else seconds

    def missing(self) -> str | None:
        """Why the chain cannot be played here, or None."""
        if self.chain.pool == "gevent" and not has_gevent():
            return "gevent is not installed (extra `bench`)"
        return None


WORKLOADS = {
    one.name: one
    for one in (
        Workload(
            "w3", "a burst of three-step runs, sent together", "burst", THREE, 1200, (PLAIN, PLAIN_TWO), THREADS, 1.7
        ),
        Workload(
            "w3-each", "the same, each run submitted by itself", "crowd", THREE, 1200, (PLAIN, PLAIN_TWO), THREADS, 1.7
        ),
        Workload(
            "w3-events",
            "the same with the task events that Flower shows",
            "burst",
            THREE,
            1200,
            (Fleet("events", 1, task_events=True), Fleet("events", 2, task_events=True)),
            THREADS,
            1.2,
        ),
        Workload("w3-seq", "three steps, one run at a time, p50", "one_by_one", THREE, 100, (PLAIN,), ONE, 1.3, 5),
        Workload(
            "slow", "the model takes 1 s", "burst", Shape(think_s=1.0), 1000, (SLOW, SLOW_TWO), GREEN, 2.3
        ),
        Workload("w50", "49 steps, results of 1 KiB", "one_by_one", Shape(24, size=1024), 5, (PLAIN,), ONE, 1.15, 5),
        Workload("w200", "199 steps, results of 1 KiB", "one_by_one", Shape(99, size=1024), 2, (PLAIN,), ONE, 1.15, 2),
        Workload(
            "fanout", "20 tools of 0.2 s at once, p50", "makespan", Shape(calls=20, tool_s=0.2), 10, (PLAIN,),
            Chain("fan", 1, concurrency=100), 1.0, 5,
        ),
        Workload("inline", "49 steps, one process, a SQLite file", "burst", Shape(24), 60, (Inline(),), THREADS, 1.4),
        Workload("inline-w3", "three steps, likewise", "burst", THREE, 600, (Inline(),), THREADS, 1.0),
    )
}  # fmt: skip
