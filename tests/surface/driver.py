"""One way to talk to an agent, whoever does its work: this process, or a fleet.

What differs between the two is told here and nowhere else. A verdict lets a fleet's run go on by itself, an inline run
is gone on with by `resume`. A failed run is raised by `Agent.run` and returned by `Client.result`; here it is returned.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Protocol

from drangue_client import Client
from drangue_client.errors import WaitTimeout
from drangue_client.events import Event
from drangue_client.result import Result
from drangue_client.run import MOVING
from drangue_worker import Agent
from tests.surface import agents

PATIENCE_S = 30.0


class Driver(Protocol):
    """What a test can do with runs. `replays` is whether a finished answer can be watched being written again."""

    replays: bool

    def start(self, agent: str, text: str, run_id: str, **options: Any) -> None:
        """Begin a run (`output_schema`, `turn_id`), or find it begun, and do not wait for it."""

    def result(self, run_id: str) -> Result:
        """The run when it has ended or waits for a person."""

    def say(self, run_id: str, text: str, turn_id: str | None = None) -> Result:
        """Another turn of a run, worked on until it stops."""

    def approve(self, run_id: str, call_id: str | None = None, *, by: str = "", reason: str = "") -> None:
        """Grant a waiting call; the run goes on."""

    def reject(self, run_id: str, call_id: str | None = None, *, by: str = "", reason: str = "") -> None:
        """Deny a waiting call; the run goes on."""

    def resume(self, run_id: str) -> None:
        """Take a failed run up again."""

    def pending(self, run_id: str) -> list[dict[str, Any]]:
        """The requests that wait."""

    def events(self, run_id: str) -> list[Event]:
        """The log as it is now."""

    def stream(self, agent: str, text: str, run_id: str) -> Iterator[Event]:
        """Begin a run and watch it until it stops."""

    def follow(self, run_id: str, after: int) -> Iterator[Event]:
        """Watch a run behind a place of its log until it stops."""


class Loop:
    """An event loop on a thread of its own, for all inline runs: it keeps the models' connections."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="surface-loop", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.start(work).result(PATIENCE_S)

    def close(self) -> None:
        """Close what the models opened on the loop, then the loop."""
        for model in agents.MODELS:
            self.call(model.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class InlineDriver:
    """`Agent.run` and its kin over a store."""

    replays = False  # what is said in a process is said to whoever listens there

    def __init__(self, store: Any, loop: Loop) -> None:
        self._store = store
        self._loop = loop
        self._agents: dict[str, Agent] = {}
        self._working: dict[str, Future[Any]] = {}

    def start(self, agent: str, text: str, run_id: str, **options: Any) -> None:
        work = self._agent(run_id, agent).run(text, run_id=run_id, **options)
        self._working[run_id] = self._loop.start(work)

    def result(self, run_id: str) -> Result:
        while True:
            if run_id in self._working:
                self._raised(run_id, self._working.pop(run_id))
            status = self._store.look(run_id).row.status
            if status not in MOVING:
                return Result.from_events(run_id, self.events(run_id))
            self._resume(run_id)  # a verdict came when the work had just ended

    def say(self, run_id: str, text: str, turn_id: str | None = None) -> Result:
        self.start("", text, run_id, turn_id=turn_id)
        return self.result(run_id)

    def approve(self, run_id: str, call_id: str | None = None, *, by: str = "", reason: str = "") -> None:
        self._loop.call(self._agent(run_id).approve(run_id, call_id, by=by, reason=reason))
        self._resume(run_id)

    def reject(self, run_id: str, call_id: str | None = None, *, by: str = "", reason: str = "") -> None:
        self._loop.call(self._agent(run_id).reject(run_id, call_id, reason, by=by))
        self._resume(run_id)

    def resume(self, run_id: str) -> None:
        self._resume(run_id)

    def pending(self, run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._loop.call(self._agent(run_id, "toolbox").pending_approvals(run_id))
        return found

    def events(self, run_id: str) -> list[Event]:
        found: list[Event] = self._store.events(run_id)
        return found

    def stream(self, agent: str, text: str, run_id: str) -> Iterator[Event]:
        return self._watch(run_id, lambda: self._agent(run_id, agent).stream(text, run_id=run_id))

    def follow(self, run_id: str, after: int) -> Iterator[Event]:
        if run_id in self._working:
            self._working.pop(run_id).result(PATIENCE_S)  # two drives of one run would be in each other's way
        return self._watch(run_id, lambda: self._agent(run_id).stream(run_id=run_id, after=after))

    def _agent(self, run_id: str, name: str = "") -> Agent:
        if run_id not in self._agents:
            self._agents[run_id] = agents.again(name or "toolbox", self._store)
        return self._agents[run_id]

    def _resume(self, run_id: str) -> None:
        """Go on, unless somebody is at it: what is under way sees the verdict, or `result` goes on."""
        if run_id not in self._working or self._working[run_id].done():
            self._working[run_id] = self._loop.start(self._agent(run_id).resume(run_id))

    def _raised(self, run_id: str, work: Future[Any]) -> None:
        """Raise what the work raised, unless it is what the log says of a failed run."""
        error = work.exception(PATIENCE_S)
        if error is None:
            return
        log = self.events(run_id)
        recorded = log[-1].payload if log and log[-1].type == "run_failed" else {"error": None}
        if recorded["error"] not in (str(error), type(error).__name__):
            raise error

    def _watch(self, run_id: str, stream: Callable[[], Any]) -> Iterator[Event]:
        seen: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

        async def watch() -> None:
            try:
                async for event in stream():
                    seen.put(event)
            finally:
                seen.put(None)

        work = self._loop.start(watch())
        while (event := seen.get(timeout=PATIENCE_S)) is not None:
            yield event
        self._raised(run_id, work)


class FleetDriver:
    """A client of workers that run elsewhere; `log_tails` says what they wrote last."""

    replays = True  # Redis keeps what was said for an hour, for whoever comes late

    def __init__(self, client: Client, log_tails: Callable[[], str]) -> None:
        self._client = client
        self._log_tails = log_tails

    def start(self, agent: str, text: str, run_id: str, **options: Any) -> None:
        self._client.submit(agent, text, run_id=run_id, **options)

    def result(self, run_id: str) -> Result:
        try:
            return self._client.result(run_id, timeout=PATIENCE_S)
        except WaitTimeout as error:
            error.add_note(self._log_tails())
            raise

    def say(self, run_id: str, text: str, turn_id: str | None = None) -> Result:
        self._client.say(run_id, text, turn_id=turn_id)
        return self.result(run_id)

    def approve(self, run_id: str, call_id: str | None = None, *, by: str = "", reason: str = "") -> None:
        self._client.approve(run_id, call_id, by=by, reason=reason)

    def reject(self, run_id: str, call_id: str | None = None, *, by: str = "", reason: str = "") -> None:
        self._client.reject(run_id, call_id, by=by, reason=reason)

    def resume(self, run_id: str) -> None:
        self._client.resume(run_id)

    def pending(self, run_id: str) -> list[dict[str, Any]]:
        both = {"run_id", "agent", "executor"}  # whose it is goes without saying where there is one process
        return [
            {name: value for name, value in item.items() if name not in both}
            for item in self._client.pending_approvals(run_id)
        ]

    def events(self, run_id: str) -> list[Event]:
        return self._client.events(run_id)

    def stream(self, agent: str, text: str, run_id: str) -> Iterator[Event]:
        self._client.submit(agent, text, run_id=run_id, tokens=True)
        return self._client.stream(run_id, timeout=PATIENCE_S)

    def follow(self, run_id: str, after: int) -> Iterator[Event]:
        return self._client.stream(run_id, after=after, timeout=PATIENCE_S)
