"""Seeing what an agent does: tracers while it runs, log lines for those on call."""

from drangue_worker.observability.otel import OTelTracer
from drangue_worker.observability.tracers import ConsoleTracer, NullTracer, Tracer

__all__ = ["ConsoleTracer", "NullTracer", "OTelTracer", "Tracer"]
