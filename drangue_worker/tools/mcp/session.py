"""One live session with one MCP server, held open by a task of its own.

The SDK's cancel scopes demand that a session be left by the task that entered it, so that task does nothing else:
callers wait until it is open, send through its client from tasks of their own, and ask it to end. A session that has
ended never comes back; opening another one is the owner's business.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from drangue_client.errors import AuthError, PermanentError, ToolError, TransientError
from drangue_worker.observability.logs import get_logger
from drangue_worker.tools.mcp.mapping import CONNECTION_CLOSED, REQUEST_TIMEOUT, code_of, list_tools

log = get_logger("drangue.mcp")

PROBE_S = 5.0  # how long a server may take to say that it is there
FAREWELL_S = 5.0  # how long an HTTP server may take to hear that a session is over

Transport = Callable[[], AbstractAsyncContextManager[tuple[Any, Any]]]


@dataclass(slots=True)
class HttpAnswer:
    """What HTTP said to the latest request of one call; the SDK's errors do not carry it."""

    status: int = 200
    retry_after: str | None = None
    in_session: bool = False  # whether the request named a session

    @property
    def forgotten(self) -> bool:
        """Whether the server no longer knows the session, and so refused the request."""
        return self.in_session and self.status == 404


# The SDK sends a message in the context of whoever wrote it, so that a hook of the HTTP client finds its call here.
ANSWER: contextvars.ContextVar[HttpAnswer | None] = contextvars.ContextVar("drangue_mcp_answer", default=None)


class LiveSession:
    """A session on the running event loop, being opened from the moment it is made.

    `gone` is set as soon as it is known to be of no more use, `calls` counts what is under way, `overdue` says that
    the latest call was given up before its answer came, `listed` is what the server offers, as the SDK has it.
    """

    def __init__(self, transport: Transport, name: str, connect_s: float, forget: Callable[[LiveSession], Any]) -> None:
        self.gone = False
        self.calls = 0
        self.overdue = False
        self.listed: list[Any] = []
        self._name = name
        self._place = _place()
        self._ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._client: asyncio.Future[Any] = loop.create_future()
        # In no context of its caller's: it outlives the run that happens to open it.
        self._owner = loop.create_task(
            self._hold(transport, connect_s), name=f"mcp-{name}", context=contextvars.Context()
        )
        self._owner.add_done_callback(self._over)  # which comes even to a task that was cancelled before it began
        self._forget = forget

    @property
    def is_here(self) -> bool:
        """Whether it belongs to this process and to the running loop."""
        return self._place == _place()

    async def client(self) -> Any:
        """The SDK's client, as soon as it is open. Raises why it could not be opened; nothing has been sent then."""
        return await asyncio.shield(self._client)

    async def answers(self) -> bool:
        """Ask the server whether it is there, and whether it still knows this session."""
        client = await self.client()
        with self.call() as answer:
            try:
                async with asyncio.timeout(PROBE_S):
                    if client.session.discover_result is None:
                        await client.session.send_ping()
                    else:  # that protocol has no ping
                        await client.session.send_discover(client.protocol_version)
            except TimeoutError:
                return False
            except Exception as error:  # any word of the server's shows that it is there
                if self.gone or answer.status >= 400 or code_of(error) in (None, CONNECTION_CLOSED):
                    return False
        self.overdue = False
        return not self.gone

    @contextmanager
    def call(self) -> Iterator[HttpAnswer]:
        """A call under way; gives what HTTP says to it."""
        answer = HttpAnswer()
        token = ANSWER.set(answer)
        self.calls += 1
        try:
            yield answer
        finally:
            ANSWER.reset(token)
            self.calls -= 1
            if self.gone:
                self.retire()

    def retire(self) -> None:
        """Take no more calls, and close it after the last one under way. Repeating is safe."""
        self.gone = True
        if not self.calls:
            self._ended.set()

    async def aclose(self) -> None:
        """Close it now and wait until that is done. What is under way loses its answer. Repeating is safe."""
        self._end()
        if not self._client.done():
            self._owner.cancel()  # it may be a long way to being open
        await asyncio.wait({self._owner})

    def _end(self) -> None:
        self.gone = True
        self._ended.set()

    async def _hold(self, transport: Transport, connect_s: float) -> None:
        answer = HttpAnswer()
        ANSWER.set(answer)
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(connect_s):
                    client = await stack.enter_async_context(_client(_watched(transport, self._end)))
                    # It also tells the SDK what to check results against and which arguments go into headers.
                    self.listed = await list_tools(client)
                log.info("mcp_session_opened", server=self._name)
                self._client.set_result(client)
                await self._ended.wait()
        except Exception as error:
            if self._client.done():
                log.warning("mcp_session_broken", server=self._name, error=str(_first(error)))
            else:
                reason = self._unreachable(_first(error), answer.status, connect_s)
                reason.__cause__ = error if reason is not error else None
                self._client.set_exception(reason)

    def _over(self, _: asyncio.Task[None]) -> None:
        self.gone = True
        self._forget(self)
        if not self._client.done():
            self._client.set_exception(TransientError(f"the session with {self._name} was closed as it was opened"))
        self._client.exception()  # not to be warned of when nobody waits for it any more

    def _unreachable(self, error: BaseException, status: int, connect_s: float) -> BaseException:
        if isinstance(error, ImportError | ToolError):
            return error
        text = f"no answer within {connect_s:g} s" if isinstance(error, TimeoutError) else str(error) or repr(error)
        text = f"cannot connect to the MCP server {self._name}: {text}"
        if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
            return PermanentError(f"{text}. Correct the command, or install it.")
        if status in (401, 403):
            return AuthError(f"{text} (HTTP {status})")
        answered = status < 400 and code_of(error) not in (None, CONNECTION_CLOSED, REQUEST_TIMEOUT)
        return PermanentError(text) if answered else TransientError(text)


