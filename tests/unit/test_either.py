"""Calling what an author wrote, and asking a tool what became of a call that was interrupted."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import threading
from typing import Any

import pytest

from drangue_client.errors import ToolError, TransientError
from drangue_client.outcomes import unknown_outcome
from drangue_worker.tools.invoke import either, reconciled
from drangue_worker.tools.tool import Done, NotDone, Tool, tool

# Either way


def give() -> str:
    return "given"


async def give_later() -> str:
    await asyncio.sleep(0)
    return "given"


def hand_out() -> Any:
    return give_later()


class Given:
    def __call__(self) -> str:
        return "given"


class GivenLater:
    async def __call__(self) -> str:
        return await give_later()

    async def method(self) -> str:
        return await give_later()


WAYS: list[Any] = [
    give,
    give_later,
    hand_out,
    Given(),
    GivenLater(),
    GivenLater().method,
    functools.partial(functools.partial(give_later)),
    lambda: "given",
]


@pytest.mark.parametrize("function", WAYS, ids=lambda way: getattr(way, "__name__", type(way).__name__))
def test_a_function_gives_its_value_however_it_is_written(function: Any) -> None:
    """The text of a coroutine object once went into a conversation."""
    assert asyncio.run(either(function)) == "given"


def where(function: Any) -> list[str]:
    """The names of the threads in which a function, and whoever calls it, ran."""

    async def go() -> list[str]:
        return [await either(function), threading.current_thread().name]

    return asyncio.run(go())


def test_a_blocking_function_leaves_the_loop_and_a_coroutine_stays_on_it() -> None:
    """One hung guard must not hold up every step of the process; a client bound to the loop must stay there."""

    async def on_loop() -> str:
        return threading.current_thread().name

    one, other = where(lambda: threading.current_thread().name)
    assert one != other
    one, other = where(on_loop)
    assert one == other


def test_a_blocking_function_sees_the_context_it_was_called_in() -> None:
    """The log lines of a guard carry the run's ids by it."""
    run_id = contextvars.ContextVar("run_id", default="none")
    run_id.set("r1")
    assert asyncio.run(either(run_id.get)) == "r1"


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()], ids=repr
)
def test_what_would_end_more_than_the_call_ends_the_call(error: BaseException) -> None:
    """A validator, a fallback, a memory: none of them may end the process it runs in."""

    def raising() -> None:
        raise error

    async def raising_later() -> None:
        raise error

    for function in (raising, raising_later):
        if isinstance(error, KeyboardInterrupt) and function is raising_later:
            continue  # asyncio lets it through to whoever runs the loop, before anybody can catch it
        with pytest.raises(ToolError, match=r"it (raised|cancelled itself)"):
            asyncio.run(either(function))


def test_a_cancelled_caller_is_cancelled() -> None:
    """A worker that drains gives the step back; a failure of the guard's would be recorded instead."""

    release = threading.Event()

    async def go() -> bool:
        step = asyncio.create_task(either(release.wait))
        await asyncio.sleep(0)
        step.cancel()
        await asyncio.wait({step})
        return step.cancelled()

    try:
        assert asyncio.run(go())
    finally:
        release.set()


@pytest.mark.parametrize("over", [TransientError, TimeoutError])
def test_a_function_that_takes_too_long_is_no_longer_waited_for(over: type[Exception]) -> None:
    """A step holds its claim for as long as it waits; a guard that hangs must not hold it for ever."""
    release = threading.Event()

    async def later() -> None:
        await asyncio.Event().wait()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                continue

    async def go(function: Any) -> None:
        with pytest.raises(over, match=r"no answer within 0\.01 s"):
            await either(function, 0.01, over)
        release.set()

    for function in (lambda: release.wait(60), later, stubborn):
        release.clear()
        asyncio.run(go(function))


def test_a_function_within_its_time_is_left_in_peace() -> None:
    """A limit that always struck would go unnoticed above."""
    assert [asyncio.run(either(function, 60)) for function in (give, give_later)] == ["given"] * 2


# Reconciling


def asked(tool_: Tool, limit_s: float | None = None) -> tuple[str, str]:
    return asyncio.run(reconciled(tool_, "r1:2", limit_s))


UNKNOWN = ("unknown", unknown_outcome("wire"))


def wire(reconcile: Any) -> Tool:
    @tool(name="wire", reversible=False, reconcile=reconcile)
    def made(amount: int) -> str:
        raise AssertionError("it must not be run again")

    return made


def test_a_tool_that_cannot_be_asked_leaves_it_unknown() -> None:
    """It is never run again to find out."""
    assert asked(wire(None)) == UNKNOWN


@pytest.mark.parametrize(
    ("result", "content"),
    [("sent as r1:2", "sent as r1:2"), ({"id": 7}, '{"id": 7}'), (None, "null"), (False, "false"), ("", "")],
    ids=repr,
)
def test_what_is_known_to_be_done_is_told_as_its_result(result: Any, content: str) -> None:
    """As if the call had never been interrupted, whatever it returned; nothing is also a result."""
    assert asked(wire(lambda key: Done(result))) == ("done", content)


def test_it_is_asked_by_the_key_the_call_was_made_with() -> None:
    """The only thing both sides know the call by; sync or async alike."""

    async def later(key: str) -> Done:
        return Done(f"found {key}")

    found = [asked(wire(reconcile)) for reconcile in (later, lambda key: Done(f"found {key}"))]
    assert found == [("done", "found r1:2")] * 2


def test_what_is_known_not_to_be_done_is_told_apart() -> None:
    """Whether that is enough to make the call anew is for whoever knows if its process is dead."""
    assert asked(wire(lambda key: NotDone())) == ("not_done", unknown_outcome("wire"))


@pytest.mark.parametrize("answer", [None, False, True, "done", {"id": 7}, Done, NotDone], ids=repr)
def test_anything_but_done_leaves_it_unknown(answer: Any) -> None:
    """`not found` may mean not yet: only a clear word settles whether money moved."""
    assert asked(wire(lambda key: answer)) == UNKNOWN


@pytest.mark.parametrize("error", [LookupError("ledger is down"), SystemExit(1)], ids=repr)
def test_one_that_fails_knows_nothing_and_says_why(error: BaseException) -> None:
    """The reader of the log sees that it was asked."""

    def broken(key: str) -> None:
        raise error

    found, content = asked(wire(broken))
    assert found == "unknown"
    told = json.loads(content)["error"]
    expected = json.loads(unknown_outcome("wire"))["error"]
    assert told.pop("reconcile_error") in ("ledger is down", "it raised SystemExit: 1")
    assert told == expected


def test_one_that_hangs_is_not_waited_for() -> None:
    """The ledger it asks is the one whose failure interrupted the call."""
    release = threading.Event()
    try:
        found, content = asked(wire(lambda key: release.wait(60)), limit_s=0.01)
    finally:
        release.set()
    assert (found, "no answer within 0.01 s" in content) == ("unknown", True)
