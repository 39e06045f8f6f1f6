"""The trace a run belongs to: where a caller has an OpenTelemetry span open, the run's trace goes on below it.

OpenTelemetry is asked only where the program has loaded it. Nothing is exported here.
"""

from __future__ import annotations

import sys


def current_traceparent() -> str | None:
    """The W3C `traceparent` of the span that is open in this context, if OpenTelemetry is loaded and one is."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")
