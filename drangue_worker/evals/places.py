"""Where the runs of an evaluation are made: by a registered agent in this process, or by the workers of a fleet.

Both can be handed to `evaluate` in place of an `Agent`. Runs are real wherever they are made: they call the models and
the tools that the agent has there.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Awaitable
from typing import Any, TypeVar

from drangue_client.client import Client
from drangue_client.result import Result
from drangue_client.settings import Settings
from drangue_client.store import InMemoryStore
from drangue_client.store.port import Log
from drangue_worker.blueprint import Blueprint
from drangue_worker.engine.inline import begin, go_on
from drangue_worker.engine.runtime import Runtime
from drangue_worker.registry import OneAgent
from drangue_worker.tools.invoke import either

T = TypeVar("T")

LABEL = "eval"  # on runs that an evaluation made: production is what bears none


class InProcess:
    """The agent of a blueprint, run in this process; its log is in `store`, by default in this process's memory.

    A run that takes longer than `timeout_s` seconds (None: no limit) is cancelled and raises TimeoutError.
    """

    def __init__(self, blueprint: Blueprint, *, store: Log | None = None, timeout_s: float | None = None) -> None:
        self.blueprint = blueprint
        self.store: Log = store or InMemoryStore()
        self.timeout_s = timeout_s

    async def run(self, input: str, *, run_id: str) -> Result:
        """As `Agent.run`."""
        runtime = runtime_of(self.blueprint, self.store)
        try:
            return await limited(self._run(runtime, input, run_id), self.timeout_s)
        finally:
            runtime.close()

    async def _run(self, runtime: Runtime, input: str, run_id: str) -> Result:
        await begin(runtime, self.blueprint.name or "agent", run_id, input, None, None)
        return await go_on(runtime, run_id)

    async def aclose(self) -> None:
        """Close what its models opened for the running event loop."""
        await close_models(self.blueprint)


class OnFleet:
    """The agent registered as `name`, run by the workers that `client` reaches.

        await evaluate(OnFleet(client, "oncall"), scenarios)

    Its runs are recorded like any other, under the label `eval`. A run that takes longer than `timeout_s` seconds
    (None: no limit) raises WaitTimeout and goes on.
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
        """Submit a run and wait for it. Where the caller is cancelled, the run goes on."""
        # In a thread of its own: waiting ones must keep nobody else waiting, nor the process from ending.
        result: Result = await either(functools.partial(self._run, input, run_id))
        return result

    def _run(self, input: str, run_id: str) -> Result:
        self.client.submit(self.name, input, run_id=run_id, labels=self.labels)
        return self.client.result(run_id, timeout=self.timeout_s)


async def limited(work: Awaitable[T], limit_s: float | None) -> T:
    """What `work` gives; it is cancelled, and TimeoutError raised, after `limit_s` seconds (None: never)."""
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"no answer within {limit_s:g} s") from None
        raise  # of its own


def runtime_of(blueprint: Blueprint, log: Log) -> Runtime:
    """What it takes to run one agent in this process; to be closed."""
    worker = f"eval@{socket.gethostname()}/{os.getpid()}"
    return Runtime(log=log, registry=OneAgent([blueprint]), settings=Settings(), worker=worker)


async def close_models(blueprint: Blueprint) -> None:
    """Close what an agent's models opened for the running event loop."""
    models: Any = getattr(blueprint.router, "models", ())
    for model in models:
        if hasattr(model, "aclose"):
            await model.aclose()
