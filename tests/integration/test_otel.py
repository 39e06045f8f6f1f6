"""Whole runs as OpenTelemetry sees them: which spans, in which nesting, and that nothing said in them gets out."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from drangue_client.errors import DrangueError
from drangue_client.messages import ModelResponse, ToolCall
from drangue_worker import Agent, PermanentError, TransientError, tool
from drangue_worker.observability import OTelTracer
from drangue_worker.testing import FakeModel, RecordingTracer

ROOT = Path(__file__).resolve().parents[2]
MARKER = "sesame"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def otel(exporter: InMemorySpanExporter) -> trace.Tracer:
    """A tracer whose spans `exporter` holds once they have ended."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test")


@tool
def read(path: str) -> str:
    """Read a file."""
    return f"{path} holds {MARKER} too"


def a_model() -> FakeModel:
    """Calls a tool twice at once, thinking and talking of the marker, then answers with it."""
    calls = [ToolCall("c1", "read", {"path": f"{MARKER}.txt"}), ToolCall("c2", "read", {"path": "other.txt"})]
    ask = ModelResponse(
        text=f"I read {MARKER}.txt.",
        reasoning=f"What is {MARKER}?",
        tool_calls=calls,
        usage={"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 30},
        stop_reason="tool_calls",
    )
    return FakeModel([ask, f"It says {MARKER}."])


def run(tracer: Any, **given: Any) -> None:
    """One run with the marker in its instructions, prompt, thoughts, calls, results and answer."""
    agent = Agent(a_model(), [read], f"Never say {MARKER}.", tracer=tracer, **given)
    assert MARKER in agent.run_sync(f"What of {MARKER}?", run_id="r1").output


def told(span: ReadableSpan) -> str:
    """Everything a span exports, as one text."""
    return str(json.loads(span.to_json()))


def test_a_run_is_a_tree_of_its_steps(exporter: InMemorySpanExporter, otel: trace.Tracer) -> None:
    """The run at the root, its model and tool calls below it, parallel ones too."""
    run(OTelTracer(otel))
    spans = exporter.get_finished_spans()
    assert sorted(span.name for span in spans) == ["model", "model", "run", "tool", "tool"]
    (root,) = [span for span in spans if span.parent is None]
    assert root.name == "run"
    assert {span.parent.span_id for span in spans if span.parent} == {root.context.span_id if root.context else None}
    assert len({span.context.trace_id for span in spans if span.context}) == 1
    for span in spans:
        assert (span.attributes or {})["gen_ai.conversation.id"] == "r1"
        assert span.status.status_code is StatusCode.UNSET


def test_a_model_span_carries_its_tokens(exporter: InMemorySpanExporter, otel: trace.Tracer) -> None:
    """They are what a run costs."""
    run(OTelTracer(otel))
    found = [dict(span.attributes or {}) for span in exporter.get_finished_spans() if span.name == "model"]
    assert [one["gen_ai.usage.input_tokens"] for one in found] == [40, 10]
    assert [one["gen_ai.usage.output_tokens"] for one in found] == [5, 5]
    assert {one["gen_ai.request.model"] for one in found} == {"fake"}
    assert json.loads(found[0]["usage"]) == {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 30}


def test_nothing_said_in_a_run_leaves_it_by_default(exporter: InMemorySpanExporter, otel: trace.Tracer) -> None:
    """Not in an attribute, an event or a status, whatever a span is told of in time to come."""
    run(OTelTracer(otel))
    assert [span.name for span in exporter.get_finished_spans() if MARKER in told(span)] == []


def test_what_is_captured_is_redacted(exporter: InMemorySpanExporter, otel: trace.Tracer) -> None:
    """All of it passes by one function."""
    run(OTelTracer(otel, capture_content=True, redact=lambda key, value: value.replace(MARKER, "[gone]")))
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans if MARKER in told(span)] == []
    first, second = (dict(span.attributes or {}) for span in spans if span.name == "tool")
    assert {first["arguments"], second["arguments"]} == {'{"path": "[gone].txt"}', '{"path": "other.txt"}'}
    assert "holds [gone] too" in first["content"]
    model = next(dict(span.attributes or {}) for span in spans if span.name == "model")
    (message,) = json.loads(model["gen_ai.output.messages"])
    assert [part["type"] for part in message["parts"]] == ["reasoning", "text", "tool_call", "tool_call"]
    assert dict(spans[-1].attributes or {})["output"] == "It says [gone]."


