"""`RecordingTracer`: a tracer that a test can ask what it was told.

The invariant: every span that was opened is in `spans` once it is closed, whether its block ended well or not. Nesting
is not recorded; the order of closing tells it, a parent after its children.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from drangue_worker.observability.tracers import Attributes, LiveSpan


class RecordingTracer:
    """Keeps every span in `spans`: (name, attributes) in closing order, the attributes with those set later."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, Any]]] = []

    @contextmanager
    def span(self, name: str, /, **attrs: Any) -> Iterator[LiveSpan]:
        """A span that lasts as long as the block and is then in `spans`."""
        span = Attributes(attrs)
        try:
            yield span
        finally:
            self.spans.append((name, span.attrs))
