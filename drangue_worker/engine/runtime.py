"""`Runtime`: everything a process needs to work on runs, made once and handed down.

The log is synchronous; its calls leave the event loop through a few threads of this runtime's own, so that neither a
slow tool nor a slow model can keep a result from being recorded. Runs in one process share theirs; one that has its
event loop to itself and its log in a file does without, and so does a worker with a single step at hand (`aside`).
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, Self, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from drangue_client.errors import DatabaseUnavailable
from drangue_client.settings import Settings
from drangue_client.store.port import Log
from drangue_client.store.values import Ask, Claimed, Executor, Open, RunRow, StepRef
from drangue_client.wire.signals import Doorbell
from drangue_worker.engine import aside
from drangue_worker.engine.batching import Batcher
from drangue_worker.engine.eager import Dispatch, Elsewhere
from drangue_worker.engine.leases import Leases
from drangue_worker.engine.traced import Traced
from drangue_worker.observability.logs import get_logger
from drangue_worker.observability.tracers import NullTracer, Tracer
from drangue_worker.registry import Registry

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")
Publish = Callable[[Sequence[StepRef]], None]

log = get_logger("drangue.runtime")

SHARED_THREADS = 16  # of all runs in one process: a database waits for its disk meanwhile
TELLING = 2
WAITED_S = 0.1


class Watcher(Protocol):
    """Is shown one model call's answer as it comes."""

    async def say(self, text: str) -> None:
        """The next piece of text."""

    async def done(self) -> None:
        """No more pieces come, be it that the answer is whole or that the call failed."""


Watch = Callable[[RunRow, int, int], Watcher | None]  # (run, step, attempt) -> who is shown the call, if anybody


def nobody(row: RunRow, step: int, attempt: int) -> None:
    """The watch of a run that nobody watches."""


def _busy() -> bool:
    """A runtime whose log blocks."""
    return False


def _unsent(steps: Sequence[StepRef]) -> None:
    """The publish of a runtime that performs by itself what it has opened."""