def stdio(command: str, args: Sequence[str], env: Mapping[str, str] | None, cwd: str | None) -> Transport:
    """A way to a server that is started for each session and ends with it. What it writes to stderr goes to ours."""

    @asynccontextmanager
    async def transport() -> AsyncIterator[tuple[Any, Any]]:
        from mcp import StdioServerParameters, stdio_client

        started = StdioServerParameters(command=command, args=list(args), env=dict(env) if env else None, cwd=cwd)
        # Not today's sys.stderr, which a test or a worker may have replaced by what no process can write to.
        errors: Any = subprocess.DEVNULL if sys.__stderr__ is None else sys.__stderr__
        async with stdio_client(started, errlog=errors) as streams:
            yield streams

    return transport


def http(url: str, headers: Mapping[str, str] | None) -> Transport:
    """A way to a server at a URL, over streamable HTTP."""

    @asynccontextmanager
    async def transport() -> AsyncIterator[tuple[Any, Any]]:
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        # A response may take as long as its call may: the tool's own timeout is what ends the wait.
        patience = httpx2.Timeout(30.0, read=None)
        hooks: dict[str, list[Any]] = {"request": [_hurried], "response": [_noted]}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=patience, event_hooks=hooks) as client,
            streamable_http_client(url, http_client=client) as streams,
        ):
            yield streams

    return transport


async def _hurried(request: Any) -> None:
    if request.method == "DELETE":  # else a server that hangs would hold up the end of the loop for good
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), FAREWELL_S)


async def _noted(response: Any) -> None:
    answer = ANSWER.get()
    if answer is not None and response.request.method == "POST":
        answer.status = response.status_code
        answer.retry_after = response.headers.get("retry-after")
        answer.in_session = "mcp-session-id" in response.request.headers


def _client(transport: AbstractAsyncContextManager[tuple[Any, Any]]) -> Any:
    try:
        from mcp import Client
    except ImportError as error:
        raise ImportError("MCP servers need the MCP SDK: pip install 'drangue-worker[mcp]'") from error
    return Client(transport)


@asynccontextmanager
async def _watched(transport: Transport, ended: Callable[[], None]) -> AsyncIterator[tuple[Any, Any]]:
    async with transport() as (read, write):
        yield _Watched(read, ended), write


class _Watched:
    """A read stream of the SDK's that says when it has ended, which is how the death of an idle server is noticed."""

    def __init__(self, stream: Any, ended: Callable[[], None]) -> None:
        self._stream = stream
        self._ended = ended

    @property
    def last_context(self) -> Any:
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        try:
            return await self._stream.receive()
        except BaseException:  # cancelled too: the SDK stops reading when it gives a session up
            self._ended()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except BaseException:  # cancelled too: the SDK stops reading when it gives a session up
            self._ended()
            raise

    async def __aenter__(self) -> _Watched:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def _place() -> tuple[int, asyncio.AbstractEventLoop]:
    return os.getpid(), asyncio.get_running_loop()


def _first(error: BaseException) -> BaseException:
    """The first cause in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
