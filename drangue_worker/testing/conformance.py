"""Conformance checks: what the engine relies on in a store, a memory, a tracer, a router or a model of your own.

    async def test_my_memory_is_one():
        await check_memory(MyMemory)

Each check is a coroutine for any runner and raises AssertionError that says what was expected; `Checks` has them for a
test that is none. A factory is called without arguments and gives something fresh each time; a store is closed
afterwards. Runs get ids of their own, so a store may be on a database that holds others.

There is no check of an engine, since drangue has one for every store, and none of a lease on a run: what excludes a
second worker is the claim of a step, and `check_store_claims` checks that. What cannot be seen from one process, such
as two of them on one store at the same moment, is not checked.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import fields
from typing import Any

from drangue_client import checks
from drangue_client.messages import Message, ModelResponse
from drangue_client.store.port import Log
from drangue_worker.memory import Memory, MemoryItem
from drangue_worker.models.model import Model, takes_deltas
from drangue_worker.models.routing import Router
from drangue_worker.observability.tracers import Tracer
from drangue_worker.testing.expected import equal, of_kind, that
from drangue_worker.testing.store_checks import (
    check_store,
    check_store_claims,
    check_store_idempotent_append,
    check_store_with_agent,
)
from drangue_worker.tools.tool import tool

__all__ = [
    "check_memory",
    "check_model_interface",
    "check_router",
    "check_store",
    "check_store_claims",
    "check_store_idempotent_append",
    "check_store_with_agent",
    "check_tracer",
]


async def check_memory(factory: Callable[[], Memory]) -> None:
    """A memory recalls a list of items with `key`, `value` and `expires_at`, no more than asked for, and remembers
    without giving anything back. Whether it finds the right ones is its author's to test."""
    checks.function("factory", factory, "a function or a class that gives a memory")
    memory = factory()
    _items(await _awaited(memory.recall("anything"), "recall(query)"), "recall(query)")
    for number in range(3):
        item = MemoryItem(f"k{number}", {"what was": "said"} if number else "what was said", expires_at=4e9)
        equal(None, await _awaited(memory.remember(item), "remember(item)"), "what remember(item) gives")
    found = _items(await memory.recall("what was said", limit=2), "recall(query, limit=2)")
    that(len(found) <= 2, f"at most 2 items of recall(query, limit=2); it gave {len(found)}")


async def check_tracer(factory: Callable[[], Tracer]) -> None:
    """A tracer takes nested spans and attributes of any kind, raises nothing, and lets a block's exception pass."""
    checks.function("factory", factory, "a function or a class that gives a tracer")
    tracer = factory()

    class Odd:
        def __repr__(self) -> str:
            return "<odd>"

    values = ("text", "", 1, 2.5, True, None, [1, "a"], {"a": {"b": 1}}, float("nan"), b"bytes", Odd(), "\x00\ud800")
    try:
        with tracer.span("run", run_id="r", agent="a") as run:
            with tracer.span("model", seq=1, model="fake", system="", messages=[]) as model:
                model.set("tool_calls", [{"id": "c", "name": "look", "arguments": {"n": 1}}])
                model.set("usage", {"input_tokens": 1, "output_tokens": 2})
            with tracer.span("tool", seq=2, name="look", arguments={"n": 1}, call_id="c") as called:
                called.set("content", "ünï \U0001f600")
            for number, value in enumerate(values):
                run.set(f"value_{number}", value)
            run.set("output", "done")
    except Exception as error:
        raise AssertionError(f"expected spans to raise nothing; {type(error).__name__}: {error}") from error
    raised, passed = ValueError("of the block"), None
    try:
        with tracer.span("tool", seq=3, name="look", arguments={}):
            raise raised
    except Exception as error:
        passed = error
    that(passed is raised, f"an exception of the block to come out of its span as it is; what came out is {passed!r}")


async def check_router(factory: Callable[[], Router]) -> None:
    """A router chooses a model, the same one for the same input, and leaves the messages as they are."""
    checks.function("factory", factory, "a function or a class that gives a router")
    router = factory()
    hello: list[Message] = [{"role": "user", "content": "hello"}]
    talk = [*hello, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "go on"}]
    for messages, step_index in ((hello, 0), (talk, 1), (talk, 7)):
        given = copy.deepcopy(messages)
        model = router.choose(messages=given, step_index=step_index)
        what = f"choose(messages=..., step_index={step_index})"
        that(callable(getattr(model, "generate", None)), f"{what} to give a model; it gave {model!r}")
        that(router.choose(messages=given, step_index=step_index) is model, f"{what} to give the same model each time")
        equal(messages, given, f"the messages after {what}")


