"""A real MCP server, made with the official SDK, that tests run as a process and look at through its journal.

    python tests/kit/mcp_server.py JOURNAL stdio
    python tests/kit/mcp_server.py JOURNAL http [--port N] [--sessions] [--refuse STATUS]

The journal gets one line for everything worth counting: `started PID`, `listening PORT`, `request METHOD` for every
HTTP request, and what the tools write. With `--sessions` the HTTP server knows only the protocol that has sessions, as
older ones do; with `--refuse` it answers everything with that status.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

READS = ToolAnnotations(read_only_hint=True)
DESTROYS = ToolAnnotations(destructive_hint=True)
ADDS = ToolAnnotations(destructive_hint=False)

server = MCPServer("kit", log_level="ERROR")
journal = Path()


def write(line: str) -> None:
    with journal.open("a") as lines:
        lines.write(f"{line}\n")


@server.tool(annotations=READS)
def whoami() -> str:
    """The process id of the server."""
    return str(os.getpid())


@server.tool()
def greet(name: str, loud: bool = False) -> str:
    """Greet somebody."""
    return f"HELLO {name.upper()}" if loud else f"hello {name}"


present: list[int] = []
meeting = asyncio.Condition()


@server.tool(annotations=ADDS)
async def meet(count: int) -> str:
    """Wait until so many calls are here at once."""
    async with meeting:
        present.append(count)
        meeting.notify_all()
        await meeting.wait_for(lambda: len(present) >= count)
    return "met"


@server.tool(annotations=DESTROYS)
def wire(amount: int) -> str:
    """Move money."""
    write(f"wired {amount}")
    return f"{amount} sent"


@server.tool(annotations=ADDS)
async def hang() -> str:
    """Never answer."""
    write("hanging")
    try:
        await asyncio.Event().wait()
    finally:
        write("told to stop")
    return "never"


@server.tool(annotations=ADDS)
def freeze() -> str:
    """Stop the whole server from answering anything, ever."""
    write("frozen")
    os.kill(os.getpid(), signal.SIGSTOP)
    return "never"


@server.tool(annotations=ADDS)
def die_once() -> str:
    """Take the server down during a call, the first time."""
    if "died" not in journal.read_text():
        write("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@server.tool(annotations=DESTROYS)
def die_wiring(amount: int) -> str:
    """Move money, then take the server down."""
    write(f"wired {amount}")
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@server.tool(annotations=READS)
def key(context: Context) -> str:  # type: ignore[type-arg]
    """The idempotency key that came with the request."""
    return str((context.request_context.meta or {}).get("drangue/idempotency_key"))


@server.tool(annotations=ADDS)
def keyed(text: str, idempotency_key: str) -> str:
    """A tool that takes the key as an argument."""
    return f"{text} {idempotency_key}"


@server.tool(annotations=READS)
def picture() -> Image:
    """Something that is not text."""
    return Image(data=b"png", format="png")


@server.tool(annotations=READS)
def fail() -> str:
    """Fail."""
    raise ToolError("no such thing")


@server.tool(annotations=READS)
def environment(name: str) -> str:
    """A variable of the server's environment, or its folder."""
    return os.getcwd() if name == "cwd" else os.environ.get(name, "unset")


@server.tool(annotations=READS)
def header(name: str, context: Context) -> str:  # type: ignore[type-arg]
    """A header of the request."""
    return str((context.headers or {}).get(name))


class Journalled:
    """An ASGI application that journals what comes in, and behaves as the options of this program say."""

    def __init__(self, app: Any, *, sessions: bool, refuse: int | None) -> None:
        self.app = app
        self.sessions = sessions
        self.refuse = refuse

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        method = json.loads(body).get("method")
        write(f"request {method}")
        status = self.refuse or (404 if self.sessions and method == "server/discover" else None)
        if status:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replayed() -> Any:
            return next(parts, None) or await receive()

        await self.app(scope, replayed, send)


def main(arguments: list[str] | None = None) -> None:
    """Serve as these arguments say, or the command line."""
    global journal
    parser = argparse.ArgumentParser()
    parser.add_argument("journal", type=Path)
    parser.add_argument("transport", choices=("stdio", "http"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--sessions", action="store_true")
    parser.add_argument("--refuse", type=int)
    options = parser.parse_args(arguments)
    journal = options.journal
    write(f"started {os.getpid()}")
    if options.transport == "stdio":
        server.run("stdio")
        return
    import uvicorn

    listening = socket.create_server(("127.0.0.1", options.port))
    app = Journalled(server.streamable_http_app(), sessions=options.sessions, refuse=options.refuse)
    write(f"listening {listening.getsockname()[1]}")
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])


if __name__ == "__main__":
    main()
