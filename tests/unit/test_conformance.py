"""The conformance checks find what they are for: each is shown things that are almost right, and says what is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from drangue_worker import InMemoryStore, MemoryItem, ModelResponse, RuleRouter, SingleModel, ToolCall
from drangue_worker.testing import (
    FakeModel,
    check_memory,
    check_model_interface,
    check_router,
    check_tracer,
)
from drangue_worker.testing.conformance import Checks
from tests.kit.anything import Unprintable

# Memories


class Remembering:
    """A right one, for the others to depart from."""

    def __init__(self) -> None:
        self.items: dict[str, MemoryItem] = {}

    async def recall(self, query: str, *, limit: int = 5) -> Any:
        return list(self.items.values())[:limit]

    async def remember(self, item: MemoryItem) -> Any:
        self.items[item.key] = item


class Blocking(Remembering):
    def recall(self, query: str, *, limit: int = 5) -> Any:
        return []


class Nothing(Remembering):
    async def recall(self, query: str, *, limit: int = 5) -> Any:
        return None


class Texts(Remembering):
    async def recall(self, query: str, *, limit: int = 5) -> Any:
        return ["what was said"]


class Boundless(Remembering):
    async def recall(self, query: str, *, limit: int = 5) -> Any:
        return list(self.items.values())


class Telling(Remembering):
    async def remember(self, item: MemoryItem) -> Any:
        return item


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (Blocking, r"recall\(query\) to be awaited"),
        (Nothing, "to give a list; it gave None"),
        (Texts, "to give items with a key; it gave 'what was said'"),
        (Boundless, "at most 2 items.*; it gave 3"),
        (Telling, r"what remember\(item\) gives: expected None; found MemoryItem"),
    ],
)
def test_a_memory_that_is_almost_right_is_told_what_is_not(memory: Any, message: str) -> None:
    """The engine takes no other; a memory that fails is one the run goes on without."""
    asyncio.run(check_memory(Remembering))
    with pytest.raises(AssertionError, match=message):
        asyncio.run(check_memory(memory))


# Tracers


class Span:
    def set(self, key: str, value: Any) -> None:
        """Take anything."""


class Printing(Span):
    def set(self, key: str, value: Any) -> None:
        f"{value}".encode()


class Named:
    @contextmanager
    def span(self, name: str, **attrs: Any) -> Iterator[Any]:
        yield Span()


class Texting:
    @contextmanager
    def span(self, name: str, /, **attrs: Any) -> Iterator[Any]:
        yield Printing()


class Swallowing:
    @contextmanager
    def span(self, name: str, /, **attrs: Any) -> Iterator[Any]:
        try:
            yield Span()
        except Exception:
            return


@pytest.mark.parametrize(
    ("tracer", "message"),
    [
        (Named, "spans to raise nothing; TypeError: .*multiple values for argument 'name'"),
        (Texting, "spans to raise nothing; UnicodeEncodeError"),
        (Swallowing, "an exception of the block to come out.*; what came out is None"),
    ],
)
def test_a_tracer_that_is_almost_right_is_told_what_is_not(tracer: Any, message: str) -> None:
    """It only looks on; one that fails is logged and loses its span."""
    with pytest.raises(AssertionError, match=message):
        asyncio.run(check_tracer(tracer))


# Routers


class Alternating(SingleModel):
    def choose(self, *, messages: Any, step_index: int) -> Any:
        self.model = FakeModel()
        return self.model


class Naming(SingleModel):
    def choose(self, *, messages: Any, step_index: int) -> Any:
        return "gpt-4o"


class Trimming(SingleModel):
    def choose(self, *, messages: Any, step_index: int) -> Any:
        del messages[:-1]
        return self.model


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (Alternating, r"choose\(messages=..., step_index=0\) to give the same model each time"),
        (Naming, "to give a model; it gave 'gpt-4o'"),
        (Trimming, r"the messages after choose\(messages=..., step_index=1\)"),
    ],
)
def test_a_router_that_is_almost_right_is_told_what_is_not(router: Any, message: str) -> None:
    """A retried step must ask the model that the first attempt asked."""
    asyncio.run(check_router(lambda: RuleRouter(FakeModel(), [(lambda messages, step: step > 3, FakeModel())])))
    with pytest.raises(AssertionError, match=message):
        asyncio.run(check_router(lambda: router(FakeModel())))


# Models


class Says:
    """Answers with this."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def generate(self, *, system: str, messages: Any, tools: Any, idempotency_key: Any = None) -> Any:
        return self.answer


