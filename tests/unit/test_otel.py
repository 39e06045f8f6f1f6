"""What OpenTelemetry is given: which attributes, under which names, and what never leaves."""

from __future__ import annotations

import asyncio
import enum
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import SpanKind, StatusCode

from drangue_worker.observability import OTelTracer
from drangue_worker.observability import otel as otel_module


class Exported:
    """A provider in memory, and what it exported."""

    def __init__(self, sampler: Any = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.otel = self.provider.get_tracer("test")

    def tracer(self, **options: Any) -> OTelTracer:
        return OTelTracer(self.otel, **options)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())


def span_of(name: str, /, *, options: dict[str, Any] | None = None, later: Any = None, **attrs: Any) -> ReadableSpan:
    """The one span exported for a block that opens it with `attrs` and sets `later`."""
    exported = Exported()
    with exported.tracer(**options or {}).span(name, **attrs) as span:
        for key, value in (later or {}).items():
            span.set(key, value)
    (one,) = exported.spans
    return one


def attributes_of(name: str, /, **given: Any) -> dict[str, Any]:
    return dict(span_of(name, **given).attributes or {})


class Level(enum.StrEnum):
    HIGH = "high"


class Mute:
    """An object that cannot be written down."""

    def __str__(self) -> str:
        raise RuntimeError("sk-secret")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# Values


@pytest.mark.parametrize(
    ("value", "exported"),
    [
        ("text", "text"),
        ("", ""),
        (True, True),
        (7, 7),
        (0.5, 0.5),
        (Level.HIGH, "high"),
        ({"b": [1, None], "ä": "ö"}, '{"b": [1, null], "ä": "ö"}'),
        (("a", 1), '["a", 1]'),
        (float("nan"), "nan"),
        (2**63, "9223372036854775808"),
        ("half a pair \ud800", "half a pair \\ud800"),
        (ValueError("told"), "told"),
    ],
)
def test_a_value_is_exported_as_what_it_is_or_as_json_text(value: Any, exported: Any) -> None:
    """And the wire format has room for it, or the span's other attributes would suffer."""
    span = span_of("own", key=value)
    found = (span.attributes or {})["key"]
    assert exported == found
    assert type(exported) is type(found)
    encoded = encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]
    assert [one.key for one in encoded.attributes] == ["key"]


def test_what_is_set_later_is_exported_too_and_none_is_not() -> None:
    """Most is known only when a call is over."""
    assert attributes_of("own", a=0, b=None, later={"a": 1, "c": 2, "d": None}) == {"a": 1, "c": 2}


@pytest.mark.parametrize("value", [Mute(), nested(100_000)])
def test_a_value_that_cannot_be_written_down_costs_itself_only(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    """No run fails for its trace, and what is said of the loss says nothing of the value."""
    options = {"capture_content": True}
    assert attributes_of("own", a=value, b=1, later={"c": value, "text": value}, options=options) == {"b": 1}
    assert "attribute_withheld" in caplog.text
    assert "sk-secret" not in caplog.text


def test_setting_after_the_end_changes_nothing() -> None:
    """A tool's thread may outlive its call."""
    exported = Exported()
    with exported.tracer(capture_content=True).span("tool") as span:
        pass
    span.set("content", "late")
    assert "content" not in (exported.spans[0].attributes or {})


# Names


def test_a_run_is_an_agent_s_invocation() -> None:
    """The names every tracer is told, and those a backend for generative AI looks for."""
    span = span_of("run", run_id="r1", agent="deploys", later={"status": "paused"})
    assert span.name == "run"
    assert span.kind is SpanKind.INTERNAL
    assert dict(span.attributes or {}) == {
        "run_id": "r1",
        "agent": "deploys",
        "status": "paused",
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.conversation.id": "r1",
        "gen_ai.agent.name": "deploys",
    }


def test_a_model_call_is_a_chat_with_its_tokens() -> None:
    """Ours never overlap; the conventions count what came from the cache, or went into it, as input."""
    usage = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 2}
    later = {"usage": usage, "stop_reason": "end_turn", "response_model": "claude-b", "duration_ms": 12.5}
    span = span_of("model", seq=2, model="claude-a", later=later)
    assert span.name == "model"
    assert span.kind is SpanKind.CLIENT
    assert dict(span.attributes or {}) == {
        "seq": 2,
        "model": "claude-a",
        "response_model": "claude-b",
        "stop_reason": "end_turn",
        "usage": json.dumps(usage),
        "duration_ms": 12.5,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-a",
        "gen_ai.response.model": "claude-b",
        "gen_ai.response.finish_reasons": ("end_turn",),
        "gen_ai.usage.input_tokens": 42,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 30,
        "gen_ai.usage.cache_creation.input_tokens": 2,
    }


