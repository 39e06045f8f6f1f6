"""`crash_everywhere`: what a run does to the world when its process dies, tried at every point where that could matter.

A run is made once without a death, and every call is noted by which it writes to its store. Then it is made anew for
each of them, twice: dying before the call takes effect, and after. The dead process reaches the store no more, so that
it can neither record nor give back anything; its claims lapse at once; a fresh agent on the same store goes on until
the run has ended. What the outside world saw of each run is counted.

How such a death differs from a real one: a tool's code is not cut in the middle. What runs in a thread comes to its
end, and what awaits is cancelled, so that its `finally` runs. A tool that does two things, one after the other, is not
killed between them. It is one process with one death per run; fleets are not played.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, cast

from drangue_client import checks
from drangue_client.outcomes import failed_as
from drangue_client.result import Result
from drangue_client.store import InMemoryStore
from drangue_client.store.port import Log
from drangue_worker.agent import Agent
from drangue_worker.testing.fake import FakeModel
from drangue_worker.testing.mortal import Call, MortalLog, ProcessDied, say_unless_dead

TRIES = 3  # runs that may come to a window
_EVERY_RUN = "It must show what each run does, beside what the runs before did. Clear nothing, and leave nothing out."
Approve = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class DoubledEffect:
    """An `effect` that the world saw `times` times in one run, more often than without a death in that `window`."""

    effect: Hashable
    times: int
    window: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run that did not complete after a death in this `window`: its `status`, and the `error` that was raised."""

    window: str
    status: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What came of it. `windows` are the points at which a process died, in words and in order, `missed` those that no
    run came to again (siblings race); `doubled` and `unfinished` are what must not be. `untried` are the tool calls of
    which no process died when they were done and not yet recorded: what a death does to them is not known."""

    windows: tuple[str, ...]
    doubled: tuple[DoubledEffect, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()
    missed: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()

    def assert_clean(self) -> None:
        """Raise AssertionError, with what happened when, unless no effect was doubled, every run completed, and every
        tool call was tried. Other windows may be missed."""
        if self.doubled or self.unfinished or self.untried:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        count = len(self.windows)
        lines = [f"a process died in {count} window{'s' if count != 1 else ''}"]
        lines += [f"  {one.effect!r} happened {one.times} times: {self._when(one)}" for one in self.doubled]
        for run in self.unfinished:
            why = f" ({run.error})" if run.error else ""
            lines.append(f"  the run did not complete, it is {run.status}{why}: {self._when(run)}")
        for call in self.untried:
            lines.append(f"  what a death does to {call} is not known: none came between its end and its recording")
        if len(lines) == 1:
            lines.append("  no effect was doubled, every run completed")
        lines += [f"  not tried, since no run came to it again: {window}" for window in self.missed]
        return "\n".join(lines)

    def _when(self, one: DoubledEffect | Unfinished) -> str:
        return f"it {'died' if one.window in self.windows else 'did not die'} {one.window}"


def crash_everywhere(
    make_agent: Callable[[Log], Agent],
    input: str,
    *,
    effects: Callable[[], Iterable[Hashable]],
    approve: bool | Approve | None = None,
    store: Log | None = None,
    lives: int = 3,
    timeout_s: float = 60.0,
) -> CrashReport:
    """Run an agent on `input`, let its process die in every window, resume it, and report what happened twice.

    `make_agent(store)` gives a fresh agent on the store it is handed, as a new process would make it; its model must
    answer by what it is shown, as `FakeModel(..., by_turn=True)` and `Provider` do. `effects()` gives a list of all the
    outside world has ever seen, each effect as often as it happened: values that are equal where the world would call
    them the same (an idempotency key belongs into it if the world looks at it). An effect that also happens more than
    once without a death may happen as often with one.

    `approve` decides about calls that wait for a person: True, False, or a function of the request {step, call_id,
    tool, arguments, ...}. `store` is where the runs are recorded, in this process's memory if none is given; each has
    an id of its own. A run is gone on with by up to `lives` processes in all, each for at most `timeout_s` seconds. A
    window that a run does not come to again is tried in two more runs.

    Raises what the run raises without a death, ValueError if nothing can be learned from it (it waits for a person, or
    `effects()` shows nothing, less than before, or of later runs less than of the first), TypeError if `effects()`
    gives a set or a dict, RuntimeError where an event loop is running.
    """
    checks.function("make_agent", make_agent, "a function that is given a store and gives an agent")
    checks.text("input", input)
    checks.function("effects", effects, "a function that gives what the outside world saw")
    if approve is not None and not isinstance(approve, bool):
        checks.function("approve", approve, "True, False, None or a function of the request")
    checks.has("store", store, "settle", "a store", optional=True)
    checks.count("lives", lives, least=2)
    checks.seconds("timeout_s", timeout_s)
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "crash_everywhere is called from a running event loop. "
            "Use `await asyncio.to_thread(crash_everywhere, ...)` there."
        )
    own = InMemoryStore() if store is None else None
    try:
        return _Stage(make_agent, input, effects, approve, own or cast(Log, store), lives, timeout_s).report()
    finally:
        if own is not None:
            own.close()


@dataclass(frozen=True, slots=True)
class _Trial:
    """One run and what came of it."""

    first: MortalLog
    effects: Counter[Hashable]
    run_id: str
    status: str
    error: Exception | None
    outcomes: Counter[tuple[str, str | None]]  # of its tool calls: (tool, as what it failed)

    def went_as(self, usual: _Trial) -> bool:
        """Whether as much was to be done: it completed, and no call failed otherwise (of unknown outcome, say)."""
        return (self.status, self.outcomes) == (usual.status, usual.outcomes)


@dataclass
class _Stage:
    """Where runs are played."""

    make_agent: Callable[[Log], Agent]
    input: str
    effects: Callable[[], Iterable[Hashable]]
    approve: bool | Approve | None
    store: Log
    lives: int
    timeout_s: float
    run_ids: str = field(default_factory=lambda: f"crash-{uuid.uuid4().hex[:8]}")
    runs: int = 0
    last: Counter[Hashable] = field(default_factory=Counter)

    def report(self) -> CrashReport:
        usual = self._trial(None)
        if usual.error is not None:
            usual.error.add_note("raised by the run that crash_everywhere made without a death")
            raise usual.error
        if usual.status != "completed":
            raise ValueError(f"the run is {usual.status} without a death. Pass approve=True if it waits for a person.")
        if not usual.effects:
            raise ValueError("effects() shows nothing new after a run without a death. Let it give what the tools did.")
        expected = Counter({_same(effect, usual.run_id): times for effect, times in usual.effects.items()})
        windows: list[str] = []
        missed: list[str] = []
        doubled: list[DoubledEffect] = []
        unfinished: list[Unfinished] = []
        shown: list[int] = []
        for call, after in ((call, after) for call in usual.first.calls for after in (False, True)):
            window = usual.first.window(call, after=after)
            trial = self._death(call, after=after)
            (windows if trial.first.dead else missed).append(window)
            for effect, times in trial.effects.items():
                if times > max(1, expected[_same(effect, trial.run_id)]):
                    doubled.append(DoubledEffect(effect, times, window))
            if trial.status != "completed":
                unfinished.append(Unfinished(window, trial.status, repr(trial.error) if trial.error else None))
            if trial.went_as(usual):
                shown.append(trial.effects.total())
                if not trial.effects:
                    shows = f"effects() shows nothing new of the run that died {window}"
                    raise ValueError(f"{shows}, although its calls ended as they do without a death. {_EVERY_RUN}")
        if shown and max(shown) < usual.effects.total():
            raise ValueError(
                f"effects() shows {usual.effects.total()} effects of the run without a death and never more than "
                f"{max(shown)} of another. {_EVERY_RUN}"
            )
        ends = usual.first.ends().items()
        untried = [usual.first.names[step] for step, call in ends if usual.first.window(call, after=False) in missed]
        return CrashReport(tuple(windows), tuple(doubled), tuple(unfinished), tuple(missed), tuple(untried))

    def _death(self, call: Call, *, after: bool) -> _Trial:
        trial = self._trial(call, after=after)
        for _ in range(TRIES - 1):
            if not trial.first.dead:
                trial = self._trial(call, after=after)
        return trial

    def _trial(self, at: Call | None, *, after: bool = False) -> _Trial:
        self.runs += 1
        run_id, before = f"{self.run_ids}-{self.runs}", self._seen()
        first = MortalLog(self.store, at, after=after)
        error = self._live(first, run_id)
        for _ in range(self.lives - 1 if first.dead else 0):
            error = self._live(MortalLog(self.store), run_id)
            if self._result(run_id).status == "completed":
                break
        result = self._result(run_id)
        ended = [event.payload for event in result.events if event.type == "tool_result"]
        outcomes = Counter((one["name"], failed_as(one["content"])) for one in ended)
        return _Trial(first, self._seen() - before, run_id, result.status, error, outcomes)

    def _result(self, run_id: str) -> Result:
        return Result.from_events(run_id, self.store.events(run_id))

    def _seen(self) -> Counter[Hashable]:
        given = self.effects()
        if isinstance(given, Set | Mapping):
            shown = f"effects() gives {checks.shown(given)}; it must give a list of everything seen."
            raise TypeError(f"{shown} A set or a dict shows once what happened twice.")
        values = checks.many("effects", given, "a function that gives a list")
        try:
            seen = Counter(values)
        except TypeError as error:
            message = "effects() gives something that cannot be compared by value. Give texts or tuples."
            raise TypeError(message) from error
        for effect in self.last - seen:
            raise ValueError(f"effects() no longer shows {checks.shown(effect)}, which it has shown. {_EVERY_RUN}")
        self.last = seen
        return seen

    def _live(self, log: MortalLog, run_id: str) -> Exception | None:
        """One process, until it has no more to do or dies; returns what it raised."""
        others = set(threading.enumerate())
        try:
            asyncio.run(self._work(log, run_id))
        except ProcessDied:
            return None
        except Exception as error:
            return error
        finally:
            for thread in set(threading.enumerate()) - others:
                if thread.name.startswith("tool-"):  # it comes to its end, as the last thing this process does
                    thread.join(self.timeout_s)
            log.bury()
        return None

    async def _work(self, log: MortalLog, run_id: str) -> None:
        asyncio.get_running_loop().set_exception_handler(say_unless_dead)
        agent = self._agent(log)
        async with agent, asyncio.timeout(self.timeout_s):
            result = await agent.run(self.input, run_id=run_id)
            while result.status == "paused" and self.approve is not None:
                for request in result.pending_approvals:
                    granted = self.approve if isinstance(self.approve, bool) else self.approve(request)
                    await (agent.approve if granted else agent.reject)(run_id, request["call_id"])
                result = await agent.resume(run_id)

    def _agent(self, log: MortalLog) -> Agent:
        agent = self.make_agent(cast(Log, log))
        checks.kind("make_agent", agent, Agent, "a function that gives an Agent")
        if agent.store is not cast(Log, log):
            raise ValueError("make_agent must give an agent on the store it is handed: Agent(..., store=store).")
        for model in getattr(agent.router, "models", ()):
            if isinstance(model, FakeModel) and not model.by_turn:
                raise ValueError(
                    "make_agent gives a FakeModel that counts its calls, so a fresh one would begin again. "
                    "Make it with FakeModel(..., by_turn=True)."
                )
        return agent


def _same(effect: Hashable, run_id: str) -> Hashable:
    """An effect as every run has it: without the run's id in its texts."""
    if isinstance(effect, str):
        return effect.replace(run_id, "{run_id}")
    return tuple(_same(one, run_id) for one in effect) if isinstance(effect, tuple) else effect