class Keyless:
    async def generate(self, *, system: str, messages: Any, tools: Any) -> Any:
        return ModelResponse("hello")


class Waiting:
    def generate(self, **_: Any) -> Any:
        return ModelResponse("hello")


class Adding(FakeModel):
    async def generate(self, *, messages: Any, **asked: Any) -> Any:
        messages.append({"role": "assistant", "content": "hello"})
        return ModelResponse("hello")


class Streams:
    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    async def generate(self, *, on_delta: Any = None, **_: Any) -> Any:
        for piece in self.pieces if on_delta else ():
            await on_delta(piece)
        return ModelResponse("hello")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Waiting(), r"generate\(\) to be awaited"),
        (Says("hello"), "to give a ModelResponse; 'hello' has no text"),
        (Says(ModelResponse(None)), "response.text to be a str; it is None"),  # type: ignore[arg-type]
        (Says(ModelResponse(tool_calls=None)), "response.tool_calls to be a list; it is None"),  # type: ignore[arg-type]
        (Says(ModelResponse(tool_calls=[ToolCall("c", "look", "{}")])), "arguments of a tool call to be a dict"),  # type: ignore[arg-type]
        (Says(ModelResponse(usage={"input_tokens": -1})), "usage to hold counts; input_tokens is -1"),
        (Says(ModelResponse(reasoning=["because"])), "response.reasoning to be text or None"),  # type: ignore[arg-type]
        (Adding(), r"the messages after generate\(\)"),
        (Streams("hel", "", "lo"), "pieces of text, none empty"),
        (Streams("hel"), "what was streamed, put together: expected 'hello'; found 'hel'"),
    ],
)
def test_a_model_that_is_almost_right_is_told_what_is_not(model: Any, message: str) -> None:
    """What the engine reads of an answer must be there, or its run fails at night."""
    with pytest.raises(AssertionError, match=message):
        asyncio.run(check_model_interface(model))


def test_a_model_that_does_not_take_what_it_is_given_raises_by_itself() -> None:
    """Python says it as well as anybody could."""
    with pytest.raises(TypeError, match="idempotency_key"):
        asyncio.run(check_model_interface(Keyless()))
    asyncio.run(check_model_interface(Streams("hel", "lo")))


@pytest.mark.parametrize("check", [check_memory, check_tracer, check_router], ids=lambda one: one.__name__)
def test_a_check_wants_a_factory_and_says_so(check: Any) -> None:
    """What is handed in already made may have been used before."""
    with pytest.raises(TypeError, match=r"factory is .*; it must be a function or a class that gives a"):
        asyncio.run(check(Unprintable()))


# Without an event loop


class Amnesiac(InMemoryStore):
    def events(self, run_id: str, *, after: int = -1) -> Any:
        return []


@pytest.mark.parametrize(
    ("what", "given", "message"),
    [
        ("store", Amnesiac, "the places of three events"),
        ("store", type("Generous", (InMemoryStore,), {"begin": lambda *_: True}), "to be recorded once|does not hold"),
        ("model", Says("hello"), "to give a ModelResponse"),
        ("router", lambda: Naming(FakeModel()), "to give a model"),
        ("memory", Nothing, "to give a list"),
        ("tracer", Swallowing, "an exception of the block"),
    ],
)
def test_a_check_without_an_event_loop_finds_the_same(what: str, given: Any, message: str) -> None:
    """Most tests are no coroutines; a store is put to all that there is for stores."""
    with pytest.raises(AssertionError, match=message):
        getattr(Checks(), what)(given)


def test_a_model_is_closed_after_a_check_without_an_event_loop() -> None:
    """Its connections are of the loop that is over, and nobody else could close them."""
    closed: list[bool] = []

    class Connected(FakeModel):
        async def aclose(self) -> None:
            asyncio.get_running_loop()
            closed.append(True)

    Checks().model(Connected(["hello"]))
    with pytest.raises(AssertionError):
        Checks().model(type("Broken", (Connected,), {"generate": Waiting.generate})())
    assert closed == [True, True]


def test_within_an_event_loop_the_coroutine_is_named() -> None:
    """A loop cannot be started inside another."""

    async def test() -> None:
        with pytest.raises(RuntimeError, match=r"Use `await check_router\(...\)` there"):
            Checks().router(lambda: SingleModel(FakeModel()))

    asyncio.run(test())
