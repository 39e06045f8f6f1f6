"""OpenTelemetry: the spans of a run, for whatever collector an operator already has.

One run is one trace, although its steps ran in many processes and it was paused for a day: its trace and its root have
ids made from the run's own, or from the span that was open where the run was submitted. Each process exports the steps
it did, below that root; whoever records the end of a turn exports the root, with the times that the log has.

The invariant: content (what was asked, thought, called with, returned and answered) leaves the process only where
`capture_content` says so, and then only as `redact` gave it back. Whatever goes wrong with a value costs that value,
never the run.

Spans and attributes keep the names every tracer is told, `run`, `model` and `tool`. Beside them stand those of the
semantic conventions (`genai`). OpenTelemetry is imported when a tracer is made, not with this module. No provider,
exporter or sampler is configured here and no metric is recorded.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import structlog

from drangue_client import checks
from drangue_client.events import Event
from drangue_client.run import Run
from drangue_client.store.values import RunRow
from drangue_worker.observability.genai import (
    NAMES,
    OPERATIONS,
    as_text,
    attributes_of,
    calls_of,
    is_content,
    message_of,
    objects_in,
)
from drangue_worker.observability.logs import get_logger
from drangue_worker.observability.place import Place
from drangue_worker.observability.tracers import LiveSpan

if TYPE_CHECKING:
    from opentelemetry import trace

Redact = Callable[[str, str], Any]

log = get_logger("drangue.otel")

SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"
MISSING = "OTelTracer needs OpenTelemetry. Install it with: pip install 'drangue-worker[otel]'"


class OTelTracer:
    """A tracer onto OpenTelemetry; parent and child follow OpenTelemetry's current context.

    `otel_tracer` is where spans begin, by default the global provider's tracer named "drangue", which follows a
    provider that is set later. With `capture_content`, prompts, arguments, results and answers are exported too, each
    first given to `redact(key, text)`: the attribute's name ("arguments", "content", "text", "tool_calls", "reasoning",
    "output", "system", "messages", "exception.message") and its text, JSON text where it is structured. What it
    returns is exported instead; None, or an exception, withholds the value. It is called on the event loop, for a span
    that is recorded.

    Raises ImportError where OpenTelemetry is missing, or its SDK while no other provider is set, and TypeError for
    arguments of another kind.
    """

    def __init__(
        self, otel_tracer: trace.Tracer | None = None, *, capture_content: bool = False, redact: Redact | None = None
    ) -> None:
        try:
            from opentelemetry import context, trace
        except ImportError as error:
            raise ImportError(MISSING) from error
        if otel_tracer is not None and not hasattr(otel_tracer, "start_span"):
            raise TypeError(checks.refusal("otel_tracer", otel_tracer, "a tracer, as provider.get_tracer() gives"))
        if redact is not None and (not callable(redact) or inspect.iscoroutinefunction(redact)):
            raise TypeError(checks.refusal("redact", redact, "a plain function of a key and a text"))
        self._trace = trace
        self._context = context
        self._tracer = _global_tracer() if otel_tracer is None else otel_tracer
        self._capture_content = checks.flag("capture_content", capture_content)
        self._redact = redact

    @contextmanager
    def span(self, name: str, /, **attrs: Any) -> Iterator[LiveSpan]:
        """A span that lasts as long as the block. An exception marks it as an error, an interruption does not."""
        kind = self._trace.SpanKind.CLIENT if name == "model" else self._trace.SpanKind.INTERNAL
        plain = {key: value for key, value in attrs.items() if not is_content(name, key, value)}
        span = self._tracer.start_span(name, kind=kind, attributes=_opening(name, plain))
        live = _Span(name, span, self._content, self._trace.StatusCode.ERROR)
        # OpenTelemetry would record the exception's message, which is content: providers quote the prompt they refuse.
        with self._trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            for key, value in attrs.items():
                if key not in plain:
                    live.set(key, value)
            try:
                yield live
            except Exception as error:
                live.fail(error)
                raise
            finally:
                live.finish()

    @contextmanager
    def joined(self, row: RunRow, turn: int) -> Iterator[None]:
        """Spans opened in the block belong below the root of this turn."""
        sdk = self._sdk
        if sdk is None:
            yield
            return
        parent = Place.of(row, turn, sdk)
        token = self._context.attach(parent.context())
        try:
            yield
        finally:
            self._context.detach(token)

    def ended(self, row: RunRow, run: Run, events: Sequence[Event]) -> None:
        """Export the root of a turn that has ended, from its log; where it had failed before, another one below it."""
        sdk = self._sdk
        turns = [event for event in events if event.type in ("run_started", "user_message")]
        if sdk is None or len(turns) < run.turn:
            return
        began, ended = turns[run.turn - 1], events[-1]
        resumed = [event for event in events if event.type == "run_resumed" and event.seq > began.seq]
        place = Place.of(row, run.turn, sdk)
        if resumed:
            place, began = place.again(row, len(resumed)), resumed[-1]
        exact = copy.copy(sdk)
        exact.id_generator = place  # so that the root gets the ids its steps were put below
        attributes = _opening("run", {"run_id": row.run_id, "agent": row.agent})
        span = exact.start_span("run", context=place.above(), start_time=_nanoseconds(began), attributes=attributes)
        live = _Span("run", span, self._content, self._trace.StatusCode.ERROR)
        for key, value in (("status", run.status), ("reason", run.reason), ("output", ended.payload.get("output"))):
            live.set(key, value)
        live.finish()
        if run.ended == "failed":
            span.set_attribute("error.type", str(run.reason))
            span.set_status(self._trace.StatusCode.ERROR, str(run.reason))
        span.end(_nanoseconds(ended))

    @property
    def joins(self) -> bool:
        """Whether spans of many processes can be put into one trace: with the SDK's own tracers, and no others."""
        return self._sdk is not None

    @property
    def _sdk(self) -> Any:
        """The SDK's tracer, where there is one: only it lets a span have ids of its own."""
        found = getattr(self._tracer, "_tracer", self._tracer)  # a proxy stands for one that is set later
        return found if hasattr(found, "id_generator") and hasattr(found, "sampler") else None

    def _content(self, key: str, value: Any) -> str | None:
        """What of a content may be exported, None for nothing of it. Raises what its `__str__` or `redact` raises."""
        if not self._capture_content:
            return None
        text = as_text(value)
        if self._redact is None:
            return text
        redacted = self._redact(key, text)
        return None if redacted is None else as_text(redacted)