@dataclass
class Runtime(Traced):
    """`worker` names this process in claims. `publish` sends steps that were opened; it raises nothing. `dispatch` goes
    on with those that it wants. `patient` waits out a database that is away instead of raising. `killable` says that
    somebody kills this process where a call in it outlives its time. `direct` says that the event loop is this
    runtime's alone and that the log answers at once: it is asked right there, which is cheaper by far than a thread;
    `alone`, besides, that one step is under way and waits for no company. `quiet` is asked whether this process has
    nothing else to do and a log that can be asked `aside`."""

    log: Log
    registry: Registry
    settings: Settings
    worker: str
    executor: Executor = "inline"
    doorbell: Doorbell = field(default_factory=lambda: Doorbell(""))
    tracer: Tracer = field(default_factory=NullTracer)
    watch: Watch = nobody
    publish: Publish = _unsent
    dispatch: Dispatch = field(default_factory=Elsewhere)
    patient: bool = False
    killable: bool = False
    threads: int = 4
    direct: bool = False
    alone: bool = False
    quiet: Callable[[], bool] = _busy

    def __post_init__(self) -> None:
        self._own: list[ThreadPoolExecutor] = []
        self._pool = self._threads("log", self.threads)
        self._telling = self._threads("tell", TELLING)  # whoever is told may keep a thread for seconds
        # Of its own: a renewal that waited behind a burst of claims would lose what is being worked on.
        self._beats = self._threads("lease", 1)
        self.leases = Leases(self.log, self.settings, functools.partial(self._on, self._beats))
        self._batchers: dict[Any, Batcher[Any, Any]] = {}
        self.going: set[str] = set()  # the claims of steps that this process goes on with

    async def database(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a blocking call of the log in one of this runtime's threads.

        A patient runtime repeats it with backoff and jitter until the database is back: every call of the log may be
        repeated, and nothing that was done is thrown away while there is hope of recording it.
        """
        return await self._on(self._pool, call, *args, **kwargs)

    async def together(self, work: Callable[[Self, Sequence[Item]], list[T]], item: Item) -> T:
        """One answer of `work`, a blocking call of the log that takes what waits for it together; it has a thread of
        its own. As patient as `database`, and as hard to interrupt as `uninterrupted`."""
        if self.direct and self.alone:
            return self._here(work, self, [item])[0]
        if self.quiet():
            with suppress(DatabaseUnavailable):  # which is waited out on a thread
                return (await aside.do(functools.partial(work, self, [item])))[0]
        batcher = self._batchers.get(work)
        if batcher is None:
            hand = self._hand if self.executor == "inline" else None
            batcher = self._batchers[work] = Batcher(
                f"drangue-{work.__name__.strip('_')}", lambda items: self._patiently(work, self, items), hand=hand
            )
        return await aside.whole(batcher.put(item))

    def ask(self, run_id: str, step: int, token: str) -> Ask:
        """An attempt of this process at a step."""
        return Ask(run_id, step, token, self.worker, self.executor)

    def go_on(self, opened: Sequence[StepRef], taken: Sequence[Claimed]) -> None:
        """Have steps performed: those that were `taken` here, the others by whoever gets their messages."""
        ours = {(one.ask.run_id, one.ask.step): one for one in taken}
        if ours:
            self.going |= {one.ask.token for one in taken}
            steps = [(ours[ref.run_id, ref.step], ref) for ref in opened if (ref.run_id, ref.step) in ours]
            try:
                self.dispatch.go_on(steps)
            except Exception:
                log.exception("dispatch_failed", steps=len(steps))  # the leases lapse, and a sweep sends them
        others = [ref for ref in opened if (ref.run_id, ref.step) not in ours]
        if others:
            self.tell(self.publish, others)

    def tell(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Make a call that nobody waits for and that may block, after what it tells of was written: right here, or on a
        thread where that is the event loop's."""
        if aside.inside():
            with suppress(RuntimeError):  # the threads have been shut down: the process ends
                self._telling.submit(_logged, functools.partial(call, *args, **kwargs))
                return
        call(*args, **kwargs)

    def wants(self, opened: Open) -> bool:
        """Whether this process would go on with a step itself. It is a wish: where that cannot be told, it is sent."""
        try:
            return self.dispatch.wants(opened)
        except Exception:
            log.exception("dispatch_failed")
            return False

    def _threads(self, name: str, most: int) -> ThreadPoolExecutor:
        """Threads of this runtime's own; those of runs in one process, of which each has a runtime, are shared."""
        if self.executor == "inline":
            return _shared(os.getpid(), name)
        self._own.append(pool := ThreadPoolExecutor(most, thread_name_prefix=f"drangue-{name}"))
        return pool

    def _hand(self, job: Callable[[], None]) -> None:
        if self.direct:
            asyncio.get_running_loop().call_soon(job)
        else:
            self._pool.submit(job)

    async def _on(self, pool: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self.direct:
            return self._here(call, *args, **kwargs)
        work = functools.partial(self._patiently, call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def _patiently(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call of the log, again and again while the database is away and there is patience for it."""
        if self.direct:
            return self._here(call, *args, **kwargs)
        try:
            return call(*args, **kwargs)  # apart: nearly always it is enough, and counting attempts costs more
        except DatabaseUnavailable as error:
            if not self.patient:
                raise
            log.warning("database_away", attempt=0, error=str(error))
        again = Retrying(
            retry=retry_if_exception_type(DatabaseUnavailable),
            stop=lambda _: not self.patient,  # asked each time: a draining worker loses its patience
            wait=wait_random_exponential(multiplier=0.1, max=2),
            before_sleep=_say_waiting,
            reraise=True,
        )
        return again(call, *args, **kwargs)

    def _here(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call of the log on the event loop. One that made it wait was the last: somebody else has the file."""
        began = time.monotonic()
        try:
            return call(*args, **kwargs)
        finally:
            if time.monotonic() - began > WAITED_S:
                self.direct = False

    async def uninterrupted(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`database`, but a cancelled caller still waits for the answer: what was written is known to have been.

        The cancellation is swallowed; `asyncio.current_task().cancelling()` tells of it.
        """
        return await aside.whole(asyncio.ensure_future(self.database(call, *args, **kwargs)))

    def close(self) -> None:
        """Let go of the threads; the log belongs to whoever made it."""
        for pool in self._own:
            pool.shutdown(wait=False)
        for batcher in self._batchers.values():
            batcher.close()


def _logged(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception:
        log.exception("telling_failed")


@functools.cache
def _shared(pid: int, name: str) -> ThreadPoolExecutor:
    """The threads that all runs of one process share, `pid` since a forked child has none of its parent's."""
    return ThreadPoolExecutor(SHARED_THREADS, thread_name_prefix=f"drangue-{name}")


def _say_waiting(state: RetryCallState) -> None:
    error: Any = state.outcome.exception() if state.outcome else None
    log.warning("database_away", attempt=state.attempt_number, error=str(error))
