"""Where the turns of a run stand in their trace, so that processes which never met export spans of one tree."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from drangue_client.store.values import RunRow

if TYPE_CHECKING:
    from opentelemetry.context import Context


class Place:
    """Where a turn stands in its trace: the ids of its root, and what is above that. An SDK asks it for ids."""

    def __init__(self, trace_id: int, span_id: int, above: int | None, flags: int) -> None:
        self._trace_id = trace_id
        self._span_id = span_id
        self._above = above
        self._flags = flags

    @classmethod
    def of(cls, row: RunRow, turn: int, sdk: Any) -> Place:
        """The place of a turn of a run: the first turn is the root of the trace, later ones are below it."""
        given = str(row.overrides.get("traceparent", "")).split("-")
        caller: int | None
        if given[1:]:
            trace_id, caller, flags = (int(part, 16) for part in given[1:4])
        else:  # every process comes to the same answer by itself
            trace_id, caller = _digest(f"run:{row.run_id}", 16), None
            flags = int(sdk.sampler.should_sample(None, trace_id, "run").decision.is_sampled())
        root = _digest(f"turn:{row.run_id}:1", 8)
        if turn == 1:
            return cls(trace_id, root, caller, flags)
        return cls(trace_id, _digest(f"turn:{row.run_id}:{turn}", 8), root, flags)

    def again(self, row: RunRow, time: int) -> Place:
        """The place below this one of what came after the turn was resumed for the so-many-th time."""
        return Place(
            self._trace_id, _digest(f"again:{row.run_id}:{self._span_id}:{time}", 8), self._span_id, self._flags
        )

    def is_trace_id_random(self) -> bool:
        return False

    def generate_trace_id(self) -> int:
        return self._trace_id

    def generate_span_id(self) -> int:
        return self._span_id

    def context(self) -> Context:
        """The context whose current span is the root."""
        return self._at(self._span_id)

    def above(self) -> Context:
        """The context the root is begun in."""
        from opentelemetry.context import Context

        return Context() if self._above is None else self._at(self._above)

    def _at(self, span_id: int) -> Context:
        from opentelemetry import trace
        from opentelemetry.context import Context

        there = trace.SpanContext(self._trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(self._flags))
        return trace.set_span_in_context(trace.NonRecordingSpan(there), Context())


def _digest(text: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256(f"drangue:{text}".encode()).digest()[:size], "big")
