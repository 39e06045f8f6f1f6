"""`MCPServer`: a server whose tools are known when a module is imported and called from any process that serves them.

The definition holds no connection. A process that calls a tool shares one session per event loop, opened at the first
call and again after it has died; a forked process opens its own. A call of an irreversible tool is sent at most once:
before it, the session is known to be good, and once it may be on its way it is never repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from drangue_client.errors import ToolError, TransientError
from drangue_worker.tools.mcp import session as live
from drangue_worker.tools.mcp.mapping import (
    CONNECTION_CLOSED,
    DEFAULT_TIMEOUT_S,
    KEY_META,
    AnswerLost,
    ToolOptions,
    code_of,
    make_tools,
    refusal,
    tools_from_session,
)
from drangue_worker.tools.tool import Tool

CONNECT_S = 30.0  # a first start may have to download the server


class MCPServer:
    """An MCP server, by what it takes to reach it: `MCPServer.stdio(...)` or `MCPServer.http(...)`.

        files = MCPServer.stdio("mcp-files", ["--root", "/data"], irreversible={"delete"})
        agent = Agent("gpt-4o", [*files.tools(), my_own_tool])

    `timeout` is seconds per call (None: no limit), `connect_timeout` seconds for opening a session; it counts against
    the timeout of the call that has to open one. `name` stands in messages and log lines. The options are those of
    `tools_from_session`: `retries` and the rest of ToolPolicy, `reversible`, `irreversible`, `requires_approval`,
    `queue`. To give a tool another name than the server does, `dataclasses.replace(tool, name=...)`.
    """

    def __init__(
        self,
        transport: live.Transport,
        *,
        name: str,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        connect_timeout: float = CONNECT_S,
        probes: bool = False,
        **options: Any,
    ) -> None:
        self.name = name
        self._transport = transport
        self._options = ToolOptions.of(timeout=timeout, **options)
        self._connect_s = connect_timeout
        self._probes = probes
        self._tools: list[Tool] | None = None
        self._over = False  # opens no more sessions
        # Of every loop and, after a fork, of the parent too: to let go of its sessions here would close its files.
        self._sessions: list[live.LiveSession] = []

    def __repr__(self) -> str:
        return f"<MCPServer {self.name}>"

    @classmethod
    def stdio(
        cls,
        command: str,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        *,
        name: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        connect_timeout: float = CONNECT_S,
        **options: Any,
    ) -> MCPServer:
        """A server that is started as a child process, one for each session.

        Of this process's environment it is given only what the SDK finds harmless (PATH, HOME, ...), and `env`.
        """
        return cls(
            live.stdio(command, args, env, cwd),
            name=name or PurePath(command).name,
            timeout=timeout,
            connect_timeout=connect_timeout,
            **options,
        )

    @classmethod
    def http(
        cls,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        name: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        connect_timeout: float = CONNECT_S,
        **options: Any,
    ) -> MCPServer:
        """A server at a URL, over streamable HTTP; `headers` go with every request."""
        place = urlsplit(url)
        return cls(
            live.http(url, headers),
            name=name or f"{place.netloc.rpartition('@')[2]}{place.path}",
            timeout=timeout,
            connect_timeout=connect_timeout,
            probes=True,  # that a pipe has ended is noticed; that a server far away has is not
            **options,
        )

    def tools(self) -> list[Tool]:
        """The server's tools. Connects the first time, on a thread and a loop of its own, and blocks until it is done.

        Raises ImportError without the SDK, TransientError or another ToolError where the server cannot be reached, and
        what `tools_from_session` raises. A failure is not remembered.
        """
        if self._tools is None:
            with ThreadPoolExecutor(1, thread_name_prefix="mcp-tools") as thread:
                listed = thread.submit(lambda: asyncio.run(self._listed())).result()
            self._tools = make_tools(listed, self._call, self._options)
        return list(self._tools)

    async def aclose(self) -> None:
        """Close the sessions of this process on the running loop. A later call opens a new one.

        A loop that `asyncio.run` ends closes them by itself.
        """
        for session in self._here():
            await session.aclose()

    async def _listed(self) -> list[Any]:
        session = self._open()
        try:
            await session.client()
            return session.listed
        finally:
            await self.aclose()

    async def _call(self, name: str, arguments: dict[str, Any], *, key: str, reversible: bool) -> Any:
        meta = {KEY_META: key} if key else None
        for attempt in (1, 2):
            session = await self._ready(probe=self._probes and not reversible)
            client = await session.client()
            with session.call() as answer:
                try:
                    result = await client.call_tool(name, arguments, meta=meta)
                except asyncio.CancelledError:
                    session.overdue = True
                    raise
                except Exception as error:
                    code = code_of(error)
                    if code is None:  # nothing of the server's or the way to it, but of what the SDK makes of a result
                        raise ToolError(f"{name!r} was answered, but the answer is of no use: {error}") from error
                    if answer.in_session and answer.status in (400, 404):
                        session.retire()  # servers say either of a session they have forgotten
                    if answer.forgotten and reversible and attempt == 1:
                        continue  # it was refused, so that nothing has happened yet
                    raise self._meaning(error, code, name, session, answer) from error
                session.overdue = False
                return result
        raise AssertionError("the second attempt ends the loop")

    def _meaning(
        self, error: Exception, code: int, name: str, session: live.LiveSession, answer: live.HttpAnswer
    ) -> ToolError:
        if answer.forgotten:
            return TransientError(f"the MCP server {self.name} had forgotten the session; {name!r} was not called")
        closed = code == CONNECTION_CLOSED and (self._probes or session.gone)  # else it is the server's own code
        if closed or answer.status >= 500:
            return AnswerLost(
                f"the connection to the MCP server {self.name} failed before {name!r} was answered ({error}); whether "
                "it took effect is unknown"
            )
        return refusal(error, code, name, status=answer.status, retry_after=answer.retry_after)

    async def _ready(self, *, probe: bool) -> live.LiveSession:
        """An open session that is as good as can be known. Raises a ToolError otherwise; nothing has been sent then."""
        for _ in range(2):
            session = next((one for one in self._here() if not one.gone), None)
            fresh = session is None
            session = session or self._open()
            await session.client()
            # A server that left a call unanswered may hang for good, but one that has others under way is busy.
            doubtful = session.overdue and not session.calls
            if not session.gone and (fresh or not (probe or doubtful) or await session.answers()):
                return session
            session.retire()
        raise TransientError(f"the MCP server {self.name} ends every session at once; the call was not sent")

    def _here(self) -> list[live.LiveSession]:
        """The sessions of the running loop that are not closed yet."""
        return [session for session in tuple(self._sessions) if session.is_here]  # other threads change the list

    def _open(self) -> live.LiveSession:
        if self._over:
            raise TransientError(f"the toolset of the MCP server {self.name} is closed; the call was not sent")
        session = live.LiveSession(self._transport, self.name, self._connect_s, self._sessions.remove)
        self._sessions.append(session)
        return session


@dataclass(frozen=True, slots=True)
class MCPToolset:
    """An open session and its tools. The tools work as long as the session does."""

    session: Any
    tools: list[Tool]

    @classmethod
    async def from_session(cls, session: Any, **options: Any) -> MCPToolset:
        """List the tools of an open session. Options and errors are those of `tools_from_session`."""
        return cls(session, await tools_from_session(session, **options))


@asynccontextmanager
async def stdio_toolset(
    command: str,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    **options: Any,
) -> AsyncIterator[MCPToolset]:
    """Start a server, give its toolset, and end it with the block. Options and errors are those of `MCPServer.stdio`.

    The tools belong to the event loop of the block, and fail after it.
    """
    async with _held(MCPServer.stdio(command, args, env, cwd, **options)) as toolset:
        yield toolset


@asynccontextmanager
async def http_toolset(url: str, headers: Mapping[str, str] | None = None, **options: Any) -> AsyncIterator[MCPToolset]:
    """Connect to a server, give its toolset, and disconnect after the block; otherwise as `stdio_toolset`."""
    async with _held(MCPServer.http(url, headers, **options)) as toolset:
        yield toolset


@asynccontextmanager
async def _held(server: MCPServer) -> AsyncIterator[MCPToolset]:
    try:
        session = await server._ready(probe=False)
        yield MCPToolset(await session.client(), make_tools(session.listed, server._call, server._options))
    finally:
        server._over = True
        await server.aclose()
