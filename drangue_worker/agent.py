"""`Agent`: the face people write and talk to. A model plus tools; everything else has a default.

An agent runs in one process, by itself, or is named in `DRANGUE_AGENTS` and served by workers. The log is the same and
so are the rules; what one process began, another can resume.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from drangue_client.client import MOVING, check_input, check_run_id, record_verdict
from drangue_client.errors import InFlightError, RunExistsError, RunFailedError
from drangue_client.events import Event, Fact
from drangue_client.result import Result, pending_requests
from drangue_client.run import fold
from drangue_client.settings import Settings
from drangue_client.store import InMemoryStore
from drangue_client.store.port import Log, NewRun, RunRow
from drangue_client.terms import DEFAULT_MAX_STEPS, Autonomy
from drangue_client.wire.signals import POLL_S
from drangue_worker.blueprint import DEFAULT_MODEL_RETRIES, Blueprint
from drangue_worker.engine.inline import drive
from drangue_worker.engine.runtime import Runtime
from drangue_worker.models.sdk import MAX_TOKENS
from drangue_worker.observability.tracers import ConsoleTracer, NullTracer, Tracer
from drangue_worker.registry import OneAgent
from drangue_worker.tools.tool import Tool


class Agent:
    """An agent: a `model` (or a router), `tools` it may call, and `instructions`.

    A model may be given by name (`"gpt-4o"`, `"claude-..."`, `"openai:..."`); `max_tokens` is then its output ceiling,
    and `cache` asks the provider to cache the prompt.
    `max_steps` bounds the model calls of one turn, `autonomy` says which tools wait for a person, `model_retries` how
    often a failing model call is tried again. `store` is where the log lives (this process's memory by default). Raises
    TypeError or ValueError naming the argument that cannot be used.
    """

    def __init__(
        self,
        model: Any = None,
        tools: Sequence[Any] | None = None,
        instructions: str = "",
        *,
        name: str = "",
        router: Any = None,
        max_steps: int = DEFAULT_MAX_STEPS,
        max_tokens: int = MAX_TOKENS,
        cache: bool = False,
        store: Log | None = None,
        tracer: Tracer | None = None,
        autonomy: Autonomy | None = None,
        model_retries: int = DEFAULT_MODEL_RETRIES,
    ) -> None:
        self.blueprint = Blueprint.of(
            name=name,
            model=model,
            router=router,
            tools=tools or (),
            instructions=instructions,
            max_steps=max_steps,
            autonomy=autonomy,
            model_retries=model_retries,
            max_tokens=max_tokens,
            cache=cache,
        )
        self.tracer: Tracer = tracer or NullTracer()
        self._store = store

    @property
    def name(self) -> str:
        """The name it was given; empty where the registry shall take the variable's."""
        return self.blueprint.name

    @property
    def tools(self) -> dict[str, Tool]:
        """Its tools by name."""
        return self.blueprint.tools

    @property
    def router(self) -> Any:
        """What chooses the model of each step."""
        return self.blueprint.router

    @property
    def instructions(self) -> str:
        """The system text."""
        return self.blueprint.terms.instructions

    @property
    def autonomy(self) -> Autonomy | None:
        """How much leave its tools have."""
        return self.blueprint.terms.autonomy

    @property
    def store(self) -> Log:
        """Where its runs are recorded; made on first use if none was given."""
        if self._store is None:
            self._store = InMemoryStore()
        return self._store

    async def run(self, input: str | None = None, *, run_id: str | None = None, trace: bool = False) -> Result:
        """Work on one input until it is answered, has failed, or waits for a person.

        A `run_id` that exists is resumed, or read without doing anything if it has ended; its input may be repeated or
        left out. With `trace`, every step is printed as it happens. Raises what failed the run, RunExistsError or
        InFlightError for another input, LeaseHeldError while another process works on it.
        """
        run_id = check_run_id(run_id)
        runtime = self._runtime(trace)
        try:
            await self._open(runtime, run_id, input)
            return await self._drive(runtime, run_id)
        finally:
            runtime.close()

    def run_sync(self, input: str | None = None, *, run_id: str | None = None, trace: bool = False) -> Result:
        """`run`, for code without an event loop. RuntimeError where one is running."""
        return _blocking(self._run_and_close(input, run_id, trace))

    async def stream(
        self, input: str | None = None, *, run_id: str | None = None, trace: bool = False
    ) -> AsyncIterator[Event]:
        """`run`, giving each new event of the log right after it was written. Closing the iterator stops the work.

        What failed the run is raised after its events.
        """
        run_id = check_run_id(run_id)
        runtime = self._runtime(trace)
        moved = asyncio.Event()
        try:
            before = await self._open(runtime, run_id, input)
            work = asyncio.create_task(self._drive(runtime, run_id, moved))
            work.add_done_callback(lambda _: moved.set())
            try:
                seen = before.head_seq
                while True:
                    moved.clear()
                    finished = work.done()
                    for event in await runtime.database(self.store.events, run_id, seen):
                        seen = event.seq
                        yield event
                    if finished:
                        break
                    await moved.wait()
                await work
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        finally:
            runtime.close()

    async def resume(self, run_id: str, *, trace: bool = False) -> Result:
        """Go on with a run that stopped: after a verdict, a crash or a failure. UnknownRunError if there is none."""
        runtime = self._runtime(trace)
        try:
            await runtime.database(self.store.look, run_id)
            return await self._drive(runtime, run_id)
        finally:
            runtime.close()

    async def approve(self, run_id: str, call_id: str | None = None, *, by: str = "", reason: str = "") -> None:
        """Grant a waiting call, the oldest unless `call_id` names one; `resume` goes on. NotPendingError if none."""
        await self._verdict(run_id, call_id, "approval_granted", by, reason)

    async def reject(self, run_id: str, call_id: str | None = None, reason: str = "", *, by: str = "") -> None:
        """Deny a waiting call; the model is told `reason`. Otherwise as `approve`."""
        await self._verdict(run_id, call_id, "approval_denied", by, reason)

    async def pending_approvals(self, run_id: str) -> list[dict[str, Any]]:
        """Requests that wait for a person: {step, call_id, tool, arguments, reasoning, text}; none for no run."""
        events = await asyncio.to_thread(self.store.events, run_id)
        return pending_requests(fold(events), events)

    def _runtime(self, trace: bool) -> Runtime:
        return Runtime(
            log=self.store,
            registry=OneAgent([self.blueprint]),
            settings=Settings(),
            worker=f"inline@{socket.gethostname()}/{os.getpid()}",
            tracer=ConsoleTracer() if trace else self.tracer,
        )

    async def _open(self, runtime: Runtime, run_id: str, input: str | None) -> RunRow:
        new = NewRun(run_id, self.name or "agent", check_input(input or ""), executor="inline")
        row, created = (await runtime.database(self.store.submit, [new]))[0]
        if not created and input and new.input != row.input:
            if row.status in ("completed", "cancelled"):
                raise RunExistsError(run_id, "input")
            raise InFlightError(run_id, row.status)
        return row

    async def _drive(self, runtime: Runtime, run_id: str, moved: asyncio.Event | None = None) -> Result:
        look = await runtime.database(self.store.look, run_id)
        if look.row.executor == "celery":
            await _wait_for_fleet(runtime, run_id)
        elif look.run.ended is None or look.run.ended == "failed":
            with runtime.tracer.span("run", run_id=run_id) as span:
                await drive(runtime, run_id, _redrive(look.run.ended), moved)
                result = await self._result(runtime, run_id)
                if result.status == "paused":
                    span.set("status", "paused")
                else:
                    span.set("output", result.output)
            return result
        return await self._result(runtime, run_id)

    async def _result(self, runtime: Runtime, run_id: str) -> Result:
        result = Result.from_events(run_id, await runtime.database(self.store.events, run_id))
        if result.status == "failed":
            raise RunFailedError(run_id, result.error or "", result.reason or "error")
        return result

    async def _verdict(self, run_id: str, call_id: str | None, verdict: str, by: str, reason: str) -> None:
        await asyncio.to_thread(record_verdict, self.store, run_id, call_id, verdict, by, reason)

    async def _run_and_close(self, input: str | None, run_id: str | None, trace: bool) -> Result:
        """Run on a loop that ends with the run, and close what the models opened on it."""
        try:
            return await self.run(input, run_id=run_id, trace=trace)
        finally:
            for model in getattr(self.router, "models", ()):
                if hasattr(model, "aclose"):
                    await model.aclose()


def _blocking(work: Coroutine[Any, Any, Result]) -> Result:
    if asyncio._get_running_loop() is not None:
        work.close()  # never started: say so with one error, not with a warning besides
        raise RuntimeError("run_sync is called from a running event loop. Use `await agent.run(...)` there.")
    return asyncio.run(work)


def _redrive(ended: str | None) -> tuple[Fact, ...]:
    return (Fact("run_resumed", {"by": "resume", "reason": ""}),) if ended == "failed" else ()


async def _wait_for_fleet(runtime: Runtime, run_id: str) -> None:
    """Wait, as a client would, until the workers a run belongs to have brought it to a stop."""
    while (await runtime.database(runtime.log.look, run_id)).row.status in MOVING:  # noqa: ASYNC110 - moved elsewhere
        await asyncio.sleep(POLL_S)