async def check_model_interface(model: Model) -> None:
    """A model answers the four keywords with what the engine reads, and shows, if it streams, what it answers.

    It is asked once, and a second time if it streams: give a real one only where that may cost something.
    """
    checks.has("model", model, "generate", "a model")
    seen: list[str] = []

    async def on_delta(text: str) -> None:
        seen.append(text)

    ways: list[dict[str, Any]] = [{}, {"on_delta": on_delta}] if takes_deltas(model) else [{}]
    for more in ways:
        messages = [{"role": "user", "content": "Say hello."}]
        given = {"system": "Be brief.", "messages": messages, "tools": [_look], "idempotency_key": "check:1", **more}
        response = await _awaited(model.generate(**given), "generate()")
        equal([{"role": "user", "content": "Say hello."}], messages, "the messages after generate()")
        _response(response)
        if more:
            that(all(isinstance(one, str) and one for one in seen), f"pieces of text, none empty; it showed {seen!r}")
            equal(response.text, "".join(seen), "what was streamed, put together")


class Checks:
    """The checks for a test that is no coroutine: each starts an event loop of its own. RuntimeError where one runs."""

    def store(self, factory: Callable[[], Log]) -> None:
        """`check_store`, and all the other checks that there are of a store."""
        for check in (check_store, check_store_idempotent_append, check_store_claims, check_store_with_agent):
            _blocking(check, factory)

    def model(self, model: Model) -> None:
        """`check_model_interface`, after which the model is closed, if it can be."""

        async def check_and_close(model: Any) -> None:
            try:
                await check_model_interface(model)
            finally:
                if hasattr(model, "aclose"):  # its connections are of this loop
                    await model.aclose()

        _blocking(check_and_close, model, name="check_model_interface")

    def router(self, factory: Callable[[], Router]) -> None:
        """`check_router`."""
        _blocking(check_router, factory)

    def memory(self, factory: Callable[[], Memory]) -> None:
        """`check_memory`."""
        _blocking(check_memory, factory)

    def tracer(self, factory: Callable[[], Tracer]) -> None:
        """`check_tracer`."""
        _blocking(check_tracer, factory)


def _blocking(check: Callable[[Any], Coroutine[Any, Any, None]], subject: Any, *, name: str | None = None) -> None:
    if asyncio._get_running_loop() is not None:
        name = name or check.__name__
        raise RuntimeError(f"the check is made in a running event loop. Use `await {name}(...)` there.")
    asyncio.run(check(subject))


@tool
def _look(place: str) -> str:
    """Look somewhere."""
    return place


def _response(response: Any) -> None:
    for one in fields(ModelResponse):
        that(hasattr(response, one.name), f"generate() to give a ModelResponse; {response!r} has no {one.name}")
    of_kind(response.text, str, "response.text")
    of_kind(response.tool_calls, list, "response.tool_calls")
    for call in response.tool_calls:
        for name, wanted in (("id", str), ("name", str), ("arguments", dict)):
            of_kind(getattr(call, name, None), wanted, f"{name} of a tool call")
    if response.usage is not None:
        of_kind(response.usage, Mapping, "response.usage, unless it is None,")
        for name, count in response.usage.items():
            that(type(count) is int and count >= 0, f"usage to hold counts; {name} is {count!r}")
    for name in ("reasoning", "stop_reason", "model"):
        value = getattr(response, name)
        that(value is None or isinstance(value, str), f"response.{name} to be text or None; it is {value!r}")


def _awaited(work: Any, what: str) -> Any:
    that(inspect.isawaitable(work), f"{what} to be awaited; it gave {work!r} at once")
    return work


def _items(found: Any, what: str) -> Sequence[Any]:
    that(isinstance(found, Sequence) and not isinstance(found, str), f"{what} to give a list; it gave {found!r}")
    for item in found:
        for name in ("key", "value", "expires_at"):
            that(hasattr(item, name), f"{what} to give items with a {name}; it gave {item!r}")
        expires = item.expires_at
        that(expires is None or isinstance(expires, int | float), f"expires_at to be a time or None; it is {expires!r}")
    return list(found)
