"""What the monkey will do, and when: a timetable made from the seed before anything starts.

The invariant: seed and pace give the same timetable. Each kind of break has dice of its own, so that changing one pace
moves no other break. Nothing is broken here: `monkey` does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

Kind = Literal[
    "kill_worker",  # SIGKILL of a worker's main process
    "kill_child",  # SIGKILL of a process of a tool pool
    "stall",  # SIGSTOP past the lease, then SIGCONT
    "terminate",  # SIGTERM
    "disconnect",  # pg_terminate_backend of every connection
    "restart_postgres",  # in order
    "crash_postgres",  # at once, as after a crash
    "flush_redis",  # FLUSHALL
    "restart_redis",
    "remove_redis",  # away for some seconds, in which runs are submitted
    "double",  # every waiting message is there twice
    "shuffle",  # every waiting message is kept for some seconds and put back in another order
]
KINDS: tuple[Kind, ...] = get_args(Kind)
KILLS: tuple[Kind, ...] = ("kill_worker", "kill_child")
POSTGRES: tuple[Kind, ...] = ("crash_postgres", "restart_postgres")
OTHERS: tuple[Kind, ...] = ("stall", "terminate", "disconnect", "restart_redis", "remove_redis", "double", "shuffle")


@dataclass(frozen=True, slots=True)
class Break:
    """One break, `at_s` seconds after the first submission. `draw` in [0, 1) chooses whom, and for how long."""

    at_s: float
    kind: Kind
    draw: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is broken: every so many seconds, for `seconds`; Postgres restarts are spread over that time."""

    seconds: float
    kill_every_s: float
    flush_every_s: float
    other_every_s: float
    postgres_restarts: int


def timetable(seed: int, pace: Pace) -> tuple[Break, ...]:
    """The breaks of a soak, in order."""
    found = [
        *_stream(seed, "kills", KILLS, pace.kill_every_s, pace.seconds),
        *_stream(seed, "flushes", ("flush_redis",), pace.flush_every_s, pace.seconds),
        *_rounds(seed, OTHERS, pace.other_every_s, pace.seconds),
    ]
    dice = Random(f"{seed}:postgres")
    for number in range(pace.postgres_restarts):
        share = pace.seconds / pace.postgres_restarts
        at_s = share * (number + dice.uniform(0.3, 0.7))
        found.append(Break(at_s, POSTGRES[number % len(POSTGRES)], dice.random()))
    return tuple(sorted(found, key=lambda one: one.at_s))


def _stream(seed: int, name: str, kinds: tuple[Kind, ...], every_s: float, seconds: float) -> list[Break]:
    dice = Random(f"{seed}:{name}")
    times = range(1, int(seconds / every_s) + 1)
    return [Break(every_s * (time - dice.uniform(0, 0.5)), dice.choice(kinds), dice.random()) for time in times]


def _rounds(seed: int, kinds: tuple[Kind, ...], every_s: float, seconds: float) -> list[Break]:
    """Each kind once per round, in an order of the round's own: chance alone would leave one out of a short soak."""
    dice = Random(f"{seed}:others")
    found: list[Break] = []
    order: list[Kind] = []
    for time in range(1, int(seconds / every_s) + 1):
        order = order or dice.sample(kinds, len(kinds))
        found.append(Break(every_s * (time - dice.uniform(0, 0.5)), order.pop(), dice.random()))
    return found