def test_a_redactor_that_raises_fails_no_run(exporter: InMemorySpanExporter, otel: trace.Tracer) -> None:
    """And lets nothing out."""

    def redact(key: str, value: str) -> str:
        raise LookupError(value)

    run(OTelTracer(otel, capture_content=True, redact=redact))
    spans = exporter.get_finished_spans()
    assert len(spans) == 5
    assert [span.name for span in spans if MARKER in told(span)] == []


def test_a_failure_marks_the_call_and_the_run(exporter: InMemorySpanExporter, otel: trace.Tracer) -> None:
    """By its type; its message quotes the prompt."""

    class Refusing(FakeModel):
        async def generate(self, **_: Any) -> ModelResponse:
            raise PermanentError(f"400: your prompt, {MARKER!r}, is refused")

    with pytest.raises(DrangueError):
        Agent(Refusing(), tracer=OTelTracer(otel)).run_sync(f"What of {MARKER}?")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {span.status.status_code for span in spans.values()} == {StatusCode.ERROR}
    assert (spans["model"].attributes or {})["error.type"] == "drangue_client.errors.PermanentError"
    assert (spans["run"].attributes or {})["error.type"]
    assert not [name for name, span in spans.items() if MARKER in told(span)]


def test_each_failed_attempt_of_a_tool_is_marked(exporter: InMemorySpanExporter, otel: trace.Tracer) -> None:
    """The run goes on, so nothing is raised; its category is told, its message is content."""
    raised = [TransientError(MARKER), PermanentError(MARKER)]

    @tool(retries=1, backoff=0)
    def fetch() -> str:
        """Get it."""
        raise raised.pop(0)

    agent = Agent(FakeModel([[("fetch", {})], "It is gone."]), [fetch], tracer=OTelTracer(otel))
    assert agent.run_sync("go").output == "It is gone."
    spans = [span for span in exporter.get_finished_spans() if span.name == "tool"]
    assert [(span.attributes or {})["error.type"] for span in spans] == ["transient", "permanent"]
    assert [(span.attributes or {})["drangue.attempt"] for span in spans] == [1, 2]
    assert {span.status.status_code for span in spans} == {StatusCode.ERROR}
    assert not [span for span in exporter.get_finished_spans() if MARKER in told(span)]


def test_a_tools_own_words_are_content_whatever_they_look_like(
    exporter: InMemorySpanExporter, otel: trace.Tracer
) -> None:
    """A result in the shape of a failure is still what a tool said, and stays here."""

    @tool
    def pay() -> dict[str, Any]:
        """Says no in its own way."""
        return {"ok": False, "error": {"category": f"card of {MARKER} declined"}}

    Agent(FakeModel([[("pay", {})], "It was declined."]), [pay], tracer=OTelTracer(otel)).run_sync("go")
    spans = exporter.get_finished_spans()
    assert {span.status.status_code for span in spans} == {StatusCode.UNSET}
    assert not [span.name for span in spans if MARKER in told(span)]


def test_a_run_that_was_resumed_has_one_root(exporter: InMemorySpanExporter, otel: trace.Tracer) -> None:
    """What came after the failure stands below it, with ids of its own."""
    answers: list[Any] = [PermanentError("gone"), "back"]

    class Failing(FakeModel):
        async def generate(self, **asked: Any) -> ModelResponse:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return ModelResponse(text=answer)

    agent = Agent(Failing(), tracer=OTelTracer(otel))
    with pytest.raises(PermanentError):
        agent.run_sync("go", run_id="r1")
    assert agent.run_sync(run_id="r1").output == "back"
    spans = exporter.get_finished_spans()
    assert len({span.context.span_id for span in spans if span.context}) == len(spans) == 4
    (root,) = [span for span in spans if span.parent is None]
    assert [(span.attributes or {}).get("status") for span in spans if span.name == "run"] == ["failed", "completed"]
    assert root.context is not None
    assert {span.parent.span_id for span in spans if span.parent} == {root.context.span_id}


