"""Running one call of one tool: whatever it does, the run must survive it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
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
from drangue_client.outcomes import failure, shadow, unknown_outcome
from drangue_worker.tools.invoke import RAW_ARGUMENTS, category_of, check_arguments, invoke, serialise, text_of
from drangue_worker.tools.tool import Tool, ToolPolicy, tool


class Odd(BaseException):
    """Neither an Exception nor a signal: some libraries' own way out."""


def call(function: Callable[..., Any], arguments: dict[str, Any] | None = None, **options: Any) -> str:
    """Invoke a hand-made tool around `function`."""
    made = Tool("act", "", {}, function, **options)
    return asyncio.run(invoke(made, arguments or {}, "r1:2"))


def raising(error: BaseException) -> list[Callable[[], Any]]:
    """A sync function, an async one, and a sync one around an async one, that raise it."""

    def act() -> None:
        raise error

    async def act_async() -> None:
        raise error

    def hand_out() -> Any:
        return act_async()

    return [act, act_async, hand_out]


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


@pytest.mark.parametrize("function", [*raising(SystemExit(3)), *raising(KeyboardInterrupt())[:2]])
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


def in_a_loop(function: Callable[..., Any], timeout: float | None, then: Callable[[], Any] = int) -> list[str]:
    """Invoke `function`, call `then` when the call is over, let the loop settle; gives how the call ended, and every
    complaint of the loop. What is seen here is not owed to the loop's own cleaning up at its end."""

    async def go() -> list[str]:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        try:
            told.append(await invoke(Tool("act", "", {}, function, policy=ToolPolicy(timeout=timeout)), {}, "r1:2"))
        except Exception as error:
            told.append(type(error).__name__)
        then()
        await asyncio.sleep(0.005)
        gc.collect(1)
        told += ended
        return told

    ended: list[str] = getattr(function, "ended", [])
    return asyncio.run(go())


def hanging(ending: str = "") -> Callable[[], Any]:
    """An async tool that hangs; `ended` tells whether it was stopped. With `ending` it raises that when it is."""

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("stopped")
            if ending:
                raise LookupError(ending)

    ended: list[str] = []
    hang.ended = ended  # type: ignore[attr-defined]
    return hang


@pytest.mark.parametrize("ending", ["", "while cleaning up"])
def test_an_async_tool_is_stopped_when_its_time_is_over(ending: str) -> None:
    """Not only no longer waited for; and what it says on its way out is nobody's error."""
    assert in_a_loop(hanging(ending), timeout=0.01) == ["TimeoutError", "stopped"]


def test_a_tool_that_ignores_being_stopped_is_not_waited_for() -> None:
    """A bare `except` around a loop must not turn a limit of a second into for ever."""
    release = threading.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                pass

    assert in_a_loop(stubborn, timeout=0.01, then=release.set) == ["TimeoutError"]


def test_a_sync_tool_is_not_waited_for_when_its_time_is_over() -> None:
    """Its thread goes on; the run does not wait for it, and what it gives in the end disturbs nobody."""
    release = threading.Event()
    assert in_a_loop(lambda: release.wait(60), timeout=0.01, then=release.set) == ["TimeoutError"]


def test_a_result_that_must_be_awaited_has_no_more_time_than_any_other() -> None:
    """A plain function around an async tool must not lift its limit."""
    made = Tool("act", "", {}, lambda: asyncio.sleep(60), policy=ToolPolicy(timeout=0.01))
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        asyncio.run(asyncio.wait_for(invoke(made, {}, "r1:2"), timeout=0.2))


def test_cancelling_the_step_cancels_an_async_tool() -> None:
    """A stopping worker gives its steps back; it must not take the cancellation for a failure of the tool."""
    hang = hanging()

    async def start_and_cancel() -> list[str]:
        step = asyncio.create_task(invoke(Tool("act", "", {}, hang), {}, "r1:2"))
        await asyncio.sleep(0.002)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        await asyncio.sleep(0.002)
        return list(hang.ended)  # type: ignore[attr-defined]

    assert asyncio.run(start_and_cancel()) == ["stopped"]


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


def test_an_exception_says_what_it_says_or_at_least_what_it_is() -> None:
    """It is asked in the middle of handling it; a broken `__str__` must not be a second failure."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise AttributeError("no words")

    assert [text_of(error) for error in (ValueError("x"), ValueError(), Mute("x"))] == ["x", "ValueError", "Mute"]


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
