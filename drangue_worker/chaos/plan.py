"""What the runs of a soak are to do, from its seed alone: what the model decides, and what each call leaves behind.

The invariant: seed, number and slowness give the same run for ever, so what must have happened is known without asking
the log. A call's key is worked out by the rule that users are promised: steps are numbered in the order of decisions
and their calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

AGENT = "mixed"
IRREVERSIBLE = frozenset({"wire", "send", "transfer"})
ASSISTED = "refund"

# How often each is asked for: mostly what can be repeated, since what cannot takes its turn alone.
_WEIGHTS = {"look": 4, "fetch": 4, "flaky": 2, "wire": 1.5, "send": 1, "transfer": 1, ASSISTED: 1}
_GRANTED = 0.8  # of the calls a person is asked about
_FAULTY = 0.15  # of the model calls
_SLOW = 0.03  # of the model calls and of the calls of tools
_CANCELLED = 0.15  # of the runs


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One call of a tool. `granted` is False where the person who is asked says no: then nothing may happen."""

    key: str
    tool: str
    arguments: dict[str, Any]
    granted: bool = True

    @property
    def run_id(self) -> str:
        return self.key.rpartition(":")[0]

    @property
    def step(self) -> int:
        return int(self.key.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class PlannedDecision:
    """One model call: it is answered after `delay_s` seconds, its first askers get the `faults` in its place."""

    key: str
    calls: tuple[PlannedCall, ...]
    faults: tuple[str, ...]
    delay_s: float

    @property
    def step(self) -> int:
        return int(self.key.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run. Its last decision has no calls: it is the answer.

    Where `cancel_at` is not None, somebody cancels the run as soon as its log has got to that place.
    """

    run_id: str
    decisions: tuple[PlannedDecision, ...]
    cancel_at: int | None = None

    @property
    def input(self) -> str:
        return f"Do {self.run_id}."

    @property
    def calls(self) -> Iterator[PlannedCall]:
        """Every call, in step order."""
        for decision in self.decisions:
            yield from decision.calls


def plan(seed: int, runs: int, slow_s: float) -> tuple[PlannedRun, ...]:
    """The runs of a soak. `slow_s` is how many seconds the slowest calls take: more than a lease, to be telling."""
    return tuple(_run(seed, number, slow_s) for number in range(1, runs + 1))


def _run(seed: int, number: int, slow_s: float) -> PlannedRun:
    dice = Random(f"{seed}:{number}")
    run_id = f"chaos-{seed}-{number:04}"
    decisions: list[PlannedDecision] = []
    step = 1
    widths = [dice.choices((1, 2, 3, 4), (3, 3, 2, 1))[0] for _ in range(dice.randint(1, 3))]
    for width in (*widths, 0):
        calls = tuple(_call(dice, f"{run_id}:{step + index}", slow_s) for index in range(1, width + 1))
        faulty = dice.random() < _FAULTY
        faults = tuple(dice.choices(("429", "500", "hang_up"), k=dice.randint(1, 2))) if faulty else ()
        decisions.append(PlannedDecision(f"{run_id}:{step}", calls, faults, _seconds(dice, slow_s)))
        step += width + 1
    return PlannedRun(run_id, tuple(decisions), _cancel_at(Random(f"{seed}:{number}:cancel"), step - 1))


def _cancel_at(dice: Random, steps: int) -> int | None:
    """Somewhere in the middle: a run that is left alone writes at least two events more than it has steps."""
    return dice.randint(0, steps) if dice.random() < _CANCELLED else None


def _call(dice: Random, key: str, slow_s: float) -> PlannedCall:
    tool = dice.choices(tuple(_WEIGHTS), tuple(_WEIGHTS.values()))[0]
    # The subject is what the call is about in the world, whatever key it comes under: two keys are two effects.
    arguments: dict[str, Any] = {"subject": f"{tool} {key}", "seconds": _seconds(dice, slow_s)}
    if tool == "flaky":
        arguments["trips"] = dice.choices((0, 1, 2), (2, 2, 1))[0]
    granted = tool != ASSISTED or dice.random() < _GRANTED
    return PlannedCall(key, tool, arguments, granted)


def _seconds(dice: Random, slow_s: float) -> float:
    return round(slow_s if dice.random() < _SLOW else dice.uniform(0.05, 0.6), 2)