def test_a_tracer_of_somebody_elses_gets_a_run_like_any_other(
    exporter: InMemorySpanExporter, otel: trace.Tracer
) -> None:
    """Only the SDK's own can be told which ids to use; with another one, the steps are below the process's own span."""

    class Wrapped(trace.Tracer):
        def start_span(self, *given: Any, **more: Any) -> trace.Span:
            return otel.start_span(*given, **more)

        def start_as_current_span(self, *given: Any, **more: Any) -> Any:
            return otel.start_as_current_span(*given, **more)

    Agent(FakeModel(["done"]), tracer=OTelTracer(Wrapped())).run_sync("go")
    model, root = exporter.get_finished_spans()
    assert (model.name, root.name, root.parent) == ("model", "run", None)
    assert model.parent is not None
    assert root.context is not None
    assert model.parent.span_id == root.context.span_id


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_what_a_tool_traces_itself_is_below_its_call(
    exporter: InMemorySpanExporter, otel: trace.Tracer, kind: str
) -> None:
    """In a thread as on the loop."""

    def query() -> str:
        with otel.start_as_current_span("query"):
            return "rows"

    async def query_async() -> str:
        await asyncio.sleep(0)
        return query()

    function = query if kind == "thread" else query_async
    function.__doc__ = "Ask the database."
    Agent(FakeModel([[(function.__name__, {})], "done"]), [tool(function)], tracer=OTelTracer(otel)).run_sync("go")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["query"].parent == spans["tool"].context


def test_a_recording_tracer_sees_a_run_too() -> None:
    """For tests of agents, without OpenTelemetry."""
    tracer = RecordingTracer()
    run(tracer)
    assert [name for name, _ in tracer.spans] == ["model", "tool", "tool", "model", "run"]
    assert MARKER in tracer.spans[1][1]["content"]
    assert MARKER in tracer.spans[-1][1]["output"]


# Other packages (redis, for one) load OpenTelemetry when it is there, so what counts is who asks for it.
WHO_ASKS = """
import builtins, sys
original, asking = builtins.__import__, set()
def watch(name, globals=None, *rest):
    if name.split(".")[0] == "opentelemetry":
        asking.add((globals or {}).get("__name__", ""))
    return original(name, globals, *rest)
builtins.__import__ = watch
import drangue_worker, drangue_worker.observability
drangue_worker.observability.OTelTracer
print(*[name for name in asking if name.startswith("drangue")])
"""

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
import drangue_worker
from drangue_worker.observability import OTelTracer
assert not [name for name in sys.modules if name.startswith("opentelemetry.")]
try:
    OTelTracer()
except ImportError as error:
    print(error)
"""

SDKS = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from drangue_worker import Agent, AnthropicModel, OpenAIModel, OTelTracer
from drangue_worker.testing import Provider, Reply
exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
with Provider([Reply("hello")] * 2) as server:
    Agent(AnthropicModel("claude", base_url=server.anthropic_base_url), tracer=OTelTracer()).run_sync("go")
    Agent(OpenAIModel("gpt", base_url=server.base_url), tracer=OTelTracer()).run_sync("go")
for span in exporter.get_finished_spans():
    print(span.name, span.attributes.get("gen_ai.response.model"))
"""

GLOBAL = """
from drangue_worker import Agent
from drangue_worker.observability import OTelTracer
from drangue_worker.testing import FakeModel
agent = Agent(FakeModel(), tracer=OTelTracer())
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
agent.run_sync("go")
for span in exporter.get_finished_spans():
    print(span.name, span.instrumentation_scope.name, span.instrumentation_scope.schema_url)
"""


def python(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_drangue_asks_for_no_opentelemetry() -> None:
    """It is an extra, and not a small one."""
    assert python(WHO_ASKS) == [""]


def test_without_opentelemetry_only_its_tracer_is_missing() -> None:
    """Named by the import, explained when it is wanted."""
    assert python(WITHOUT) == ["OTelTracer needs OpenTelemetry. Install it with: pip install 'drangue-worker[otel]'"]


def test_the_default_is_the_global_provider_even_one_set_later() -> None:
    """An agent is often made at import, before the application configures anything."""
    assert python(GLOBAL) == [
        "model drangue https://opentelemetry.io/schemas/1.41.0",
        "run drangue https://opentelemetry.io/schemas/1.41.0",
    ]


def test_a_call_through_an_sdk_has_one_span() -> None:
    """Anthropic's makes spans of its own: with both, every token would be counted twice."""
    assert python(SDKS) == ["model claude", "run None", "model gpt", "run None"]