def test_a_tool_call_is_an_execution() -> None:
    """Without a word of what it was called with."""
    span = span_of("tool", seq=3, name="read", arguments={"path": "x"}, later={"content": "y", "duration_ms": 1.0})
    assert span.kind is SpanKind.INTERNAL
    assert dict(span.attributes or {}) == {
        "seq": 3,
        "name": "read",
        "duration_ms": 1.0,
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "read",
        "gen_ai.tool.type": "function",
    }


@pytest.mark.parametrize(
    ("model", "provider"),
    [("claude-x", "anthropic"), ("gpt-9", "openai"), ("o3", "openai"), ("llama-4", None), ("fake", None)],
)
def test_a_provider_is_named_where_the_model_s_name_tells(model: str, provider: str | None) -> None:
    """A wrong one would be worse than none."""
    assert provider == attributes_of("model", model=model).get("gen_ai.provider.name")


@pytest.mark.parametrize(
    ("usage", "exported"),
    [
        (None, {}),
        ("many", {}),
        ({}, {"usage": "{}"}),
        ({"output_tokens": 3}, {"usage": '{"output_tokens": 3}', "gen_ai.usage.output_tokens": 3}),
        ({"input_tokens": True, "note": "you asked for plans"}, {"usage": "{}"}),
    ],
)
def test_of_usage_only_the_counts_are_exported(usage: Any, exported: dict[str, Any]) -> None:
    """A model of somebody's own may report anything."""
    assert {"gen_ai.operation.name": "chat", **exported} == attributes_of("model", later={"usage": usage})


def test_a_step_s_spans_name_the_run_it_belongs_to() -> None:
    """In a fleet nothing else does: each worker sees some steps of a run."""
    with structlog.contextvars.bound_contextvars(run_id="r7"):
        assert attributes_of("model")["gen_ai.conversation.id"] == "r7"
        assert "gen_ai.conversation.id" not in attributes_of("own")
        assert attributes_of("run", run_id="r8")["gen_ai.conversation.id"] == "r8"


def test_a_sampler_sees_what_a_span_begins_with_but_no_content() -> None:
    """Whether to keep a span is often a question of its model."""
    seen: list[Any] = []

    class Watching(type(ALWAYS_ON)):  # type: ignore[misc]
        def should_sample(self, *args: Any, **more: Any) -> Any:
            seen.append(args[4] if len(args) > 4 else more["attributes"])
            return super().should_sample(*args, **more)

    exported = Exported(Watching(ALWAYS_ON.should_sample(None, 0, "x").decision))
    with exported.tracer(capture_content=True).span("tool", name="read", arguments={"a": "secret"}):
        pass
    assert dict(seen[0])["gen_ai.tool.name"] == "read"
    assert "secret" not in str(seen)


# Content

SAID: dict[str, dict[str, Any]] = {
    "run": {"output": "secret", "input": "secret", "anything": "secret", "more": ["secret"]},
    "model": {
        "text": "secret",
        "reasoning": "secret",
        "tool_calls": [{"id": "c1", "name": "read", "arguments": {"path": "secret"}}],
        "system": "secret",
        "messages": [{"role": "user", "content": "secret"}],
        "thinking_blocks": [{"thinking": "secret"}],
    },
    "tool": {"arguments": {"path": "secret"}, "content": "secret", "question": "secret"},
    "own": {"prompt": "secret", "text": "secret", "output": {"a": "secret"}},
}


@pytest.mark.parametrize("name", SAID)
def test_no_content_leaves_unless_it_is_asked_for(name: str) -> None:
    """Nor does an attribute that this module has never heard of: it may hold anything."""
    assert "secret" not in str(attributes_of(name, **SAID[name]))
    assert "secret" not in str(attributes_of(name, later=SAID[name]))
    assert "secret" in str(attributes_of(name, later=SAID[name], options={"capture_content": True}))


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("at", ["open", "later"])
def test_all_content_passes_by_the_redactor_as_text(name: str, at: str) -> None:
    """One function to write, whatever the shape of a value, and no attribute goes round it."""
    seen: dict[str, str] = {}

    def redact(key: str, value: str) -> str:
        seen[key] = value
        return value.replace("secret", "[gone]")

    given = SAID[name] if at == "open" else {"later": SAID[name]}
    found = attributes_of(name, options={"capture_content": True, "redact": redact}, **given)
    assert "secret" not in str(found)
    assert "[gone]" in str(found)
    assert set(SAID[name]) == set(seen)
    assert {str} == {type(value) for value in seen.values()}


