"""MCP servers as tools, with real servers made with the official SDK, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from drangue_client.errors import AuthError, PermanentError, ToolError, TransientError
from drangue_worker import Agent, Result, Tool, harden
from drangue_worker.testing import FakeModel
from drangue_worker.tools.invoke import invoke
from drangue_worker.tools.mcp import MCPServer, http_toolset, stdio_toolset, tools_from_session
from drangue_worker.tools.mcp import session as live
from drangue_worker.tools.mcp.mapping import AnswerLost
from tests.kit.fleet import wait_until

KIT = Path(__file__).resolve().parents[1] / "kit" / "mcp_server.py"
READY_S = 30.0
SDK_LOADED = multiprocessing.get_context("forkserver")  # one process loads the server's libraries, for all servers
SDK_LOADED.set_forkserver_preload(["tests.kit.mcp_server", "uvicorn"])


# On a loaded machine a server may outlive the event loop it was started in by a moment; each test waits for its end.
pytestmark = pytest.mark.filterwarnings("ignore:.*Popen.__del__", "ignore:.*BaseSubprocessTransport.__del__")


class Journal:
    """What a server wrote down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")

    def lines(self, about: str) -> list[str]:
        """What follows this word, for each line that begins with it."""
        lines = self.path.read_text().splitlines()
        return [line.removeprefix(about).strip() for line in lines if line.split(" ")[0] == about]

    @property
    def sessions(self) -> int:
        """How many sessions were opened over HTTP."""
        return self.lines("request").count("server/discover")


class HttpServer:
    """A server process on loopback; started again, it has its port back and knows no session."""

    def __init__(self, journal: Journal, *options: str) -> None:
        self.journal = journal
        self.options = options
        self.port = 0
        self.process: BaseProcess | None = None

    def start(self) -> str:
        """Start it; returns its URL when it listens."""
        from tests.kit import mcp_server  # here, so that the SDK is loaded when a test needs it

        before = len(self.journal.lines("listening"))
        arguments = [str(self.journal.path), "http", "--port", str(self.port), *self.options]
        self.process = SDK_LOADED.Process(target=mcp_server.main, args=(arguments,), daemon=True)
        self.process.start()
        wait_until(lambda: len(self.journal.lines("listening")) > before, READY_S, "the server listens")
        self.port = int(self.journal.lines("listening")[-1])
        return f"http://127.0.0.1:{self.port}/mcp"

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()


