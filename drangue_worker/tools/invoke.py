"""Run one call of one tool, and say what came of it in the words a model reads.

A tool never fails a run: whatever it raises becomes the content of its result. An exception that its policy wants
retried comes back as such; waiting and counting are the caller's, since they live in the database.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import json
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from drangue_client.errors import AuthError, PermanentError, RateLimitError, ToolError, TransientError, ValidationError
from drangue_client.events import normalise
from drangue_client.outcomes import failure, unknown_outcome
from drangue_worker.tools.schema import function_behind
from drangue_worker.tools.tool import UNSET, Done, NotDone, Tool

RAW_ARGUMENTS = "__raw_arguments__"  # stands alone in the arguments of a call whose JSON could not be read


class CancelledItself(ToolError):
    """A function of the author's raised CancelledError although nobody had cancelled it."""


_CATEGORIES: tuple[tuple[type[BaseException], str], ...] = (
    (RateLimitError, "rate_limit"),
    (AuthError, "auth"),
    (ValidationError, "validation"),
    (TimeoutError, "timeout"),
    (TransientError, "transient"),
    (PermanentError, "permanent"),
)


def category_of(error: BaseException) -> str:
    """The category of a failure, in the order of the list above; `error` for what no rule knows."""
    return next((category for kind, category in _CATEGORIES if isinstance(error, kind)), "error")


def text_of(error: BaseException) -> str:
    """What an exception says, or its class where it says nothing; never an exception itself."""
    try:
        return str(error) or type(error).__name__
    except BaseException:  # the author's `__str__` may raise anything
        return type(error).__name__


def unreadable(arguments: Mapping[str, Any]) -> str | None:
    """Why the arguments of a call cannot be read at all, or None."""
    if set(arguments) == {RAW_ARGUMENTS}:
        return f"the arguments are not a JSON object: {str(arguments[RAW_ARGUMENTS])[:500]!r}"
    return None


def check_arguments(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the function wants them. ValidationError for what the model must correct."""
    problem = unreadable(arguments)
    if problem:
        raise ValidationError(problem)
    return dict(arguments) if tool.signature is None else tool.signature.check(arguments)


async def invoke(
    tool: Tool,
    arguments: Mapping[str, Any],
    idempotency_key: str,
    limit_s: float | None = None,
    over: Callable[[], Awaitable[object]] | None = None,
) -> str:
    """Call the tool once with checked arguments, within its timeout; returns the content of its result, once its
    `validate` has let it pass within `limit_s`. `over` is awaited in between, when the call itself is over.

    Raises what the tool raises, TimeoutError when its time is over, ToolError in place of a SystemExit and its like: a
    tool must not end the process it runs in. A synchronous tool runs in a thread: when its time is over it is no longer
    waited for, but only the end of its process really stops it.
    """
    keywords = dict(arguments)
    if tool.wants_idempotency_key:
        keywords["idempotency_key"] = idempotency_key
    call = functools.partial(tool.func, **keywords)
    try:
        result = await either(call, tool.policy.timeout, TimeoutError)
    finally:
        if over is not None:
            await over()
    if tool.policy.validate is not None:
        checked = await either(functools.partial(tool.policy.validate, result), limit_s)
        result = result if checked is None else checked
    return serialise(result)


async def give_up(tool: Tool, category: str, message: str, limit_s: float | None = None) -> str:
    """The content of a call that failed for good, with the tool's fallback where it has one and that answers within
    `limit_s`."""
    if tool.policy.fallback is UNSET:
        return failure(tool.name, category, message)
    try:
        value = tool.policy.fallback
        value = normalise(await either(value, limit_s) if callable(value) else value)
        return json.dumps({**json.loads(failure(tool.name, category, message)), "degraded": True, "fallback": value})
    except Exception as error:
        return failure(tool.name, category, message, fallback_error=text_of(error))


Verdict = Literal["done", "not_done", "unknown"]


async def reconciled(tool: Tool, idempotency_key: str, limit_s: float | None = None) -> tuple[Verdict, str]:
    """What became of an irreversible call that was interrupted, with its content; that of one which is not done says
    that it is unknown, since only its process's death makes sure of it.

    By the tool's `reconcile`, where it has one that answers within `limit_s`; one that raises knows nothing.
    """
    if tool.reconcile is None:
        return "unknown", unknown_outcome(tool.name)
    try:
        found = await either(functools.partial(tool.reconcile, idempotency_key), limit_s)
        if isinstance(found, Done):
            return "done", serialise(found.result)
    except Exception as error:
        return "unknown", unknown_outcome(tool.name, reconcile_error=text_of(error))
    return "not_done" if isinstance(found, NotDone) else "unknown", unknown_outcome(tool.name)


async def either(
    function: Callable[[], Any], limit_s: float | None = None, over: type[Exception] = TransientError
) -> Any:
    """What an author's function gives, be it async or not; a blocking one runs in a thread.

    Raises what it raises, and ToolError in place of what must not reach further than the call: a SystemExit and its
    like, or a function that cancels itself. Raises `over` after `limit_s` seconds; what hangs is not waited for.
    """
    work = asyncio.ensure_future(_contained_call(function))
    work.add_done_callback(_seen)
    try:
        # Not `asyncio.timeout`, which would wait for a function that ignores its cancellation.
        finished, _ = await asyncio.wait({work}, timeout=limit_s)
    except asyncio.CancelledError:
        work.cancel()
        raise
    if not finished:
        work.cancel()
        raise over(f"no answer within {limit_s:g} s")
    return work.result()


async def _contained_call(function: Callable[[], Any]) -> Any:
    try:
        if inspect.iscoroutinefunction(function_behind(function)):
            return await function()
        result = await _in_thread(function)
        return await result if inspect.isawaitable(result) else result  # a plain function may hand out a coroutine
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise _contained(error) from error
    except Exception:
        raise
    except BaseException as error:  # of what is left, nothing may reach the event loop
        raise _contained(error) from error


def _seen(work: asyncio.Future[Any]) -> None:
    """Take note of how an abandoned call ended, so that nobody is warned that nobody did."""
    if not work.cancelled():
        work.exception()


def _contained(error: BaseException) -> ToolError:
    """An exception that would end more than the call, as one that ends the call."""
    if isinstance(error, asyncio.CancelledError):
        return CancelledItself("it cancelled itself")
    return ToolError(f"it raised {type(error).__name__}: {text_of(error)}")


_abandoned: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def outliving() -> bool:
    """Whether a blocking call that nobody waits for any more still runs in this process."""
    return any(thread.is_alive() for thread in list(_abandoned))


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Run a blocking function in a thread of its own: one that hangs keeps nobody else waiting, nor the exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def finish(result: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(result)

    def work() -> None:
        try:
            outcome: tuple[Any, BaseException | None] = (context.run(function), None)
        except StopIteration as error:  # a future cannot carry it
            outcome = (None, _contained(error))
        except Exception as error:
            outcome = (None, error)
        except BaseException as error:
            outcome = (None, _contained(error))
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, *outcome)

    thread = threading.Thread(target=work, name=f"tool-{getattr(function, '__name__', 'call')}", daemon=True)
    thread.start()
    try:
        return await future
    except asyncio.CancelledError:
        _abandoned.add(thread)
        raise


def serialise(result: Any) -> str:
    """A result as the model reads it: text as it is, everything else as JSON."""
    value = normalise(result)
    return value if isinstance(value, str) and isinstance(result, str) else json.dumps(value, ensure_ascii=False)
