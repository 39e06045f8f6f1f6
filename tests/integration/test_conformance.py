"""Everything of each kind that drangue ships passes the checks that it gives to others."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drangue_worker import (
    AnthropicModel,
    ConsoleTracer,
    FallbackModel,
    FallbackRouter,
    InMemoryStore,
    NullMemory,
    NullTracer,
    OpenAIModel,
    OTelTracer,
    PostgresStore,
    RuleRouter,
    SingleModel,
    SQLiteStore,
)
from drangue_worker.testing import (
    FakeModel,
    Provider,
    RecordingTracer,
    Reply,
    check_memory,
    check_model_interface,
    check_router,
    check_store,
    check_store_claims,
    check_store_idempotent_append,
    check_store_with_agent,
    check_tracer,
)
from tests.kit.inline import PLACES


@pytest.fixture(params=PLACES)
def factory(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """What makes an empty store in such a place; on Postgres, one on a database that others use as well."""
    if request.param == "memory":
        return InMemoryStore
    if request.param == "file":
        return lambda: SQLiteStore(tmp_path / f"{uuid.uuid4().hex}.db")
    url = request.getfixturevalue("database_url")
    return lambda: PostgresStore(url)


@pytest.mark.parametrize(
    "check",
    [check_store, check_store_idempotent_append, check_store_claims, check_store_with_agent],
    ids=lambda check: check.__name__,
)
def test_a_store_is_one(check: Any, factory: Callable[[], Any]) -> None:
    """Twice, since a check must leave nothing behind that the next one trips over."""
    asyncio.run(check(factory))
    asyncio.run(check(factory))


def test_a_memory_is_one() -> None:
    """The only one there is remembers nothing, which is allowed."""
    asyncio.run(check_memory(NullMemory))


@pytest.mark.parametrize("tracer", [NullTracer, lambda: ConsoleTracer(io.StringIO()), RecordingTracer, OTelTracer])
def test_a_tracer_is_one(tracer: Any) -> None:
    """Whatever somebody attaches to a span."""
    asyncio.run(check_tracer(tracer))


def test_a_tracer_that_exports_everything_is_one() -> None:
    """The spans are really made, and their content really written."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    asyncio.run(check_tracer(lambda: OTelTracer(provider.get_tracer("test"), capture_content=True)))
    assert [span.name for span in exporter.get_finished_spans()] == ["model", "tool", "run", "tool"]
    provider.shutdown()


@pytest.mark.parametrize(
    "router",
    [
        lambda: SingleModel(FakeModel()),
        lambda: RuleRouter(FakeModel(), [(lambda messages, step: len(messages) > 1, FakeModel())]),
        lambda: FallbackRouter(FakeModel(), FakeModel()),
    ],
)
def test_a_router_is_one(router: Any) -> None:
    """A fallback chooses the model that does the falling back."""
    asyncio.run(check_router(router))


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Says hello, and looks around."""
    with Provider([Reply(text="hello there", tool_calls=(("_look", {"place": "here"}),))]) as started:
        yield started


MODELS: dict[str, Callable[[Provider], Any]] = {
    "fake": lambda _: FakeModel(["hello"]),
    "openai": lambda provider: OpenAIModel("gpt-4o", base_url=provider.base_url),
    "anthropic": lambda provider: AnthropicModel("claude-x", base_url=provider.anthropic_base_url),
    "fallback": lambda provider: FallbackModel(OpenAIModel("gpt-4o", base_url=provider.base_url), FakeModel()),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_one(name: str, provider: Provider) -> None:
    """Through the real SDKs, asked in one piece and as a stream."""
    model = MODELS[name](provider)

    async def check() -> None:
        await check_model_interface(model)
        if hasattr(model, "aclose"):
            await model.aclose()

    asyncio.run(check())
    whole_and_streamed = [call.stream for call in provider.calls]
    assert whole_and_streamed == ([] if name == "fake" else [False, True])
    assert name != "fake" or len(model.calls) == 2
