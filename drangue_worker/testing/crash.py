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
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from drangue_client import checks
from drangue_client.result import Result
from drangue_client.store import InMemoryStore
from drangue_client.store.port import Log
from drangue_worker.agent import Agent
from drangue_worker.testing.fake import FakeModel
from drangue_worker.testing.mortal import Call, MortalLog, ProcessDied

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
    """What came of it. `windows` are the points at which a process died, in words and in order, `missed` those that its
    run did not come to again (siblings race); `doubled` and `unfinished` are what must not be."""

    windows: tuple[str, ...]
    doubled: tuple[DoubledEffect, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()
    missed: tuple[str, ...] = ()

    def assert_clean(self) -> None:
        """Raise AssertionError, with what happened when, unless no effect was doubled and every run completed."""
        if self.doubled or self.unfinished:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        lines = [f"a process died in {len(self.windows)} windows"]
        lines += [f"  {one.effect!r} happened {one.times} times: it died {one.window}" for one in self.doubled]
        for run in self.unfinished:
            why = f" ({run.error})" if run.error else ""
            lines.append(f"  the run did not complete, it is {run.status}{why}: it died {run.window}")
        return "\n".join(lines if len(lines) > 1 else [*lines, "  no effect was doubled, every run completed"])


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
    answer by what it is shown, as `FakeModel(..., by_turn=True)` and `Provider` do. `effects()` gives all that the
    outside world has seen so far, as values that are equal where the world would call them the same (an idempotency key
    belongs into it if the world looks at it). An effect that also happens more than once without a death may happen as
    often with one.

    `approve` decides about calls that wait for a person: True, False, or a function of the request {step, call_id,
    tool, arguments, ...}. `store` is where the runs are recorded, in this process's memory if none is given; each has
    an id of its own. A run is gone on with by up to `lives` processes in all, each for at most `timeout_s` seconds.

    Raises what the run raises without a death, ValueError if nothing can be learned from it (it waits for a person,
    or `effects()` shows nothing), RuntimeError where an event loop is running.
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
        for call, facts in usual.first.calls.items():
            for after in (False, True):
                window = _window(call, facts, usual.first.names, after=after)
                trial = self._trial(call, after=after)
                (windows if trial.first.dead else missed).append(window)
                for effect, times in trial.effects.items():
                    if times > max(1, expected[_same(effect, trial.run_id)]):
                        doubled.append(DoubledEffect(effect, times, window))
                if trial.status != "completed":
                    unfinished.append(Unfinished(window, trial.status, repr(trial.error) if trial.error else None))
        return CrashReport(tuple(windows), tuple(doubled), tuple(unfinished), tuple(missed))

    def _trial(self, at: Call | None, *, after: bool = False) -> _Trial:
        self.runs += 1
        run_id, before = f"{self.run_ids}-{self.runs}", self._seen()
        first = MortalLog(self.store, at, after=after)
        error = self._live(first, run_id)
        for _ in range(self.lives - 1 if first.dead else 0):
            error = self._live(MortalLog(self.store), run_id)
            if self._status(run_id) == "completed":
                break
        return _Trial(first, self._seen() - before, run_id, self._status(run_id), error)

    def _status(self, run_id: str) -> str:
        return Result.from_events(run_id, self.store.events(run_id)).status

    def _seen(self) -> Counter[Hashable]:
        seen = checks.many("effects", self.effects(), "a function that gives a list")
        try:
            return Counter(seen)
        except TypeError as error:
            raise TypeError(
                "effects() gives something that cannot be compared by value. Give texts or tuples."
            ) from error

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
        asyncio.get_running_loop().set_exception_handler(_say_unless_dead)
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


def _window(call: Call, facts: tuple[str, ...], names: dict[int, str], *, after: bool) -> str:
    """When it died, in words."""
    what = names.get(call.step, f"step {call.step}") if call.step is not None else "the run"
    if call.name == "settle":
        written = f"{' and '.join(facts) or 'what comes next'} {'were' if len(facts) > 1 else 'was'} recorded"
        words = (f"before {written}", f"after {written}")
        if call.step is not None:
            words = (f"after {what} was done, before {written}", f"after {what} was done and {written}")
    else:
        words = {
            "submit": ("before the run was submitted", "after the run was submitted, before it began"),
            "claim": (f"before {what} was claimed", f"after {what} was claimed, before it was done"),
            "begin": (
                f"before the beginning of {what} was recorded",
                f"after the beginning of {what} was recorded, before it was done",
            ),
            "keep": (
                f"after {what} was done, before its outcome was kept",
                f"after the outcome of {what} was kept, before it was judged",
            ),
            "release": (f"before {what} was given back", f"after {what} was given back"),
        }[call.name]
    return words[after] + (f" (time {call.nth})" if call.nth > 1 and call.step is not None else "")


def _say_unless_dead(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), ProcessDied):  # what nobody waits for any more
        loop.default_exception_handler(context)