def _nanoseconds(event: Event) -> int:
    return int((event.ts or 0.0) * 1e9) + int((event.duration_ms or 0.0) * 1e6)


class _Span:
    """A span that is still open."""

    def __init__(
        self, name: str, span: trace.Span, content: Callable[[str, Any], str | None], error: trace.StatusCode
    ) -> None:
        self._name = name
        self._error = error
        self._span = span
        self._content = content
        self._said: dict[str, str] = {}  # captured content, redacted
        self._stop_reason: str | None = None

    def set(self, key: str, value: Any) -> None:
        """Attach one more attribute; a value of any kind, None for none."""
        if value is not None and self._span.is_recording():
            self._attach(_guarded(key, self._exported, key, value))
            if (self._name, key) == ("tool", "error"):  # the model is told of it, so nothing is raised
                self._span.set_status(self._error, str(value))

    def fail(self, error: Exception) -> None:
        """Mark the span as an error of this type; the message is content."""
        if not self._span.is_recording():
            return
        module, kind = type(error).__module__, type(error).__qualname__
        kind = kind if module == "builtins" else f"{module}.{kind}"
        told = _guarded("exception.message", self._message_of, error)
        self._attach({"error.type": kind})
        self._span.add_event("exception", {"exception.type": kind} | told)
        self._span.set_status(self._error, told.get("exception.message", kind))

    def finish(self) -> None:
        """Attach what the conventions want in one piece."""
        if self._said and self._name in ("model", "run"):
            self._attach(_guarded("gen_ai.output.messages", self._answer))

    def _exported(self, key: str, value: Any) -> dict[str, Any]:
        if not is_content(self._name, key, value):
            attributes = attributes_of(self._name, key, value)
            if (self._name, key) == ("model", "stop_reason"):
                self._stop_reason = str(attributes[key])
            return attributes
        text = self._content(key, value)
        if text is None:
            return {}
        self._said[key] = text
        match self._name, key:
            case "model", "system":
                return {"gen_ai.system_instructions": as_text([{"type": "text", "content": text}])}
            case "model", "messages":
                messages = [message_of(one) for one in objects_in(text)]
                return {"gen_ai.input.messages": as_text(messages)} if messages else {}
            case own:
                return {name: text for name in (key, NAMES.get(own)) if name}

    def _message_of(self, error: Exception) -> dict[str, Any]:
        message = self._content("exception.message", error)
        return {"exception.message": message} if message else {}

    def _answer(self) -> dict[str, Any]:
        """What the model or the agent answered, its parts in the order of their making."""
        parts = [{"type": "reasoning", "content": self._said["reasoning"]}] if self._said.get("reasoning") else []
        parts += [{"type": "text", "content": self._said[key]} for key in ("text", "output") if self._said.get(key)]
        parts += calls_of(objects_in(self._said.get("tool_calls", "[]")))
        message: dict[str, Any] = {"role": "assistant", "parts": parts}
        if self._stop_reason:
            message["finish_reason"] = self._stop_reason
        return {"gen_ai.output.messages": as_text([message])} if parts else {}

    def _attach(self, attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(name, value)


def _global_tracer() -> trace.Tracer:
    from opentelemetry import trace

    # The API alone, which other packages bring along, takes every span and exports none.
    unset = isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    if unset and find_spec("opentelemetry.sdk") is None:
        raise ImportError(MISSING)
    return trace.get_tracer("drangue", schema_url=SCHEMA_URL)


def _opening(span: str, plain: Mapping[str, Any]) -> dict[str, Any]:
    """What a sampler sees: the attributes a span begins with, content apart."""
    opening: dict[str, Any] = {}
    if span in OPERATIONS:
        opening["gen_ai.operation.name"] = OPERATIONS[span]
        bound = structlog.contextvars.get_contextvars()  # by the step that is under way
        if "run_id" in bound:
            opening["gen_ai.conversation.id"] = str(bound["run_id"])
        opening |= {f"drangue.{name}": bound[name] for name in ("step", "attempt") if name in bound}
    if span == "tool":
        opening["gen_ai.tool.type"] = "function"
    for key, value in plain.items():
        if value is not None:
            opening |= _guarded(key, attributes_of, span, key, value)
    return opening


def _guarded(key: str, make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The attributes that `make` gives; none where somebody's `__str__` or `redact` raises."""
    try:
        return make(*arguments)
    except Exception as error:  # its message may quote the value, so only its type is told
        log.warning("attribute_withheld", key=key, kind=type(error).__name__)
        return {}