def failing(key: str, value: str) -> str:
    raise ValueError(f"cannot redact {value}")


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("redact", [failing, lambda key, value: None, lambda key, value: Mute()])
def test_what_the_redactor_does_not_give_back_is_withheld(
    name: str, redact: Callable[[str, str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on, the value stays here, and it is not in a log line either."""
    exported = Exported()
    with exported.tracer(capture_content=True, redact=redact).span(name, a_count=1, **SAID[name]) as span:
        span.set("duration_ms", 2.0)
    found = dict(exported.spans[0].attributes or {})
    assert "secret" not in str(found)
    assert not {key for key in found if key in SAID[name]}
    assert (found["a_count"], found["duration_ms"]) == (1, 2.0)
    assert "secret" not in caplog.text


def test_a_redactor_may_give_back_another_kind_of_value() -> None:
    """It becomes an attribute as any other."""
    redact = lambda key, value: {"sha256": len(value)}  # noqa: E731
    found = attributes_of("tool", later={"content": "four"}, options={"capture_content": True, "redact": redact})
    assert found["content"] == found["gen_ai.tool.call.result"] == '{"sha256": 4}'


def test_a_redactor_cannot_change_what_the_run_works_with() -> None:
    """The arguments on a span are those the tool is about to be called with."""
    arguments = {"password": ["hunter2"]}
    redact = lambda key, value: json.dumps({"password": "***"})  # noqa: E731
    found = attributes_of("tool", arguments=arguments, options={"capture_content": True, "redact": redact})
    assert found["arguments"] == found["gen_ai.tool.call.arguments"] == '{"password": "***"}'
    assert arguments == {"password": ["hunter2"]}


def test_captured_content_has_the_conventions_shapes() -> None:
    """A backend shows it as a conversation."""
    call = {"id": "c1", "name": "read", "arguments": {"path": "x"}}
    messages = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "call_id": "c1", "name": "read", "content": "cold"},
    ]
    later = {"text": "It is cold.", "reasoning": "Hm.", "tool_calls": [call], "stop_reason": "stop"}
    found = attributes_of(
        "model", system="Be brief.", messages=messages, later=later, options={"capture_content": True}
    )
    part = {"type": "tool_call", **call}
    assert json.loads(found["gen_ai.system_instructions"]) == [{"type": "text", "content": "Be brief."}]
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "look"}]},
        {"role": "assistant", "parts": [part]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "cold"}]},
    ]
    thought, said = {"type": "reasoning", "content": "Hm."}, {"type": "text", "content": "It is cold."}
    assert json.loads(found["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [thought, said, part], "finish_reason": "stop"}
    ]
    assert (found["text"], found["reasoning"]) == ("It is cold.", "Hm.")
    assert json.loads(found["tool_calls"]) == [call]
    assert not {"system", "messages"} & set(found)


def test_a_run_s_answer_is_its_output() -> None:
    """Captured like any other."""
    found = attributes_of("run", later={"output": "done"}, options={"capture_content": True})
    parts = [{"type": "text", "content": "done"}]
    assert found["output"] == "done"
    assert json.loads(found["gen_ai.output.messages"]) == [{"role": "assistant", "parts": parts}]


def test_a_span_of_somebody_else_s_keeps_to_its_own_names() -> None:
    """A tool may trace what it likes; a text on it is no model's answer."""
    assert attributes_of("own", later={"text": "hi"}, options={"capture_content": True}) == {"text": "hi"}


@pytest.mark.parametrize("left", ["[gone]", '{"a": 1}', "[1, 2]", '[{"role": "assistant", "tool_calls": "x"}]'])
def test_content_of_which_redaction_left_no_conversation_is_not_made_one(left: str) -> None:
    """It breaks no run."""
    options = {"capture_content": True, "redact": lambda key, value: left}
    found = attributes_of("model", messages=SAID["model"]["messages"], later={"tool_calls": []}, options=options)
    assert found["tool_calls"] == left
    assert "secret" not in str(found)


def test_a_span_that_is_not_sampled_costs_no_redaction() -> None:
    """Nor any JSON."""
    asked: list[str] = []
    exported = Exported(ALWAYS_OFF)
    tracer = exported.tracer(capture_content=True, redact=lambda key, value: asked.append(key))
    with tracer.span("tool", arguments={"a": 1}) as span:
        span.set("content", "cold")
    with pytest.raises(LookupError), tracer.span("model"):
        raise LookupError
    assert (exported.spans, asked) == ([], [])


# Errors


class OwnError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("secret"), "ValueError"), (OwnError("secret"), f"{__name__}.OwnError")]
)
def test_an_exception_marks_its_span_and_goes_on(error: Exception, kind: str) -> None:
    """With its type alone: providers quote the prompt they refuse."""
    exported = Exported()
    with pytest.raises(type(error)), exported.tracer().span("model", model="m"):
        raise error
    (span,) = exported.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == kind
    assert (span.attributes or {})["error.type"] == kind
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("exception", {"exception.type": kind})
    ]
    assert "secret" not in span.to_json()


