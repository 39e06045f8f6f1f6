"""One replay: today's agent, with everything but its models and its guards answered from a recorded run.

The engine, its rules and its order of checks are those of any run in one process; only what a call would reach is
replaced. No tool, memory or approver of the agent's is ever called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from drangue_client.outcomes import failure
from drangue_client.result import Result
from drangue_client.settings import Settings
from drangue_client.store.port import Log
from drangue_client.verdicts import Verdict, record_verdict
from drangue_worker.blueprint import Blueprint
from drangue_worker.engine.inline import begin, go_on
from drangue_worker.engine.runtime import Runtime
from drangue_worker.evals.places import runtime_of
from drangue_worker.evals.recording import Answers, Recording
from drangue_worker.memory import MemoryItem
from drangue_worker.observability.tracers import Tracer
from drangue_worker.tools.invoke import either
from drangue_worker.tools.schema import Signature
from drangue_worker.tools.tool import Tool, ToolPolicy

Stub = Callable[[str, dict[str, Any]], Any]

MISSING = "the record of the run that is being replayed has no result for this call; nothing was executed"


class Rerun:
    """A replay of `recording` by the agent of `blueprint`, under `settings` and traced by `tracer`.

    `stub(tool, arguments)`, which may be async, gives what a tool would have returned where the record has no result;
    without one the model is told that there is none.
    """

    def __init__(
        self,
        recording: Recording,
        blueprint: Blueprint,
        stub: Stub | None = None,
        settings: Settings | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.recording = recording
        self._settings, self._tracer = settings, tracer
        self.answers = Answers(recording)
        self._stub = stub
        guards = blueprint.guardrails
        if guards is not None and guards.approver is not None:
            guards = replace(guards, approver=lambda name, arguments: not self.answers.refused(name, arguments))
        self.blueprint = replace(
            blueprint,
            tools={name: self._answering(tool) for name, tool in blueprint.tools.items()},
            guardrails=guards,
            memory=None if blueprint.memory is None else _Recalled(recording),
        )

    async def run(self, log: Log, run_id: str) -> Result:
        """Do the run again, turn by turn as far as it goes; its log is written to `log` as `run_id`."""
        runtime = runtime_of(self.blueprint, log, self._settings, self._tracer)
        try:
            for number, text in enumerate(self.recording.inputs):
                schema = self.recording.output_schema if number == 0 else None
                name = self.recording.agent or self.blueprint.name or "agent"
                await begin(runtime, name, run_id, text, schema, f"turn-{number}")
                result = await self._decided(runtime, run_id)
                if result.status != "completed":
                    break
            return result
        finally:
            runtime.close()

    async def _decided(self, runtime: Runtime, run_id: str) -> Result:
        """Go on, with the verdicts of the record, to the end of the turn or to a request that it has no verdict on."""
        while True:
            result = await go_on(runtime, run_id)
            for request in result.pending_approvals:
                verdict = self.answers.verdict(request["tool"], request["arguments"])
                if verdict is not None:
                    granted, by, reason = verdict
                    kind: Verdict = "approval_granted" if granted else "approval_denied"
                    await runtime.database(record_verdict, runtime.log, run_id, request["call_id"], kind, by, reason)
                    break
            else:
                return result

    def _answering(self, tool: Tool) -> Tool:
        """The same tool to a model and to the rules, answered from the record."""

        async def answer(**arguments: Any) -> Any:
            content = self.answers.content(tool.name, arguments, once=not tool.reversible)
            if content is not None:
                return content
            if self._stub is None:
                self.answers.differs("missing", tool.name, arguments)
                return failure(tool.name, "not_recorded", MISSING)
            self.answers.differs("stubbed", tool.name, arguments)
            return await either(functools.partial(self._stub, tool.name, arguments))

        signature = tool.signature and _AsAsked(**vars(tool.signature))
        return replace(tool, func=answer, signature=signature, policy=ToolPolicy(), wants_idempotency_key=False)


class _AsAsked(Signature):
    """Refuses what the tool would refuse, and hands on the arguments as the model gave them: so they were recorded."""

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        super().check(arguments)
        return dict(arguments)


class _Recalled:
    """A memory that recalls what was recalled then, and keeps nothing."""

    def __init__(self, recording: Recording) -> None:
        # Without an end: what has been forgotten since was known then.
        self._items = [MemoryItem(item["key"], item["value"]) for item in recording.recalled]

    async def recall(self, query: str, *, limit: int = 5) -> Sequence[MemoryItem]:
        return self._items

    async def remember(self, item: MemoryItem) -> None:
        return None
