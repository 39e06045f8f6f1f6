"""OpenTelemetry: the spans of a run, for whatever collector an operator already has.

The invariant: content (what was asked, thought, called with, returned and answered) leaves the process only where
`capture_content` says so, and then only as `redact` gave it back. Whatever goes wrong with a value costs that value,
never the run.

Spans and attributes keep the names every tracer is told, `run`, `model` and `tool`. Beside them stand those of the
OpenTelemetry semantic conventions for generative AI, version 1.41.0, the last release before they moved to a repository
of their own: `gen_ai.operation.name` is `invoke_agent`, `chat` or `execute_tool`, tokens are `gen_ai.usage.*`, and
content, where captured, is `gen_ai.input.messages` and its like as JSON text.

OpenTelemetry is imported when a tracer is made, not with this module. No provider, exporter or sampler is configured
here and no metric is recorded. Nothing joins the spans of a run that several processes worked on but
`gen_ai.conversation.id`, which is the run's id.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import structlog

from drangue_client.events import normalise
from drangue_worker.observability.logs import get_logger
from drangue_worker.observability.tracers import LiveSpan

if TYPE_CHECKING:
    from opentelemetry import trace

Redact = Callable[[str, str], Any]

log = get_logger("drangue.otel")

SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"
MISSING = "OTelTracer needs OpenTelemetry. Install it with: pip install 'drangue-worker[otel]'"

_OPERATIONS = {"run": "invoke_agent", "model": "chat", "tool": "execute_tool"}

# What our own spans carry that is not content. Any other text on them is taken for content: an attribute that somebody
# adds and forgets to list here is missing from a trace, not leaked into one.
_PLAIN = {
    "run": {"run_id", "agent", "status"},
    "model": {"model", "response_model", "stop_reason", "usage"},
    "tool": {"name", "call_id"},
}
# Content by its name, on a span of anybody's.
_CONTENT = {"arguments", "content", "input", "instructions", "messages", "output", "prompt", "reasoning", "system"}
_CONTENT |= {"text", "thinking", "tool_calls"}

_NAMES = {
    ("run", "run_id"): "gen_ai.conversation.id",
    ("run", "agent"): "gen_ai.agent.name",
    ("model", "model"): "gen_ai.request.model",
    ("model", "response_model"): "gen_ai.response.model",
    ("tool", "name"): "gen_ai.tool.name",
    ("tool", "call_id"): "gen_ai.tool.call.id",
    ("tool", "arguments"): "gen_ai.tool.call.arguments",
    ("tool", "content"): "gen_ai.tool.call.result",
}
_MODEL_FAMILIES = (("claude", "anthropic"), (("gpt-", "chatgpt-", "o1", "o3", "o4"), "openai"))
_INT64 = range(-(2**63), 2**63)  # what the wire format has room for


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
            from opentelemetry import trace
        except ImportError as error:
            raise ImportError(MISSING) from error
        if otel_tracer is not None and not hasattr(otel_tracer, "start_span"):
            raise TypeError(f"otel_tracer is {otel_tracer!r}; it must be a tracer, as provider.get_tracer() gives.")
        if redact is not None and (not callable(redact) or inspect.iscoroutinefunction(redact)):
            raise TypeError(f"redact is {redact!r}; it must be a plain function of a key and a text.")
        self._trace = trace
        self._tracer = _global_tracer() if otel_tracer is None else otel_tracer
        self._capture_content = bool(capture_content)
        self._redact = redact

    @contextmanager
    def span(self, name: str, /, **attrs: Any) -> Iterator[LiveSpan]:
        """A span that lasts as long as the block. An exception marks it as an error, an interruption does not."""
        kind = self._trace.SpanKind.CLIENT if name == "model" else self._trace.SpanKind.INTERNAL
        plain = {key: value for key, value in attrs.items() if not _is_content(name, key, value)}
        span = self._tracer.start_span(name, kind=kind, attributes=_opening(name, plain))
        live = _Span(name, span, self._content)
        # OpenTelemetry would record the exception's message, which is content: providers quote the prompt they refuse.
        with self._trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            for key, value in attrs.items():
                if key not in plain:
                    live.set(key, value)
            try:
                yield live
            except Exception as error:
                live.fail(error, self._trace.StatusCode.ERROR)
                raise
            finally:
                live.finish()

    def _content(self, key: str, value: Any) -> str | None:
        """What of a content may be exported, None for nothing of it. Raises what its `__str__` or `redact` raises."""
        if not self._capture_content:
            return None
        text = _text(value)
        if self._redact is None:
            return text
        redacted = self._redact(key, text)
        return None if redacted is None else _text(redacted)


class _Span:
    """A span that is still open."""

    def __init__(self, name: str, span: trace.Span, content: Callable[[str, Any], str | None]) -> None:
        self._name = name
        self._span = span
        self._content = content
        self._said: dict[str, str] = {}  # captured content, redacted
        self._stop_reason: str | None = None

    def set(self, key: str, value: Any) -> None:
        """Attach one more attribute; a value of any kind, None for none."""
        if value is not None and self._span.is_recording():
            self._attach(_guarded(key, self._exported, key, value))

    def fail(self, error: Exception, status: trace.StatusCode) -> None:
        """Mark the span as an error of this type; the message is content."""
        if not self._span.is_recording():
            return
        module, kind = type(error).__module__, type(error).__qualname__
        kind = kind if module == "builtins" else f"{module}.{kind}"
        told = _guarded("exception.message", self._message_of, error)
        self._attach({"error.type": kind})
        self._span.add_event("exception", {"exception.type": kind} | told)
        self._span.set_status(status, told.get("exception.message", kind))

    def finish(self) -> None:
        """Attach what the conventions want in one piece."""
        if self._said and self._name in ("model", "run"):
            self._attach(_guarded("gen_ai.output.messages", self._answer))

    def _exported(self, key: str, value: Any) -> dict[str, Any]:
        if not _is_content(self._name, key, value):
            attributes = _attributes(self._name, key, value)
            if (self._name, key) == ("model", "stop_reason"):
                self._stop_reason = str(attributes[key])
            return attributes
        text = self._content(key, value)
        if text is None:
            return {}
        self._said[key] = text
        match self._name, key:
            case "model", "system":
                return {"gen_ai.system_instructions": _text([{"type": "text", "content": text}])}
            case "model", "messages":
                messages = [_message(one) for one in _objects(text)]
                return {"gen_ai.input.messages": _text(messages)} if messages else {}
            case own:
                return {name: text for name in (key, _NAMES.get(own)) if name}

    def _message_of(self, error: Exception) -> dict[str, Any]:
        message = self._content("exception.message", error)
        return {"exception.message": message} if message else {}

    def _answer(self) -> dict[str, Any]:
        """What the model or the agent answered, its parts in the order of their making."""
        parts = [{"type": "reasoning", "content": self._said["reasoning"]}] if self._said.get("reasoning") else []
        parts += [{"type": "text", "content": self._said[key]} for key in ("text", "output") if self._said.get(key)]
        parts += _calls(_objects(self._said.get("tool_calls", "[]")))
        message: dict[str, Any] = {"role": "assistant", "parts": parts}
        if self._stop_reason:
            message["finish_reason"] = self._stop_reason
        return {"gen_ai.output.messages": _text([message])} if parts else {}

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
    if span in _OPERATIONS:
        opening["gen_ai.operation.name"] = _OPERATIONS[span]
        run_id = structlog.contextvars.get_contextvars().get("run_id")  # bound by the step that is under way
        if run_id is not None:
            opening["gen_ai.conversation.id"] = str(run_id)
    if span == "tool":
        opening["gen_ai.tool.type"] = "function"
    for key, value in plain.items():
        if value is not None:
            opening |= _guarded(key, _attributes, span, key, value)
    return opening


def _guarded(key: str, make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The attributes that `make` gives; none where somebody's `__str__` or `redact` raises."""
    try:
        return make(*arguments)
    except Exception as error:  # its message may quote the value, so only its type is told
        log.warning("attribute_withheld", key=key, kind=type(error).__name__)
        return {}


