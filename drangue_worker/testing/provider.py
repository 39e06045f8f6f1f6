"""A scripted model provider on the loopback interface: what the demo, the tests (yours too) and the benchmarks talk to.

It speaks the wire formats of OpenAI and Anthropic over real sockets, so the SDKs, their connection pools and their
errors are tested too. The invariant: no conversation is kept, so calls may come in any order, twice, or a thousand at
a time.

It deliberately judges no content: not whether a called tool was offered, nor whether arguments fit a schema. It refuses
what real providers refuse: a request without a model, and tool calls that are not followed by their results.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import pkgutil
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self, cast

import click
import h11

from drangue_client import checks
from drangue_worker.testing.anthropic_messages import AnthropicMessages
from drangue_worker.testing.chat_completions import ChatCompletions
from drangue_worker.testing.script import Json, ProviderCall, Reply, Script, Wire, check_results

__all__ = ["Json", "Provider", "ProviderCall", "Reply", "Script", "main"]


class Provider:
    """The server, on a thread of its own: `with Provider([Reply("hello")]) as provider: ... provider.base_url`.

    A script runs on the server's event loop: it may be a coroutine function and must not block. A sequence of replies
    is indexed by `call.turn`, and its last one repeats. When a script raises, its caller gets a 500 that names the
    exception, and `errors` keeps it; leaving the block raises what is left there, so take out (`errors.pop()`) what you
    expected. `calls` keeps the newest `keep_calls` (None: all).
    """

    def __init__(self, script: Script | Sequence[Reply], *, port: int = 0, keep_calls: int | None = None) -> None:
        self._script: Script | tuple[Reply, ...] = script if callable(script) else _replies(script)
        checks.count("port", port, most=65_535)
        checks.count("keep_calls", keep_calls, optional=True)
        self._port = port
        self._thread: threading.Thread | None = None
        self._connections: set[_Connection] = set()
        self._changed = threading.Condition()
        self._calls: deque[ProviderCall] = deque(maxlen=keep_calls)
        self.errors: list[BaseException] = []
        self.received = 0  # calls so far; a request refused as invalid is none
        self.in_flight = 0  # calls received and not yet answered, hung up on or aborted
        self.peak_in_flight = 0
        self.aborted = 0  # calls whose client went away before the end of the answer

    @property
    def base_url(self) -> str:
        """What to give OpenAI's SDK: "http://127.0.0.1:PORT/v1"."""
        return f"{self.anthropic_base_url}/v1"

    @property
    def anthropic_base_url(self) -> str:
        """What to give Anthropic's SDK, which adds the rest: "http://127.0.0.1:PORT"."""
        if not self._port:
            raise RuntimeError("the provider has no port yet: start it first")
        return f"http://127.0.0.1:{self._port}"

    @property
    def calls(self) -> tuple[ProviderCall, ...]:
        """The calls received, in order of arrival; a copy, safe from any thread."""
        with self._changed:
            return tuple(self._calls)

    def wait_for(self, predicate: Callable[[Provider], bool], timeout_s: float) -> None:
        """Block until the predicate holds; it is asked again whenever a call arrives or ends.

        A passing state may be missed: ask for one that stays (`received`, `peak_in_flight`, `aborted`). TimeoutError,
        with what was seen instead, after timeout_s seconds. Not for use inside a script, which it would block.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self), timeout_s):
                raise TimeoutError(f"not seen within {timeout_s} s: {self!r}")

    def start(self) -> Self:
        """Listen; does nothing if already listening. After a stop the same address opens again. OSError: port taken."""
        if self._thread is None:
            listener = socket.create_server(("127.0.0.1", self._port), backlog=4096)
            self._port = listener.getsockname()[1]
            self._loop, self._stopping = asyncio.new_event_loop(), asyncio.Event()
            self._thread = threading.Thread(target=self._run, args=(listener,), name="scripted-provider", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Close the address and every connection; a call cut off so does not count as aborted. Safe to repeat."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.stop()
        if error is not None:  # it is the one to show, but a script's error is likely its cause
            error.add_note(f"seen by {self!r}")
        elif self.errors:
            raise BaseExceptionGroup("the provider's script raised", self.errors)

    def __repr__(self) -> str:
        seen = {name: getattr(self, name) for name in ("received", "in_flight", "peak_in_flight", "aborted", "errors")}
        return f"<Provider port={self._port} {seen}>"

    def _run(self, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        server = await self._loop.create_server(lambda: _Connection(self), sock=listener, backlog=4096)
        await self._stopping.wait()
        # Server.close() leaks a socket that is between accept and transport (CPython 3.11): let those arrive first.
        self._loop.remove_reader(listener)
        for _ in range(3):
            await asyncio.sleep(0)
        server.close()
        for connection in tuple(self._connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # an aborted transport closes its socket one turn of the loop later

    def _receive(self, wire: Wire, headers: dict[str, str], body: Json) -> ProviderCall:
        model, (system, messages, tools) = body.get("model"), wire.read(body)
        if not isinstance(model, str) or not model or not messages:
            raise ValueError("a request needs a 'model' (its name) and at least one message that is not a system's")
        check_results(messages)
        key, stream = headers.get("idempotency-key"), bool(body.get("stream"))
        with self._changed:
            self.received += 1
            call = ProviderCall(model, system, tuple(messages), tools, key, stream, self.received, headers, body)
            self._calls.append(call)
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
            self._changed.notify_all()
        return call

    async def _ask(self, call: ProviderCall) -> Reply:
        script = self._script
        reply = script(call) if callable(script) else script[min(call.turn, len(script) - 1)]
        reply = await reply if inspect.isawaitable(reply) else reply
        if not isinstance(reply, Reply):
            raise TypeError(f"a script returns a Reply, not {reply!r}")
        return reply

    def _end(self, *, aborted: bool) -> None:
        with self._changed:
            self.in_flight -= 1
            self.aborted += aborted
            self._changed.notify_all()


def _replies(script: Sequence[Reply]) -> tuple[Reply, ...]:
    found = checks.many("script", script, "a list of Reply, or a function of a ProviderCall")
    for one in found:
        checks.kind("one in script", one, Reply, "a Reply")
    if not found:
        raise ValueError("script is empty: a script needs at least one Reply")
    return tuple(found)


class _Connection(asyncio.Protocol):
    """One client: h11 reads, one task at a time answers, and a client that goes away cancels that task."""

    def __init__(self, provider: Provider) -> None:
        self._provider, self._http, self._lost = provider, h11.Connection(h11.SERVER), False
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._provider._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._provider._connections.discard(self)
        self._lost = not self._provider._stopping.is_set()
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        self._http.receive_data(data)
        self._advance()

    def _advance(self) -> None:
        try:
            while self._answering is None:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._request, self._body = event, bytearray()
                elif isinstance(event, h11.Data):
                    self._body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self._answering = asyncio.create_task(self._answer())
                else:
                    return
        except h11.RemoteProtocolError:
            self.transport.close()

    async def _answer(self) -> None:
        method, path = self._request.method.decode(), self._request.target.decode().partition("?")[0]
        wire = _WIRES.get(path)
        if (method, path) == ("GET", "/v1/models"):
            await self._send(Reply(), [b'{"object":"list","data":[]}'])
        elif wire is None or method != "POST":
            await self._refuse(_OPENAI, 404, f"there is no {method} {path} here, only POST {', '.join(_WIRES)}")
        else:
            try:
                headers = {name.decode(): value.decode("latin-1") for name, value in self._request.headers}
                call = self._provider._receive(wire, headers, json.loads(self._body))
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                await self._refuse(wire, 400, f"invalid request: {type(error).__name__}: {error}")
            else:
                await self._perform(wire, call)
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
            self._answering = None
            self._advance()
        else:
            self.transport.close()

    async def _refuse(self, wire: Wire, status: int, message: str) -> None:
        reply = Reply(status=status, error=message)
        await self._send(reply, [wire.error(reply)])

    async def _perform(self, wire: Wire, call: ProviderCall) -> None:
        try:
            reply = await self._provider._ask(call)
            await asyncio.sleep(reply.delay_s)
            if reply.status == 200 and call.stream:
                await self._send(reply, list(wire.stream(call, reply)), "text/event-stream")
            elif reply.status == 200 and not reply.error:
                await self._send(reply, [wire.answer(call, reply)])
            else:
                await self._send(reply, [wire.error(reply)])
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # pytest.fail() is no Exception, and must not leave the client waiting
            self._provider.errors.append(error)
            if self._http.our_state is h11.SEND_RESPONSE:
                await self._refuse(wire, 500, f"the script raised {type(error).__name__}: {error}")
        finally:
            self._provider._end(aborted=self._lost)

    async def _send(self, reply: Reply, chunks: list[bytes], kind: str = "application/json") -> None:
        headers = {"content-type": kind, **{name.lower(): value for name, value in reply.headers.items()}}
        pending = [self._http.send(h11.Response(status_code=reply.status, headers=list(headers.items())))]
        sent = chunks[: reply.hang_up_after] if reply.hang_up else chunks
        for index, chunk in enumerate(sent):
            if index and reply.chunk_delay_s:
                self.transport.write(b"".join(pending))
                pending.clear()
                await asyncio.sleep(reply.chunk_delay_s)
            pending.append(self._http.send(h11.Data(data=chunk)))
        if not reply.hang_up:
            pending.append(self._http.send(h11.EndOfMessage()))
        if sent:
            self.transport.write(b"".join(pending))


_OPENAI = ChatCompletions()
_WIRES: dict[str, Wire] = {"/v1/chat/completions": _OPENAI, "/v1/messages": AnthropicMessages()}


@click.command()
@click.argument("script", metavar="pkg.module:script")
@click.option("--port", default=0, show_default=True, help="Where to listen on 127.0.0.1; 0 takes a free port.")
def main(script: str, port: int) -> None:
    """Serve a script, or a sequence of replies, until SIGTERM or SIGINT. The first line printed is the base URL."""
    found = pkgutil.resolve_name(script)
    # Blocked before the thread starts, so that it inherits this and the signal is left for sigwait.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    with Provider(found, port=port, keep_calls=0) as provider:
        click.echo(provider.base_url)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
