"""Running one call of one tool: whatever it does, the run must survive it."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from drangue_client.errors import (
    AuthError,
    DrangueError,
    PermanentError,
    RateLimitError,
    ToolError,
    TransientError,
    ValidationError,
    WaitTimeout,
)
from drangue_worker.tools.invoke import (
    RAW_ARGUMENTS,
    category_of,
    check_arguments,
    failure,
    invoke,
    serialise,
    shadow,
    unknown_outcome,
)
from drangue_worker.tools.tool import Tool, ToolPolicy, tool


class Odd(BaseException):
    """Neither an Exception nor a signal: some libraries' own way out."""


def call(function: Callable[..., Any], arguments: dict[str, Any] | None = None, **options: Any) -> str:
    """Invoke a hand-made tool around `function`."""
    made = Tool("act", "", {}, function, **options)
    return asyncio.run(invoke(made, arguments or {}, "r1:2"))


def raising(error: BaseException) -> list[Callable[[], Any]]:
    """A sync and an async function that raise it."""

    def act() -> None:
        raise error

    async def act_async() -> None:
        raise error

    return [act, act_async]


# Calling


def test_sync_and_async_tools_are_called_alike() -> None:
    """The model cannot tell, and neither may the log."""

    def add(a: int, b: int) -> int:
        return a + b

    async def add_async(a: int, b: int) -> int:
        return a + b

    assert [call(function, {"a": 1, "b": 2}) for function in (add, add_async)] == ["3", "3"]


def test_the_key_goes_to_the_tool_that_wants_it_and_to_no_other() -> None:
    """It is what lets a payment provider recognise the second attempt; nothing the model sends may replace it."""

    def pay(**arguments: Any) -> Any:
        return arguments

    assert json.loads(call(pay, {"sum": 1}, wants_idempotency_key=True)) == {"sum": 1, "idempotency_key": "r1:2"}
    assert json.loads(call(pay, {"idempotency_key": "mine"}, wants_idempotency_key=True)) == {"idempotency_key": "r1:2"}
    assert json.loads(call(pay, {"sum": 1})) == {"sum": 1}


def test_the_arguments_of_the_caller_are_left_alone() -> None:
    """They are the decision's, and the next attempt is made with them."""
    arguments = {"sum": 1}
    call(lambda **given: given.clear(), arguments, wants_idempotency_key=True)
    assert arguments == {"sum": 1}


def test_a_sync_tool_sees_the_context_it_was_called_in() -> None:
    """Log lines of the tool carry the run's ids by it."""
    run_id = contextvars.ContextVar("run_id", default="none")
    run_id.set("r1")
    assert call(lambda: run_id.get()) == "r1"


def test_blocking_tools_run_side_by_side() -> None:
    """Siblings of one decision may not wait for each other, nor for somebody's hung call."""
    both_are_here = threading.Barrier(2)
    made = Tool("act", "", {}, lambda: both_are_here.wait(timeout=5) >= 0)

    async def two() -> list[str]:
        return list(await asyncio.gather(invoke(made, {}, "r1:2"), invoke(made, {}, "r1:3")))

    assert asyncio.run(two()) == ["true", "true"]


def test_a_result_that_must_be_awaited_is_awaited() -> None:
    """A decorator around an async tool often is a plain function; the text of a coroutine is nobody's result."""

    async def fetch() -> str:
        return "page"

    page = fetch()
    try:
        assert call(lambda: page) == "page"
    finally:
        page.close()


# Ending badly


@pytest.mark.parametrize("function", raising(LookupError("no such city")))
def test_what_a_tool_raises_comes_out_as_it_is(function: Callable[[], Any]) -> None:
    """Its policy decides by the type whether to try again."""
    with pytest.raises(LookupError, match="no such city"):
        call(function)


@pytest.mark.parametrize("function", [*raising(SystemExit(3)), *raising(KeyboardInterrupt())])
def test_a_tool_cannot_end_the_process_it_runs_in(function: Callable[[], Any]) -> None:
    """A script turned tool calls sys.exit; a hundred other steps live in the same process."""
    with pytest.raises(ToolError, match=r"SystemExit|KeyboardInterrupt"):
        call(function)


@pytest.mark.parametrize("function", raising(Odd("out")))
def test_a_tool_cannot_slip_past_the_handlers(function: Callable[[], Any]) -> None:
    """Whatever it raises becomes a result, and results are made of exceptions."""
    with pytest.raises(Exception, match="out"):
        call(function)


@pytest.mark.parametrize("function", raising(asyncio.CancelledError()))
def test_a_tool_that_cancels_itself_has_failed(function: Callable[[], Any]) -> None:
    """Taken for a drain it would be given back and tried for ever."""
    with pytest.raises(ToolError, match="cancelled itself"):
        call(function)


def test_a_sync_tool_that_stops_iterating_fails() -> None:
    """`next()` on an empty iterator; a future refuses this exception and would never be done."""
    with pytest.raises(ToolError, match="StopIteration"):
        call(lambda: next(iter([])))


