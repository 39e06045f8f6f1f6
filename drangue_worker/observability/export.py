"""The tracer a worker is configured with, and the way its spans leave the process.

OpenTelemetry's own environment variables say where to (`OTEL_EXPORTER_OTLP_ENDPOINT` and its like). A provider that the
application has set already is left as it is.
"""

from __future__ import annotations

import importlib
import os
import socket
from importlib.util import find_spec
from typing import Any

from drangue_client.errors import SettingsError
from drangue_client.settings import Settings
from drangue_worker.observability.otel import MISSING, OTelTracer
from drangue_worker.observability.tracers import ConsoleTracer, NullTracer, Tracer


def tracer_of(settings: Settings) -> Tracer:
    """The tracer that `DRANGUE_TRACER` names. SettingsError for a redaction that cannot be imported, ImportError with
    what to install where OpenTelemetry is missing."""
    if settings.tracer == "console":
        return ConsoleTracer()
    if settings.tracer == "otel":
        _set_provider()
        return OTelTracer(capture_content=settings.trace_content, redact=_function_at(settings.trace_redact))
    return NullTracer()


def check_tracer(settings: Settings) -> None:
    """Raise what `tracer_of` would, and set nothing up: a worker says at its start what would stop every step."""
    if settings.tracer == "otel":
        _function_at(settings.trace_redact)
        if any(_missing(name) for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")):
            raise SettingsError(f"DRANGUE_TRACER is otel. {MISSING}")


def _missing(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:  # a package above it
        return True


def flush(settings: Settings) -> None:
    """Send what is still waiting; a process that ends without it loses its last seconds. Repeating is safe."""
    if settings.tracer != "otel":
        return
    from opentelemetry import trace

    provider: Any = trace.get_tracer_provider()
    if hasattr(provider, "force_flush"):
        provider.force_flush()


def _set_provider() -> None:
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ImportError(MISSING) from error
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    this: dict[str, str | int] = {"process.pid": os.getpid(), "host.name": socket.gethostname()}
    resource = Resource(this).merge(Resource.create())  # what the environment says goes first
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "drangue"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _function_at(place: str) -> Any:
    if not place:
        return None
    module, colon, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None) if colon else None
    except Exception as error:  # a module may raise anything
        why = f"{type(error).__name__}: {error}"
        raise SettingsError(f"DRANGUE_TRACE_REDACT names {place!r}, which cannot be imported ({why}).") from error
    if not callable(found):
        raise SettingsError(f"DRANGUE_TRACE_REDACT names {place!r}; it must be pkg.module:function.")
    return found