ENDING_S = 10.0  # a session that was given up ends its server by and by


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every server of this module writes."""
    return tmp_path_factory.mktemp("mcp") / "journal"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """An empty journal. No server that wrote in it may be left when the test is over."""
    journal = Journal(path)
    yield journal
    started = [int(pid) for pid in journal.lines("started")]
    try:
        wait_until(lambda: not any(map(alive, started)), ENDING_S, "every server has ended")
    finally:
        for pid in filter(alive, started):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def make_http(journal: Journal) -> Iterator[Callable[..., HttpServer]]:
    """HTTP servers, killed after the test."""
    made: list[HttpServer] = []

    def make(*options: str) -> HttpServer:
        made.append(HttpServer(journal, *options))
        return made[-1]

    yield make
    for server in made:
        server.kill()


@pytest.fixture(scope="module")
def command(path: Path) -> tuple[str, list[str]]:
    """How the stdio server is started."""
    return sys.executable, [str(KIT), str(path), "stdio"]


@pytest.fixture(scope="module")
def known(command: tuple[str, list[str]]) -> MCPServer:
    """A stdio server whose tools have been listed already, as in a worker that has imported its agents."""
    server = MCPServer.stdio(*command, name="kit")
    server.tools()
    return server


@pytest.fixture
def server(known: MCPServer, journal: Journal) -> MCPServer:
    """The same with an empty journal, and nothing running."""
    assert journal.lines("started") == []
    return known


@pytest.fixture(params=["stdio", "http", "http with sessions"])
def any_server(request: pytest.FixtureRequest, server: MCPServer, make_http: Callable[..., HttpServer]) -> MCPServer:
    """Every way to a server: a child process, and HTTP of the newer and of the older kind."""
    if request.param == "stdio":
        return server
    return MCPServer.http(make_http(*(["--sessions"] if "sessions" in request.param else [])).start(), name="kit")


def by_name(server: MCPServer) -> dict[str, Tool]:
    return {tool.name: tool for tool in server.tools()}


def asked(tools: list[Tool], *calls: tuple[str, dict[str, Any]]) -> Result:
    """A run of an agent that makes these calls, all at once, and answers."""
    return Agent(FakeModel([list(calls), "done"]), tools).run_sync("go")


def results(result: Result) -> dict[int, str]:
    """What the calls of a run came to, by step."""
    return {e.step: e.payload["content"] for e in result.events if e.type == "tool_result" and e.step is not None}


def error_of(content: str) -> dict[str, Any]:
    return dict(json.loads(content)["error"])


async def until(holds: Callable[[], Any]) -> None:
    """Wait for a state without holding up the loop."""
    async with asyncio.timeout(READY_S):
        while not holds():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


def test_an_agent_works_with_a_servers_tools(any_server: MCPServer) -> None:
    """End to end: what the model asks for runs on the server, and what the server says reaches the log."""
    calls = [
        ("greet", {"name": "ada", "loud": True}),
        ("key", {}),
        ("keyed", {"text": "as"}),
        ("picture", {}),
        ("fail", {}),
        ("greet", {"nam": "ada"}),
    ]
    result = asked(any_server.tools(), *calls)
    assert (result.status, result.output) == ("completed", "done")
    greeted, key, keyed, picture, failed, wrong = (content for _, content in sorted(results(result).items()))
    assert greeted == "HELLO ADA"
    assert key == f"{result.run_id}:3"
    assert keyed == f"as {result.run_id}:4"
    assert json.loads(picture) == {"type": "image", "note": "non-text content omitted"}
    assert error_of(failed) == {"category": "error", "message": "Error executing tool fail: no such thing"}
    assert "Field required" in error_of(wrong)["message"]


def test_a_destructive_tool_is_irreversible(any_server: MCPServer, journal: Journal) -> None:
    """The server's word decides how carefully the engine calls: its beginning is in the log before it runs."""
    tools = by_name(any_server)
    assert not tools["wire"].reversible
    assert all(tools[name].reversible for name in ("whoami", "greet", "meet"))
    result = asked(any_server.tools(), ("wire", {"amount": 3}), ("whoami", {}))
    assert results(result)[2] == "3 sent"
    assert [event.step for event in result.events if event.type == "step_started"] == [2]
    assert journal.lines("wired") == ["3"]


def test_tools_are_listed_once_and_leave_nothing_behind(command: tuple[str, list[str]], journal: Journal) -> None:
    """They are asked for when a module is imported, which must not keep a process running."""
    server = MCPServer.stdio(*command)
    first = server.tools()
    assert server.tools() == first
    (pid,) = journal.lines("started")
    assert not alive(int(pid))


def test_tools_can_be_listed_where_a_loop_runs(command: tuple[str, list[str]]) -> None:
    """A notebook imports modules on a running loop."""

    async def importing() -> list[Tool]:
        return MCPServer.stdio(*command).tools()

    assert asyncio.run(importing())


def test_concurrent_calls_share_one_session(any_server: MCPServer, journal: Journal) -> None:
    """A hundred calls in flight must not be a hundred servers."""
    any_server.tools()
    started, sessions = len(journal.lines("started")), journal.sessions
    result = asked(any_server.tools(), *[("meet", {"count": 5})] * 5)
    assert list(results(result).values()) == ["met"] * 5
    opened = len(journal.lines("started")) - started + journal.sessions - sessions
    assert opened == 1


