"""Where the runs of an evaluation are made: by a registered agent in this process, or by the workers of a fleet.

Both can be handed to `evaluate` in place of an `Agent`. Runs are real wherever they are made: they call the models and
the tools that the agent has there. All bear the label `eval`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Awaitable
from typing import Any, TypeVar

from drangue_client.client import Client
from drangue_client.errors import WaitTimeout
from drangue_client.result import Result
from drangue_client.settings import Settings
from drangue_client.store import InMemoryStore
from drangue_client.store.port import Log
from drangue_worker.blueprint import Blueprint
from drangue_worker.engine.inline import begin, go_on
from drangue_worker.engine.runtime import Runtime
from drangue_worker.observability.tracers import NullTracer, Tracer
from drangue_worker.registry import OneAgent
from drangue_worker.tools.invoke import either

T = TypeVar("T")

LABEL = "eval"  # on runs that an evaluation made: production is what bears none
BY = "eval"  # who cancels what an evaluation leaves
AGENT_RUN = "drangue_worker.agent:Agent.run"


class InProcess:
    """The agent of a blueprint, run in this process under the label {"eval": `label`}.

    The log is in `store`, by default in this process's memory.

    A run that takes longer than `timeout_s` seconds (None: no limit) is cancelled and raises TimeoutError. `settings`
    and `tracer` are those of any run in one process; by default the settings are plain and nothing is traced.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        *,
        store: Log | None = None,
        label: str = "",
        timeout_s: float | None = None,
        settings: Settings | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.blueprint = blueprint
        self.store: Log = store or InMemoryStore()
        self.labels = {LABEL: label}
        self.timeout_s = timeout_s
        self.settings = settings
        self.tracer = tracer

    async def run(self, input: str, *, run_id: str) -> Result:
        """As `Agent.run`."""
        runtime = runtime_of(self.blueprint, self.store, self.settings, self.tracer)
        try:
            return await limited(self._run(runtime, input, run_id), self.timeout_s)
        finally:
            runtime.close()

    async def _run(self, runtime: Runtime, input: str, run_id: str) -> Result:
        await begin(runtime, self.blueprint.name or "agent", run_id, input, None, None, labels=self.labels)
        return await go_on(runtime, run_id)

    async def aclose(self) -> None:
        """Close what its models opened for the running event loop."""
        await close_models(self.blueprint)


class OnFleet:
    """The agent registered as `name`, run by the workers that `client` reaches.

        await evaluate(OnFleet(client, "oncall"), scenarios)

    Its runs are recorded like any other, under the label {"eval": `label`}. A run that takes longer than `timeout_s`
    seconds (None: no limit) is cancelled and raises TimeoutError. One that waits for a person is cancelled when it
    has been read: nobody shall approve for real what was asked for as a test.
    """

    def __init__(self, client: Client, name: str, *, label: str = "", timeout_s: float | None = None) -> None:
        self.client = client
        self.name = name
        self.labels = {LABEL: label}
        self.timeout_s = timeout_s

    @property
    def store(self) -> Log:
        """The fleet's log."""
        return self.client.log

    async def run(self, input: str, *, run_id: str) -> Result:
        """Submit a run, wait for it and read it; one that waits for a person is returned `paused`, and then cancelled.

        Where the caller is cancelled, the run goes on.
        """
        # In a thread of its own: waiting ones must keep nobody else waiting, nor the process from ending.
        result: Result = await either(functools.partial(self._run, input, run_id))
        return result

    def _run(self, input: str, run_id: str) -> Result:
        self.client.submit(self.name, input, run_id=run_id, labels=self.labels)
        try:
            result = self.client.result(run_id, timeout=self.timeout_s)
        except WaitTimeout:
            late = f"no answer within {self.timeout_s:g} s"
            if self.client.cancel(run_id, by=BY, reason=f"{late}, which is what the evaluation waits"):
                raise TimeoutError(f"{late}; the run was cancelled") from None
            result = self.client.result(run_id)  # it ended at that very moment
        if result.status == "paused":
            self.client.cancel(run_id, by=BY, reason="the evaluation needs no answer: it grades what was asked for")
        return result


def in_its_store(agent: Any, label: str) -> Any:
    """An `Agent` as it is, but for the label on its runs; whatever else can be evaluated as it is.

    In a store that others share, runs without the label are production's.
    """
    # By name: the class stands above this module. One with a `run` of its own is asked to make it.
    run = getattr(type(agent), "run", None)
    own = vars(agent).get("run") if hasattr(agent, "__dict__") else None
    if own is not None or f"{getattr(run, '__module__', '')}:{getattr(run, '__qualname__', '')}" != AGENT_RUN:
        return agent
    return InProcess(agent.blueprint, store=agent.store, label=label, tracer=agent.tracer)


async def limited(work: Awaitable[T], limit_s: float | None) -> T:
    """What `work` gives; it is cancelled, and TimeoutError raised, after `limit_s` seconds (None: never)."""
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"no answer within {limit_s:g} s") from None
        raise  # of its own


def runtime_of(
    blueprint: Blueprint, log: Log, settings: Settings | None = None, tracer: Tracer | None = None
) -> Runtime:
    """What it takes to run one agent in this process; to be closed."""
    return Runtime(
        log=log,
        registry=OneAgent([blueprint]),
        settings=settings or Settings(),
        worker=f"eval@{socket.gethostname()}/{os.getpid()}",
        tracer=tracer or NullTracer(),
    )


async def close_models(blueprint: Blueprint) -> None:
    """Close what an agent's models opened for the running event loop."""
    models: Any = getattr(blueprint.router, "models", ())
    for model in models:
        if hasattr(model, "aclose"):
            await model.aclose()
