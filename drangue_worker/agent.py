"""`Agent`: the face people write and talk to. A model plus tools; everything else has a default.

An agent runs in one process, by itself, or is named in `DRANGUE_AGENTS` and served by workers. The log is the same and
so are the rules; what one process began, another can resume.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Self

from drangue_client import checks
from drangue_client.autonomy import Autonomy
from drangue_client.budget import Budget
from drangue_client.events import Event
from drangue_client.result import Result
from drangue_client.settings import Settings
from drangue_client.store import InMemoryStore
from drangue_client.store.port import Log
from drangue_client.submission import check_run_id
from drangue_client.terms import DEFAULT_MAX_STEPS
from drangue_worker.blueprint import DEFAULT_MODEL_RETRIES, Blueprint
from drangue_worker.engine.deltas import Deltas
from drangue_worker.engine.inline import begin, go_on
from drangue_worker.engine.runtime import Runtime
from drangue_worker.memory import Memory, MemoryItem
from drangue_worker.models.sdk import MAX_TOKENS
from drangue_worker.observability.tracers import ConsoleTracer, NullTracer, Tracer
from drangue_worker.registry import OneAgent
from drangue_worker.steering import Steering
from drangue_worker.tools.guards import Guardrails
from drangue_worker.tools.tool import Tool


class Agent(Steering):
    """An agent: a `model` (or a router), `tools` it may call, and `instructions`.

    A model may be given by name (`"gpt-4o"`, `"claude-..."`, `"openai:..."`); `max_tokens` is then its output ceiling,
    and `cache` asks the provider to cache the prompt.
    `max_steps` bounds the model calls of one turn, `deadline` its seconds, from when it was asked for until it is ended
    where it is; `budget` the tokens and dollars of the run. `guardrails` say what
    passes, `autonomy` which tools wait for a person. `memory` is recalled from once per run. `output_schema`, a JSON
    schema or a pydantic model, is what every answer must match. `model_retries` is how often a failing model call is
    tried again. `store` is where the log lives (this process's memory by default). Raises TypeError or ValueError
    naming the argument that cannot be used.
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
        budget: Budget | None = None,
        guardrails: Guardrails | None = None,
        autonomy: Autonomy | None = None,
        memory: Memory | None = None,
        model_retries: int = DEFAULT_MODEL_RETRIES,
        output_schema: Any = None,
        deadline: float | None = None,
    ) -> None:
        self.blueprint = Blueprint.of(
            name=name,
            model=model,
            router=router,
            tools=() if tools is None else tools,
            instructions=instructions,
            max_steps=max_steps,
            autonomy=autonomy,
            model_retries=model_retries,
            max_tokens=max_tokens,
            cache=cache,
            budget=budget,
            guardrails=guardrails,
            memory=memory,
            output_schema=output_schema,
            deadline=deadline,
        )
        checks.has("tracer", tracer, "span", "a tracer, such as ConsoleTracer()", optional=True)
        checks.has("store", store, "settle", "a store, such as SQLiteStore('runs.db')", optional=True)
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
    def budget(self) -> Budget | None:
        """What a run of it may use."""
        return self.blueprint.terms.budget

    @property
    def guardrails(self) -> Guardrails | None:
        """What it lets pass."""
        return self.blueprint.guardrails

    @property
    def memory(self) -> Memory | None:
        """What it recalls from."""
        memory: Memory | None = self.blueprint.memory
        return memory

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """The JSON schema its answers must match."""
        return self.blueprint.terms.output_schema

    @property
    def store(self) -> Log:
        """Where its runs are recorded; made on first use if none was given."""
        if self._store is None:
            self._store = InMemoryStore()
        return self._store

    async def run(
        self,
        input: str | None = None,
        *,
        run_id: str | None = None,
        trace: bool = False,
        output_schema: Any = None,
        turn_id: str | None = None,
    ) -> Result:
        """Work on one input until it is answered, has failed, or waits for a person.

        On a `run_id` that exists, a new input is a follow-up turn, once the last one has ended. No input, or the one of
        the first or the latest turn again, resumes the run, or reads it without doing anything if it has ended; with a
        `turn_id` that decides instead: the same id is the same turn, another id a new one. `output_schema` (a JSON
        schema or a pydantic model) holds for all turns of the run. With `trace`, every step is printed as it happens.

        Raises what failed the run, InFlightError for another input before the turn has ended, LeaseHeldError while
        another process works on it.
        """
        return await self._run(input, check_run_id(run_id), self._runtime(trace), output_schema, turn_id)

    def run_sync(
        self,
        input: str | None = None,
        *,
        run_id: str | None = None,
        trace: bool = False,
        output_schema: Any = None,
        turn_id: str | None = None,
    ) -> Result:
        """`run`, for code without an event loop. RuntimeError where one is running."""
        return _blocking(self._run_and_close(input, run_id, trace, output_schema, turn_id))

    async def stream(
        self,
        input: str | None = None,
        *,
        run_id: str | None = None,
        trace: bool = False,
        output_schema: Any = None,
        turn_id: str | None = None,
        after: int | None = None,
    ) -> AsyncIterator[Event]:
        """`run`, giving each new event of the log right after it was written, and `model_delta` events (seq -1, never
        stored) while a model that can stream talks. `after` is the place of the log to begin behind (-1: all of it).

        Closing the iterator stops the work. What failed the run is raised after its events.
        """
        run_id, after = check_run_id(run_id), checks.place("after", after, optional=True)
        runtime = self._runtime(trace)
        deltas = Deltas()
        runtime.watch = deltas.watch
        try:
            before = await begin(runtime, self.name or "agent", run_id, input, output_schema, turn_id)
            work = asyncio.create_task(go_on(runtime, run_id, deltas.moved))
            work.add_done_callback(lambda _: deltas.moved())
            try:
                seen, finished = before.head_seq if after is None else after, False
                while not finished:
                    grown = await deltas.wait()
                    finished = work.done()
                    for event in await runtime.database(self.store.events, run_id, seen) if grown else ():
                        seen = event.seq
                        for piece in deltas.take(event.step) if event.type == "model_decision" else ():
                            yield piece
                        yield event
                    for piece in deltas.take():
                        yield piece
                await work
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        finally:
            runtime.close()

    async def resume(self, run_id: str, *, trace: bool = False) -> Result:
        """Go on with a run that stopped: after a verdict, a crash or a failure. UnknownRunError if there is none."""
        checks.text("run_id", run_id)
        runtime = self._runtime(trace)
        try:
            await runtime.database(self.store.look, run_id)
            return await go_on(runtime, run_id)
        finally:
            runtime.close()

    async def remember(self, item: MemoryItem) -> None:
        """Keep an item in the agent's memory; nothing happens without one. TypeError for what is no MemoryItem."""
        checks.kind("item", item, MemoryItem, "a MemoryItem")
        if self.memory is not None:
            await self.memory.remember(item)

    def _runtime(self, trace: bool, *, direct: bool = False) -> Runtime:
        return Runtime(
            log=self.store,
            registry=OneAgent([self.blueprint]),
            settings=Settings(),
            worker=f"inline@{socket.gethostname()}/{os.getpid()}",
            tracer=ConsoleTracer() if checks.flag("trace", trace) else self.tracer,
            direct=direct,
        )

    async def aclose(self) -> None:
        """Close what its models opened for the running event loop. Repeating is safe, and so is another run after it.

        `async with agent:` does it at the end of the block, `run_sync` by itself.
        """
        for model in getattr(self.router, "models", ()):
            if hasattr(model, "aclose"):
                await model.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run(
        self, input: str | None, run_id: str, runtime: Runtime, output_schema: Any, turn_id: str | None
    ) -> Result:
        try:
            await begin(runtime, self.name or "agent", run_id, input, output_schema, turn_id)
            return await go_on(runtime, run_id)
        finally:
            runtime.close()

    async def _run_and_close(
        self, input: str | None, run_id: str | None, trace: bool, output_schema: Any, turn_id: str | None
    ) -> Result:
        async with self:
            runtime = self._runtime(trace, direct=getattr(self.store, "at_hand", False))
            return await self._run(input, check_run_id(run_id), runtime, output_schema, turn_id)


def _blocking(work: Coroutine[Any, Any, Result]) -> Result:
    if asyncio._get_running_loop() is not None:
        work.close()  # never started: say so with one error, not with a warning besides
        raise RuntimeError("run_sync is called from a running event loop. Use `await agent.run(...)` there.")
    return asyncio.run(work)