def test_every_loop_has_a_session_that_ends_with_it(server: MCPServer, journal: Journal) -> None:
    """Each run_sync is a loop of its own; its server must be gone when it returns."""
    tool = by_name(server)["whoami"]

    async def twice() -> set[str]:
        return {await tool(), await tool()}

    first, second = asyncio.run(twice()), asyncio.run(twice())
    assert len(first) == len(second) == 1
    assert first != second
    assert [alive(int(pid)) for pid in journal.lines("started")] == [False] * 2


def test_a_closed_session_is_opened_again_by_the_next_call(server: MCPServer) -> None:
    """Closing frees what the session holds; it does not end the server's usefulness."""
    tool = by_name(server)["whoami"]

    async def go() -> None:
        await server.aclose()  # nothing is open yet, and that is no error
        first = await tool()
        await server.aclose()
        assert not alive(int(first))
        assert await tool() != first

    asyncio.run(go())


def test_closing_while_it_opens_fails_the_call_that_waits(server: MCPServer) -> None:
    """A shutdown must not leave a call waiting for ever."""
    tool = by_name(server)["whoami"]

    async def go() -> None:
        call = asyncio.create_task(tool())
        await asyncio.sleep(0)
        await server.aclose()
        with pytest.raises(TransientError):
            await call

    asyncio.run(go())


def test_a_killed_server_is_started_again(server: MCPServer, journal: Journal) -> None:
    """A crash of the server costs at most the calls it had under way."""
    tools = by_name(server)

    async def go() -> None:
        first = int(await tools["whoami"]())
        os.kill(first, signal.SIGKILL)
        answers: list[str] = []
        while not answers:
            try:
                answers.append(await tools["whoami"]())
            except TransientError:  # it was not yet known that the server is dead
                assert len(journal.lines("started")) == 1
        assert int(answers[0]) != first

    asyncio.run(go())


def test_a_dead_idle_server_is_noticed_before_anything_is_sent(server: MCPServer, journal: Journal) -> None:
    """An irreversible call must not be lost to a server that has long been gone."""
    tools = by_name(server)

    async def go() -> None:
        os.kill(int(await tools["whoami"]()), signal.SIGKILL)
        await until(lambda: not server._here())
        assert await tools["wire"](amount=3) == "3 sent"

    asyncio.run(go())
    assert journal.lines("wired") == ["3"]


def test_a_reversible_call_is_tried_again_as_its_policy_says(command: tuple[str, list[str]], journal: Journal) -> None:
    """A server that dies during a call is a passing failure, if somebody starts it again."""
    result = asked(MCPServer.stdio(*command, retries=1, backoff=0).tools(), ("die_once", {}))
    assert results(result) == {2: "alive"}
    assert journal.lines("died") == [""]


def test_a_lost_answer_is_a_passing_failure(any_server: MCPServer) -> None:
    """Without retries left the model is told, and may decide for itself."""
    result = asked(any_server.tools(), ("die_once", {}))
    error = error_of(results(result)[2])
    assert "'die_once' was answered" in error["message"]
    assert error["message"].endswith("whether it took effect is unknown")


def test_an_irreversible_call_whose_answer_is_lost_is_unknown_and_never_repeated(
    any_server: MCPServer, journal: Journal
) -> None:
    """The money has moved and nobody heard of it: it must not move again, and nobody may be told that it did not."""
    tools = [harden(tool, retries=5, backoff=0) for tool in any_server.tools()]
    result = asked(tools, ("die_wiring", {"amount": 3}))
    assert error_of(results(result)[2])["category"] == "unknown_outcome"
    assert journal.lines("wired") == ["3"]


def test_a_call_that_takes_too_long_is_given_up_and_the_server_told(any_server: MCPServer, journal: Journal) -> None:
    """The default limit keeps a run from waiting for ever; what nobody waits for need not go on."""
    tools = by_name(any_server)
    hang = harden(tools["hang"], timeout=1)

    async def go() -> None:
        before = await tools["whoami"]()
        with pytest.raises(TimeoutError, match=r"no answer within 1 s"):
            await invoke(hang, {}, "run:2")
        await until(lambda: journal.lines("told"))
        assert await tools["whoami"]() == before

    asyncio.run(go())
    assert journal.lines("hanging") == [""]


