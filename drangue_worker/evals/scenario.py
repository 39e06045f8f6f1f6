"""Scenarios: an input, how often to run it, and the checks its runs must pass.

A scenario that exists can be evaluated: what cannot is refused where it is written. Nothing is run or graded here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drangue_client.budget import Spent
from drangue_client.checks import count, function, kind, many, shown, text
from drangue_client.result import Result

# What a profile says beside its rates; a dimension of such a name would overwrite it.
PROFILE_KEYS = ("avg_steps", "avg_tokens", "stderr", "noise", "stdev_steps", "stdev_tokens")


@dataclass(frozen=True, slots=True)
class Check:
    """One question put to the result of a run: `fn(result)` is true, or awaits to true, where the run passes.

    `dimension` is what it measures. A gate knows `correctness`, `safety` and `efficiency`; others are only reported.
    An `fn` that is not async runs in a thread of its own. One that raises AssertionError says no; one that raises
    anything else, or cancels itself, passes nothing either and measures nothing: let it return False for an output that
    it cannot read. Raises TypeError or ValueError naming the argument that cannot be used.
    """

    dimension: str
    name: str
    fn: Callable[[Result], object]

    def __post_init__(self) -> None:
        text("dimension", self.dimension, blank=False)
        text("name", self.name, blank=False)
        if self.dimension in PROFILE_KEYS:
            raise ValueError(
                f"dimension is {self.dimension!r}, which a profile uses for something else. Choose another."
            )
        function("fn", self.fn, "a function of a result")


@dataclass(frozen=True, slots=True)
class Scenario:
    """An `input` that is run `runs` times, each run graded by all `checks`; without any, only its use is measured.

    `name` becomes part of the run ids, so it must be the only one of its kind in an evaluation. Raises TypeError or
    ValueError naming the argument that cannot be used.
    """

    name: str
    input: str
    checks: Sequence[Check] = ()
    runs: int = 1

    def __post_init__(self) -> None:
        text("name", self.name, blank=False)
        text("input", self.input, then="Put structured input into JSON.", hidden=True)
        found = many("checks", self.checks, "a list of checks")
        for check in found:
            if not isinstance(check, Check):
                raise TypeError(
                    f"checks holds {shown(check)}, which is no Check. Wrap a function: Check(dimension, name, fn)."
                )
        count("runs", self.runs, least=1)
        object.__setattr__(self, "checks", tuple(found))


def scenario_from_result(result: Result, name: str, checks: Sequence[Check] | None = None) -> Scenario:
    """A scenario of one run with the first input of a recorded run. ValueError for a log that has not begun."""
    kind("result", result, Result, "the Result of a run")
    started = next((event for event in result.events if event.type == "run_started"), None)
    if started is None:
        raise ValueError(f"result is of run {result.run_id!r}, which has not started: its log holds no input yet.")
    return Scenario(name, started.payload["input"], () if checks is None else checks)


def tools_called(result: Result) -> list[str]:
    """The names of the tools the model asked for, in order and with repeats, whether or not they were run.

    The call that delivers a structured answer is one of them: the log records it like any other.
    """
    return [
        call["name"]
        for event in kind("result", result, Result, "the Result of a run").events
        if event.type == "model_decision"
        for call in event.payload["tool_calls"]
    ]


def tokens_used(result: Result) -> int:
    """Input, output and cached tokens of all model calls that answered. What a hard budget sets aside for answers that
    never came is no use that anybody made, and not counted."""
    total = Spent()
    for event in result.events:
        if event.type == "model_decision":
            total = total.plus(event.payload.get("usage"), None, None)
    return total.tokens