def _is_content(span: str, key: str, value: Any) -> bool:
    if key in _CONTENT:
        return True
    return span in _PLAIN and key not in _PLAIN[span] and not isinstance(value, bool | int | float)


def _attributes(span: str, key: str, value: Any) -> dict[str, Any]:
    """An attribute that is not content, under our name and under those of the conventions."""
    if (span, key) == ("model", "usage"):
        return _usage(value)
    attribute = _attribute(value)
    attributes: dict[str, Any] = {name: attribute for name in (key, _NAMES.get((span, key))) if name}
    if (span, key) == ("model", "stop_reason"):
        attributes["gen_ai.response.finish_reasons"] = [str(attribute)]
    if (span, key) == ("model", "model"):
        provider = next((who for names, who in _MODEL_FAMILIES if str(attribute).lower().startswith(names)), None)
        if provider:
            attributes["gen_ai.provider.name"] = provider
    return attributes


def _usage(usage: Any) -> dict[str, Any]:
    """Token counts. Ours never overlap; the conventions count cached tokens as input, too."""
    if not isinstance(usage, Mapping):
        return {}
    counts = {name: n for name, n in usage.items() if isinstance(n, int | float) and not isinstance(n, bool)}
    written, read = counts.get("cache_creation_input_tokens"), counts.get("cache_read_input_tokens")
    sent = counts.get("input_tokens")
    named = {
        "gen_ai.usage.input_tokens": None if sent is None else sent + (written or 0) + (read or 0),
        "gen_ai.usage.output_tokens": counts.get("output_tokens"),
        "gen_ai.usage.cache_creation.input_tokens": written,
        "gen_ai.usage.cache_read.input_tokens": read,
    }
    return {"usage": _text(counts)} | {name: _attribute(n) for name, n in named.items() if n is not None}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A neutral message in the conventions' form."""
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        answered = {"type": "tool_call_response", "id": message.get("call_id"), "response": content}
        return {"role": role, "parts": [answered]}
    parts = [{"type": "text", "content": content}] if content else []
    return {"role": role, "parts": parts + _calls(message.get("tool_calls") or [])}


def _calls(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "tool_call"} | {key: call.get(key) for key in ("id", "name", "arguments")} for call in calls]


def _objects(text: str) -> list[dict[str, Any]]:
    """The objects of a JSON list; none where redaction left no such list."""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _attribute(value: Any) -> bool | int | float | str | None:
    """A value as an attribute may have it: JSON text for what is structured, text for what has no room."""
    plain = normalise(value)
    if isinstance(plain, bool | float) or plain is None:
        return plain
    if isinstance(plain, int):
        return plain if plain in _INT64 else str(plain)
    return _text(plain)


def _text(value: Any) -> str:
    plain = normalise(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