def test_cancelling_the_step_cancels_an_async_tool() -> None:
    """A stopping worker gives its steps back; it must not take the cancellation for a failure of the tool."""
    ended: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    async def start_and_cancel() -> None:
        step = asyncio.create_task(invoke(Tool("act", "", {}, hang), {}, "r1:2"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        step.cancel()
        await step

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(start_and_cancel())
    assert ended == ["cancelled"]


def test_an_async_tool_is_stopped_when_its_time_is_over() -> None:
    """Not only no longer waited for."""
    ended: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    with pytest.raises(TimeoutError):
        call(hang, policy=ToolPolicy(timeout=0.01))
    assert ended == ["cancelled"]


def test_a_sync_tool_is_not_waited_for_when_its_time_is_over() -> None:
    """Its thread goes on; the run does not wait for it, nor does the exit."""
    release = threading.Event()
    try:
        with pytest.raises(TimeoutError):
            call(lambda: release.wait(60), policy=ToolPolicy(timeout=0.01))
    finally:
        release.set()


def test_a_tool_within_its_time_is_left_in_peace() -> None:
    """A limit that always struck would go unnoticed above."""
    assert call(lambda: "in time", policy=ToolPolicy(timeout=60)) == "in time"


# Arguments


def test_arguments_are_checked_against_the_signature() -> None:
    """The function gets what its annotations promise."""

    @tool
    def book(nights: int) -> None: ...

    assert check_arguments(book, {"nights": "2"}) == {"nights": 2}
    with pytest.raises(ValidationError, match="nights: missing required argument"):
        check_arguments(book, {})


def test_arguments_that_were_no_json_are_refused_with_their_beginning() -> None:
    """The model sees what it wrote; a long text is not sent back whole."""
    made = Tool("act", "", {}, print)
    with pytest.raises(ValidationError, match=r"not a JSON object: '\{\"a\": '$"):
        check_arguments(made, {RAW_ARGUMENTS: '{"a": '})
    with pytest.raises(ValidationError) as caught:
        check_arguments(made, {RAW_ARGUMENTS: "x" * 900})
    assert str(caught.value).count("x") == 500


def test_a_tool_without_a_signature_gets_what_the_model_sent() -> None:
    """Tools of other systems check for themselves."""
    arguments = {"any": [1]}
    checked = check_arguments(Tool("act", "", {}, print), arguments)
    assert checked == arguments
    assert checked is not arguments


# Words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ("", ""),
        (None, "null"),
        (True, "true"),
        ({"é": (1, 2.5)}, '{"é": [1, 2.5]}'),
        (float("nan"), '"nan"'),
        (b"raw", '"raw"'),
        ("a\x00b", "a\\u0000b"),
        (ValueError("x"), '"x"'),
    ],
)
def test_a_result_is_text_as_it_is_and_everything_else_as_json(value: Any, text: str) -> None:
    """Every store can hold it and every provider takes it."""
    assert serialise(value) == text


def test_a_failure_says_what_failed_and_how() -> None:
    """The model decides by it whether to try something else."""
    assert json.loads(failure("pay", "transient", "no route")) == {
        "ok": False,
        "tool": "pay",
        "error": {"category": "transient", "message": "no route"},
    }


def test_a_failure_without_words_repeats_its_category() -> None:
    """`raise PermanentError` has no message."""
    assert json.loads(failure("pay", "permanent", ""))["error"]["message"] == "permanent"


def test_a_failure_can_be_stored_whatever_the_tool_said() -> None:
    """An error text with bytes in it must not take the record of the failure along."""
    assert json.loads(failure("pay", "error", "bad \x00 \ud800"))["error"]["message"] == "bad \\u0000 \\ud800"


def test_a_proposal_is_no_failure() -> None:
    """A shadow tool shows what it would have done; there is no `ok` to misread."""
    proposed = json.loads(shadow("pay", {"sum": 1}))
    assert proposed.pop("note")
    assert proposed == {"shadow": True, "proposed": {"tool": "pay", "arguments": {"sum": 1}}}


def test_an_unknown_outcome_warns_against_doing_it_again() -> None:
    """The money may have left."""
    told = json.loads(unknown_outcome("pay"))["error"]
    assert told["category"] == "unknown_outcome"
    assert [word for word in ("pay", "unknown", "not repeated", "Check") if word not in told["message"]] == []


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (RateLimitError(), "rate_limit"),
        (AuthError(), "auth"),
        (ValidationError(), "validation"),
        (TimeoutError(), "timeout"),
        (TransientError(), "transient"),
        (PermanentError(), "permanent"),
        (ToolError(), "error"),
        (ValueError(), "error"),
        (WaitTimeout("r1", "running", 1), "timeout"),
        (DrangueError(), "error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_a_failure_has_the_category_of_its_type(error: Exception, category: str) -> None:
    """Recorded, and counted on dashboards."""
    assert category_of(error) == category


def test_the_narrowest_category_wins() -> None:
    """A rate limit is transient too; a kind of one's own may be two things at once."""

    class Slow(TransientError, TimeoutError): ...

    class Locked(AuthError, TransientError): ...

    assert [category_of(error) for error in (Slow(), Locked())] == ["timeout", "auth"]
