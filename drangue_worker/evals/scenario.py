"""Scenarios: an input, how often to run it, and the checks its runs must pass.

A scenario that exists can be evaluated: what cannot is refused where it is written. Nothing is run or graded here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drangue_client.budget import Budget
from drangue_client.result import Result

# What a profile says beside its rates; a dimension of such a name would overwrite it.
PROFILE_KEYS = ("avg_steps", "avg_tokens", "stderr", "noise", "stdev_steps", "stdev_tokens")


@dataclass(frozen=True, slots=True)
class Check:
    """One question put to the result of a run: `fn(result)` is true, or awaits to true, where the run passes.

    `dimension` is what it measures. A gate knows `correctness`, `safety` and `efficiency`; others are only reported.
    `fn` runs on the event loop: what takes long should be awaited. An `fn` that raises counts as a check that failed.
    Raises TypeError or ValueError naming the argument that cannot be used.
    """

    dimension: str
    name: str
    fn: Callable[[Result], object]

    def __post_init__(self) -> None:
        checked_text("dimension", self.dimension)
        checked_text("name", self.name)
        if self.dimension in PROFILE_KEYS:
            raise ValueError(
                f"dimension is {self.dimension!r}, which a profile uses for something else. Choose another."
            )
        if not callable(self.fn):
            raise TypeError(f"fn is {self.fn!r}; it must be a function of a result.")


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
        checked_text("name", self.name)
        if not isinstance(self.input, str):
            raise TypeError(f"input is {type(self.input).__name__}; it must be text. Put structured input into JSON.")
        if isinstance(self.checks, Check | str) or not isinstance(self.checks, Sequence):
            raise TypeError(f"checks is {self.checks!r}; it must be a list of checks.")
        for check in self.checks:
            if not isinstance(check, Check):
                raise TypeError(
                    f"checks holds {check!r}, which is no Check. Wrap a function: Check(dimension, name, fn)."
                )
        checked_count("runs", self.runs, least=1)
        object.__setattr__(self, "checks", tuple(self.checks))


def scenario_from_result(result: Result, name: str, checks: Sequence[Check] | None = None) -> Scenario:
    """A scenario of one run with the first input of a recorded run. ValueError for a log that has not begun."""
    started = next((event for event in result.events if event.type == "run_started"), None)
    if started is None:
        raise ValueError(f"result is of run {result.run_id!r}, which has not started: its log holds no input yet.")
    return Scenario(name, started.payload["input"], checks or ())


def tools_called(result: Result) -> list[str]:
    """The names of the tools the model asked for, in order and with repeats, whether or not they were run.

    The call that delivers a structured answer is one of them: the log records it like any other.
    """
    return [
        call["name"]
        for event in result.events
        if event.type == "model_decision"
        for call in event.payload["tool_calls"]
    ]


def tokens_used(result: Result) -> int:
    """Input, output and cached tokens of all model calls: counted as a budget counts them, so that limits compare."""
    return Budget().tokens(result.events)


def checked_text(argument: str, value: object) -> str:
    """`value`, if it is text that says something; else TypeError or ValueError naming the argument."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} is {value!r}; it must be text.")
    if not value.strip():
        raise ValueError(f"{argument} is {value!r}; it must not be blank.")
    return value


def checked_count(argument: str, value: object, *, least: int) -> int:
    """`value`, if it is a whole number from `least` on; else TypeError or ValueError naming the argument."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{argument} is {value!r}; it must be a whole number.")
    if value < least:
        raise ValueError(f"{argument} is {value!r}; it must be at least {least}.")
    return value
