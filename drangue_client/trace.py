"""A log as a tree of spans: one root for the run, a child for every model call and every tool call.

Pure, so that the console, an exporter and a page can draw the same tree. Only steps are spans; verdicts and other facts
stay in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from drangue_client.events import Event


@dataclass(frozen=True, slots=True)
class Span:
    """One node: `ts` is when it began (epoch seconds, None if unknown), `duration_ms` how long it took."""

    name: str
    attrs: dict[str, Any] = field(default_factory=dict)
    children: list[Span] = field(default_factory=list)
    ts: float | None = None
    duration_ms: float | None = None

    def render(self, indent: int = 0) -> str:
        """One line per node, two spaces per level; the duration in milliseconds where there is one."""
        timed = "" if self.duration_ms is None else f"  {self.duration_ms:.1f}ms"
        lines = ["  " * indent + self.name + timed]
        lines += [child.render(indent + 1) for child in self.children]
        return "\n".join(lines)


def spans(events: Sequence[Event], output: str) -> Span:
    """The tree of a log. The root's duration is the sum of its steps', so parallel steps count in full."""
    children = [
        Span(
            name="model" if event.type == "model_decision" else "tool",
            attrs={**event.payload, "step": event.step},
            ts=event.ts,
            duration_ms=event.duration_ms,
        )
        for event in events
        if event.type in ("model_decision", "tool_result")
    ]
    return Span(
        name="run",
        attrs={"output": output},
        children=children,
        ts=events[0].ts if events else None,
        duration_ms=sum(event.duration_ms or 0.0 for event in events),
    )