def test_an_error_s_message_is_content() -> None:
    """Captured and redacted as such."""
    redact = lambda key, value: f"{key}: {value.replace('secret', '[gone]')}"  # noqa: E731
    exported = Exported()
    with pytest.raises(ValueError), exported.tracer(capture_content=True, redact=redact).span("model"):  # noqa: PT011
        raise ValueError("the prompt 'secret' is refused")
    (span,) = exported.spans
    message = "exception.message: the prompt '[gone]' is refused"
    assert span.status.description == message
    assert (span.events[0].attributes or {})["exception.message"] == message
    assert "secret" not in span.to_json()


@pytest.mark.parametrize("interruption", [asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
def test_an_interruption_is_no_error(interruption: type[BaseException]) -> None:
    """A worker that is told to stop gives its step back; that is no failure of the model."""
    exported = Exported()
    with pytest.raises(interruption), exported.tracer().span("model"):
        raise interruption
    (span,) = exported.spans
    assert span.status.status_code is StatusCode.UNSET
    assert span.end_time is not None


def test_spans_nest_by_the_current_context_and_leave_it_as_it_was() -> None:
    """Ours under the caller's, a tool's own under ours."""
    exported = Exported()
    tracer = exported.tracer()
    with exported.otel.start_as_current_span("request"), tracer.span("run"):
        with tracer.span("tool"), exported.otel.start_as_current_span("query"):
            pass
        with pytest.raises(LookupError), tracer.span("model"):
            raise LookupError
        with tracer.span("tool"):
            pass
    ids = {span.context.span_id: span.name for span in exported.spans if span.context}
    parents = [(span.name, ids.get(span.parent.span_id) if span.parent else None) for span in exported.spans]
    assert parents == [
        ("query", "tool"),
        ("tool", "run"),
        ("model", "run"),
        ("tool", "run"),
        ("run", "request"),
        ("request", None),
    ]
    assert trace.get_current_span() is trace.INVALID_SPAN


# Construction


def test_without_opentelemetry_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImportError, match=r"pip install 'drangue-worker\[otel\]'"):
        OTelTracer()


def test_an_api_without_an_sdk_is_reported_and_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other packages bring the API along, which takes every span and exports none."""
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: trace.ProxyTracerProvider())
    monkeypatch.setattr(otel_module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'drangue-worker\[otel\]'"):
        OTelTracer()
    assert OTelTracer(Exported().otel)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: Exported().provider)
    assert OTelTracer()


@pytest.mark.parametrize("wrong", ["drangue", 1])
def test_what_is_no_tracer_is_refused(wrong: Any) -> None:
    """At once, not in the middle of the first run."""
    with pytest.raises(TypeError, match=r"otel_tracer is .* must be a tracer"):
        OTelTracer(wrong)


async def later(key: str, value: str) -> str:
    return value


@pytest.mark.parametrize("wrong", ["***", later])
def test_a_redactor_must_be_a_plain_function(wrong: Any) -> None:
    """What a coroutine would return is known too late."""
    with pytest.raises(TypeError, match=r"redact is .* must be a plain function"):
        OTelTracer(Exported().otel, capture_content=True, redact=wrong)