def test_a_server_that_hangs_is_replaced(server: MCPServer, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stuck process answers nothing ever again, yet its pipe stays open: only asking it tells."""
    monkeypatch.setattr(live, "PROBE_S", 0.3)
    for name in ("PROCESS_TERMINATION_TIMEOUT", "FORCE_KILL_TIMEOUT"):
        monkeypatch.setattr(f"mcp.client.stdio.{name}", 0.1)
    tools = by_name(server)

    async def go() -> None:
        frozen = int(await tools["whoami"]())
        call = asyncio.ensure_future(tools["freeze"]())
        await until(lambda: journal.lines("frozen"))
        call.cancel()
        await until(call.done)
        assert int(await tools["whoami"]()) != frozen
        await server.aclose()
        assert not alive(frozen)

    asyncio.run(go())
    assert journal.lines("frozen") == [""]


@pytest.mark.parametrize("options", [[], ["--sessions"]])
def test_an_irreversible_call_is_not_sent_to_a_server_that_is_away(
    options: list[str], make_http: Callable[..., HttpServer], journal: Journal
) -> None:
    """What was certainly not sent is not unknown: the model may simply try again."""
    process = make_http(*options)
    server = MCPServer.http(process.start())
    tools = by_name(server)

    async def go() -> None:
        await tools["whoami"]()
        process.kill()
        with pytest.raises(TransientError, match="cannot connect") as raised:
            await tools["wire"](amount=3)
        assert not isinstance(raised.value, AnswerLost)
        await asyncio.to_thread(process.start)
        assert await tools["wire"](amount=3) == "3 sent"

    asyncio.run(go())
    assert journal.lines("wired") == ["3"]


def test_a_session_that_the_server_has_forgotten_is_opened_again(
    make_http: Callable[..., HttpServer], journal: Journal
) -> None:
    """A restart of the server, or a session that was idle too long, is nobody's failure."""
    process = make_http("--sessions")
    server = MCPServer.http(process.start())
    tools = by_name(server)

    async def restart() -> None:
        process.kill()
        await asyncio.to_thread(process.start)

    async def go() -> None:
        await tools["whoami"]()
        for name, arguments in (("greet", {"name": "ada"}), ("wire", {"amount": 3})):
            opened = journal.sessions
            await restart()
            assert await tools[name](**arguments)
            assert journal.sessions == opened + 1

    asyncio.run(go())
    assert journal.lines("wired") == ["3"]


def test_an_irreversible_call_that_a_forgetful_server_refused_is_not_sent_again(
    make_http: Callable[..., HttpServer], journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server forgets between the question whether it is there and the call: it was refused, and that is all."""
    process = make_http("--sessions")
    server = MCPServer.http(process.start())
    tools = by_name(server)

    async def go() -> None:
        await tools["whoami"]()
        answers = live.LiveSession.answers

        async def answers_and_forgets(session: live.LiveSession) -> bool:
            answered = await answers(session)
            process.kill()
            await asyncio.to_thread(process.start)
            return answered

        monkeypatch.setattr(live.LiveSession, "answers", answers_and_forgets)
        with pytest.raises(TransientError, match="forgotten the session; 'wire' was not called") as raised:
            await tools["wire"](amount=3)
        assert not isinstance(raised.value, AnswerLost)
        monkeypatch.undo()
        assert await tools["wire"](amount=3) == "3 sent"

    asyncio.run(go())
    assert journal.lines("wired") == ["3"]


@pytest.mark.parametrize(("status", "kind"), [(401, AuthError), (403, AuthError), (503, TransientError)])
def test_a_server_that_refuses_is_named_with_the_reason(
    status: int, kind: type[ToolError], make_http: Callable[..., HttpServer]
) -> None:
    """A wrong token is not a passing failure."""
    server = MCPServer.http(make_http("--refuse", str(status)).start(), name="kit")
    with pytest.raises(kind, match="cannot connect to the MCP server kit") as raised:
        server.tools()
    assert type(raised.value) is kind


def test_a_server_that_is_not_there_is_asked_again_the_next_time(make_http: Callable[..., HttpServer]) -> None:
    """A failure is not cached: what was down at first may be up now."""
    process = make_http()
    server = MCPServer.http(process.start())
    process.kill()
    with pytest.raises(TransientError, match="cannot connect"):
        server.tools()
    process.start()
    assert server.tools()


def test_a_command_that_does_not_exist_is_no_passing_failure() -> None:
    """Trying again does not install a program."""
    with pytest.raises(PermanentError, match=r"no-such-command.*Correct the command"):
        MCPServer.stdio("no-such-command").tools()


@pytest.mark.parametrize(
    ("program", "limit", "reason"),
    [
        ("import sys; sys.stdin.read()", 0.2, r"MCP server kit: no answer within 0.2 s"),
        ("", READY_S, r"MCP server kit: Connection closed"),
    ],
)
def test_a_server_that_never_says_hello_is_given_up(program: str, limit: float, reason: str) -> None:
    """Opening has a limit of its own, so that an import ends; a server that ends at once is not waited for."""
    server = MCPServer.stdio(sys.executable, ["-c", program], name="kit", connect_timeout=limit)
    with pytest.raises(TransientError, match=reason) as raised:
        server.tools()
    assert raised.value.__cause__ is not None


LOW_LEVEL = """
import sys
import anyio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp_types import CallToolResult, ListToolsResult, Tool

async def list_tools(context, params):
    number = {"type": "object", "properties": {"number": {"type": "integer"}}}
    return ListToolsResult(tools=[Tool(name="count", input_schema={"type": "object"}, output_schema=number)])

async def call_tool(context, params):
    return CallToolResult(content=[], structured_content={"number": "none"})

async def main():
    server = Server("low", **({"on_list_tools": list_tools, "on_call_tool": call_tool} if sys.argv[1:] else {}))
    async with stdio_server() as streams:
        await server.run(*streams, server.create_initialization_options())

anyio.run(main)
"""


def test_a_server_without_tools_is_no_passing_failure() -> None:
    """It says so itself, and would again."""
    with pytest.raises(PermanentError, match="Method not found"):
        MCPServer.stdio(sys.executable, ["-c", LOW_LEVEL]).tools()


def test_a_result_that_breaks_its_own_schema_is_no_result() -> None:
    """The SDK refuses it; the call was made all the same, and the message must not say otherwise."""
    server = MCPServer.stdio(sys.executable, ["-c", LOW_LEVEL, "with tools"])
    error = error_of(results(asked(server.tools(), ("count", {})))[2])
    assert error["message"].startswith("'count' was answered, but the answer is of no use: ")


def test_an_http_server_that_hangs_does_not_hold_up_the_end(
    make_http: Callable[..., HttpServer], journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session is ended with a request, which nobody may answer."""
    monkeypatch.setattr(live, "FAREWELL_S", 0.2)
    server = MCPServer.http(make_http("--sessions").start())
    tool = by_name(server)["whoami"]

    async def go() -> None:
        os.kill(int(await tool()), signal.SIGSTOP)

    asyncio.run(asyncio.wait_for(go(), READY_S))
    assert journal.lines("request")[-1] == "tools/call"


def test_a_stdio_server_gets_its_environment_and_folder(command: tuple[str, list[str]], tmp_path: Path) -> None:
    """It gets what it was given and not the secrets of the worker that starts it."""
    server = MCPServer.stdio(*command, env={"GIVEN": "yes"}, cwd=str(tmp_path))
    tool = by_name(server)["environment"]
    os.environ["KEPT"] = "secret"
    try:
        result = asked([tool], *[("environment", {"name": name}) for name in ("GIVEN", "KEPT", "cwd")])
    finally:
        del os.environ["KEPT"]
    assert list(dict(sorted(results(result).items())).values()) == ["yes", "unset", str(tmp_path)]


def test_headers_go_with_every_request(make_http: Callable[..., HttpServer]) -> None:
    """That is how a server knows who asks."""
    server = MCPServer.http(make_http().start(), {"X-Team": "payments"})
    assert results(asked(server.tools(), ("header", {"name": "x-team"}))) == {2: "payments"}


FORKING = """
import asyncio, os, sys
from drangue_worker.tools.mcp import MCPServer

server = MCPServer.stdio(sys.executable, sys.argv[1:])
whoami = next(tool for tool in server.tools() if tool.name == "whoami")

async def in_child():
    return await whoami()

async def main():
    mine = await whoami()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, asyncio.run(in_child()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    theirs = await asyncio.to_thread(os.read, reading, 100)
    os.waitpid(child, 0)
    print(mine, theirs.decode(), await whoami())

asyncio.run(main())
"""


def test_a_forked_process_opens_a_session_of_its_own(command: tuple[str, list[str]]) -> None:
    """Two processes on one pipe would read each other's answers."""
    program, arguments = command
    done = subprocess.run([program, "-c", FORKING, *arguments], capture_output=True, text=True, check=True, timeout=60)
    mine, theirs, mine_again = done.stdout.split()
    assert mine == mine_again
    assert theirs != mine
    assert done.stderr == ""


def test_a_toolset_lives_as_long_as_its_block(command: tuple[str, list[str]], journal: Journal) -> None:
    """For a script, one session held open is all there is to it; what the block raises comes out as it is."""

    async def block(tools: dict[str, Tool]) -> None:
        async with stdio_toolset(*command, irreversible={"greet"}, retries=1) as toolset:
            tools |= {tool.name: tool for tool in toolset.tools}
            assert (tools["greet"].reversible, tools["greet"].policy.retries) == (False, 1)
            assert await tools["greet"](name="ada") == "hello ada"
            result = await Agent(FakeModel([[("key", {})], "done"]), toolset.tools).run("go")
            assert results(result) == {2: f"{result.run_id}:2"}
            raise KeyError("mine")

    async def go() -> None:
        tools: dict[str, Tool] = {}
        with pytest.raises(KeyError, match="mine"):
            await block(tools)
        with pytest.raises(TransientError, match=r"toolset .* is closed"):
            await tools["greet"](name="ada")

    asyncio.run(go())
    assert [alive(int(pid)) for pid in journal.lines("started")] == [False]


def test_a_toolset_over_http(make_http: Callable[..., HttpServer], journal: Journal) -> None:
    """The same over HTTP, with headers."""
    url = make_http().start()

    async def go() -> None:
        async with http_toolset(url, {"X-Team": "payments"}, timeout=5) as toolset:
            tools = {tool.name: tool for tool in toolset.tools}
            assert tools["header"].policy.timeout == 5
            assert await tools["header"](name="x-team") == "payments"
        assert journal.sessions == 1

    asyncio.run(go())


@pytest.mark.parametrize("kind", ["Client", "ClientSession"])
def test_the_sdks_own_sessions_are_listed_to_the_last_page(kind: str) -> None:
    """The SDK's two sessions want the cursor in two ways."""
    from mcp import Client
    from mcp.server.lowlevel import Server
    from mcp_types import ListToolsResult
    from mcp_types import Tool as Listed

    async def list_tools(context: Any, params: Any) -> ListToolsResult:
        number = int(params.cursor or 0) if params else 0
        one = Listed(name=f"tool_{number}", input_schema={"type": "object"})
        return ListToolsResult(tools=[one], next_cursor=str(number + 1) if number < 2 else None)

    async def go() -> list[str]:
        async with Client(Server("pages", on_list_tools=list_tools)) as client:
            session = client if kind == "Client" else client.session
            return [tool.name for tool in await tools_from_session(session)]

    assert asyncio.run(go()) == ["tool_0", "tool_1", "tool_2"]
