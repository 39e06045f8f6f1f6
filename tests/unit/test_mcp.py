"""What an MCP server says, as drangue has it: without a server, without the SDK, with a session of a few lines."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Coroutine
from types import SimpleNamespace as Said
from typing import Any

import pytest

from drangue_client.errors import (
    AuthError,
    PermanentError,
    RateLimitError,
    ToolError,
    TransientError,
    ValidationError,
)
from drangue_worker.tools.invoke import category_of, invoke
from drangue_worker.tools.mcp import MCPServer, MCPToolset, tools_from_session
from drangue_worker.tools.mcp.mapping import (
    DEFAULT_TIMEOUT_S,
    MAX_PAGES,
    AnswerLost,
    content_of,
    is_reversible,
    refusal,
)
from drangue_worker.tools.tool import Tool

EMPTY = {"type": "object", "properties": {}}


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def listed(name: str, **more: Any) -> Said:
    """A tool as a server lists it, in the spelling of the wire."""
    return Said(name=name, description=f"{name} it", inputSchema=dict(EMPTY), **more)


def text(value: str) -> Said:
    return Said(type="text", text=value)


class Session:
    """The least a session has: pages of tools, and answers to calls."""

    def __init__(self, *pages: list[Said], answer: Any = None) -> None:
        self.pages = pages
        self.answer = answer if answer is not None else Said(content=[text("ok")], isError=False)
        self.called: list[tuple[str, dict[str, Any]]] = []

    async def list_tools(self, cursor: str | None = None) -> Said:
        number = int(cursor or 0)
        following = str(number + 1) if number + 1 < len(self.pages) else None
        return Said(tools=self.pages[number], nextCursor=following)

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Said:
        self.called.append((name, arguments))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class SessionWithMeta(Session):
    """A session that can send what is not an argument, as the SDK's can."""

    def __init__(self, *pages: list[Said]) -> None:
        super().__init__(*pages)
        self.metas: list[Any] = []

    async def call_tool(self, name: str, arguments: dict[str, Any], *, meta: Any = None) -> Said:
        self.metas.append(meta)
        return await super().call_tool(name, arguments)


class Refused(Exception):
    """An error as the SDK raises it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.error = Said(code=code)


def tools_of(session: Session, **options: Any) -> dict[str, Tool]:
    return {tool.name: tool for tool in run(tools_from_session(session, **options))}


def test_name_description_and_schema_pass_through() -> None:
    """The model is shown what the server says of its tool."""
    schema = {"type": "object", "properties": {"path": {"type": "string", "format": "uri"}}, "required": ["path"]}
    bare = Said(name="bare", description=None, inputSchema=None)
    read, empty = run(tools_from_session(Session([Said(name="read", description="Read.", inputSchema=schema), bare])))
    assert read.to_schema() == {"name": "read", "description": "Read.", "input_schema": schema}
    assert empty.to_schema() == {"name": "bare", "description": "", "input_schema": EMPTY}
    assert (read.is_async, read.signature, read.policy.timeout) == (True, None, DEFAULT_TIMEOUT_S)


def test_every_page_of_a_listing_is_read() -> None:
    """A tool on the second page is a tool like any other."""
    assert list(tools_of(Session([listed("a"), listed("b")], [], [listed("c")]))) == ["a", "b", "c"]


def test_an_empty_cursor_ends_the_listing() -> None:
    """Some servers write an empty text where there is nothing to follow."""

    class Ended(Session):
        async def list_tools(self, cursor: str | None = None) -> Said:
            return Said(tools=[listed("a")], nextCursor="")

    assert list(tools_of(Ended())) == ["a"]


@pytest.mark.parametrize("cursor", ["the same", None])
def test_a_listing_without_an_end_is_given_up(cursor: str | None) -> None:
    """A server that turns in circles must not hold up the import of the module that asks it."""

    class Endless(Session):
        asked = 0

        async def list_tools(self, cursor_given: str | None = None, cursor: str | None = None) -> Said:
            Endless.asked += 1
            return Said(tools=[], nextCursor=Endless.cursor or str(Endless.asked))

    Endless.cursor = cursor  # type: ignore[attr-defined]
    with pytest.raises(PermanentError, match=r"does not end.*Mend the server"):
        run(tools_from_session(Endless()))
    assert Endless.asked <= MAX_PAGES


def test_two_tools_of_one_name_are_refused() -> None:
    """A name is how a tool is called; with two, nobody knows which one runs."""
    with pytest.raises(ValueError, match="two tools named 'a'"):
        run(tools_from_session(Session([listed("a"), listed("b")], [listed("a")])))


def test_a_refused_listing_says_so() -> None:
    """The listing fails where the agent is defined, so the message must name what failed."""

    class Mute(Session):
        async def list_tools(self, cursor: str | None = None) -> Said:
            raise Refused(-32601, "Method not found")

    with pytest.raises(ToolError, match="refused 'tools/list': Method not found"):
        run(tools_from_session(Mute()))


@pytest.mark.parametrize(
    ("annotations", "reversible"),
    [
        (None, True),
        ({}, False),
        ({"title": "Delete"}, False),
        ({"readOnlyHint": True}, True),
        ({"readOnlyHint": True, "destructiveHint": True}, True),
        ({"readOnlyHint": False}, False),
        ({"readOnlyHint": False, "idempotentHint": True}, True),
        ({"destructiveHint": True}, False),
        ({"destructiveHint": True, "idempotentHint": True}, False),
        ({"destructiveHint": False}, True),
        ({"destructiveHint": None, "idempotentHint": None, "readOnlyHint": None}, False),
        ({"read_only_hint": True}, True),
        ({"destructive_hint": False}, True),
        ({"idempotent_hint": True}, True),
    ],
)
def test_annotations_say_what_may_be_run_twice(annotations: dict[str, Any] | None, reversible: bool) -> None:
    """A destructive call must not be repeated; MCP takes a tool for destructive unless it says otherwise."""
    said = None if annotations is None else Said(**annotations)
    assert is_reversible(said) is reversible
    assert tools_of(Session([listed("a", annotations=said)]))["a"].reversible is reversible


def test_the_author_overrules_the_servers_hints() -> None:
    """Hints are the word of a server; whoever wires the agent knows better."""
    deletes = listed("delete", annotations=Said(destructiveHint=True))
    tools = tools_of(
        Session([deletes, listed("send"), listed("read")]),
        reversible={"delete"},
        irreversible={"send"},
        requires_approval={"delete", "send"},
    )
    assert {name: (tool.reversible, tool.requires_approval) for name, tool in tools.items()} == {
        "delete": (True, True),
        "send": (False, True),
        "read": (True, False),
    }


@pytest.mark.parametrize("option", ["reversible", "irreversible", "requires_approval"])
def test_an_option_about_no_tool_is_refused(option: str) -> None:
    """A misspelt name would leave a dangerous tool without its gate, and nobody would know."""
    with pytest.raises(ValueError, match=f"{option} names 'delte', which .* offers: delete, read"):
        tools_of(Session([listed("read"), listed("delete")]), **{option: {"delte"}})


def test_options_that_cannot_work_are_refused_at_once() -> None:
    """They are found where the server is defined, not in a worker at night."""
    with pytest.raises(TypeError, match="irreversible is 'delete'; it must be a set"):
        MCPServer.stdio("server", irreversible="delete")
    with pytest.raises(ValueError, match="'a' is in reversible and in irreversible"):
        MCPServer.http("http://localhost/mcp", reversible={"a"}, irreversible={"a"})
    with pytest.raises(ValueError, match="timeout is 0"):
        MCPServer.stdio("server", timeout=0)
    with pytest.raises(TypeError, match="retires"):
        MCPServer.stdio("server", retires=2)


def test_the_policy_of_a_server_is_that_of_its_tools() -> None:
    """What a function says with @tool, a server says once for all its tools."""
    tools = tools_of(Session([listed("a"), listed("b")]), timeout=None, retries=2, backoff=0.1, queue="browser")
    for tool in tools.values():
        assert (tool.policy.timeout, tool.policy.retries, tool.policy.backoff) == (None, 2, 0.1)
        assert tool.served_from == "browser"


def test_text_blocks_are_joined_and_others_leave_a_note() -> None:
    """A model that reads text must at least know that there was more."""
    blocks = [text("one"), Said(type="image", data="...", mimeType="image/png"), text("two")]
    assert content_of(Said(content=blocks, isError=False)) == (
        'one\n{"type": "image", "note": "non-text content omitted"}\ntwo'
    )
    assert content_of(Said(content=[], isError=False)) == ""


def test_structured_content_stands_in_for_missing_text() -> None:
    """The same result comes as text too by MCP's advice; only without it is the structure what the model reads."""
    assert (
        content_of(Said(content=[], structuredContent={"celsius": 3, "wo": "Köln"})) == '{"celsius": 3, "wo": "Köln"}'
    )
    assert content_of(Said(content=[], structured_content=[1, 2])) == "[1, 2]"
    assert content_of(Said(content=[text("three")], structuredContent={"celsius": 3})) == "three"
    picture = Said(type="image")
    assert content_of(Said(content=[picture], structuredContent={"a": 1})) == (
        '{"a": 1}\n{"type": "image", "note": "non-text content omitted"}'
    )


@pytest.mark.parametrize("spelling", ["isError", "is_error"])
def test_a_result_marked_as_an_error_is_raised_with_its_text(spelling: str) -> None:
    """The model reads why, and the run's log says that the call failed."""
    with pytest.raises(ToolError, match="no such file\ntry another") as raised:
        content_of(Said(content=[text("no such file"), text("try another")], **{spelling: True}))
    assert category_of(raised.value) == "error"
    with pytest.raises(ToolError, match="did not say why"):
        content_of(Said(content=[], **{spelling: True}))


def test_arguments_go_out_as_the_model_sent_them() -> None:
    """The server validates; what it would take must not be refused or changed on the way."""
    session = Session([listed("a")])
    tool = tools_of(session)["a"]
    assert run(invoke(tool, {"self": 1, "name": {"deep": [None]}}, "run:2")) == "ok"
    assert session.called == [("a", {"self": 1, "name": {"deep": [None]}})]


def test_the_idempotency_key_is_sent_only_to_who_takes_it() -> None:
    """A server that validates its arguments would refuse one it does not know."""
    keyed = listed("keyed")
    keyed.inputSchema = {
        "type": "object",
        "properties": {"amount": {"type": "integer"}, "idempotency_key": {"type": "string"}},
        "required": ["amount", "idempotency_key"],
        "additionalProperties": False,
    }
    session = SessionWithMeta([listed("plain"), keyed])
    tools = tools_of(session)
    assert tools["keyed"].parameters == {
        "type": "object",
        "properties": {"amount": {"type": "integer"}},
        "required": ["amount"],
        "additionalProperties": False,
    }
    for tool in tools.values():
        run(invoke(tool, {"amount": 1}, "run:2"))
    run(tools["plain"](amount=1))
    assert session.called == [
        ("plain", {"amount": 1}),
        ("keyed", {"amount": 1, "idempotency_key": "run:2"}),
        ("plain", {"amount": 1}),
    ]
    assert session.metas == [{"drangue/idempotency_key": "run:2"}, {"drangue/idempotency_key": "run:2"}, None]


def test_a_required_list_that_held_only_the_key_is_left_out() -> None:
    """Older drafts of JSON schema want at least one name in it."""
    keyed = listed("keyed")
    keyed.inputSchema = {"properties": {"idempotency_key": {}}, "required": ["idempotency_key"]}
    assert tools_of(Session([keyed]))["keyed"].parameters == {"properties": {}}


@pytest.mark.parametrize(
    ("code", "kind", "category"),
    [
        (-32602, ValidationError, "validation"),
        (-32603, ToolError, "error"),
        (-32000, AnswerLost, "timeout"),
        (-32001, AnswerLost, "timeout"),
    ],
)
def test_errors_of_the_protocol_come_in_their_kinds(code: int, kind: type[Exception], category: str) -> None:
    """The policy and the model treat a wrong argument, a failure and a lost connection differently."""
    tool = tools_of(Session([listed("a")], answer=Refused(code, "the reason")))["a"]
    with pytest.raises(kind, match="the reason") as raised:
        run(invoke(tool, {}, "run:2"))
    assert type(raised.value) is kind
    assert category_of(raised.value) == category


def test_a_lost_answer_is_worth_a_retry_and_its_outcome_unknown() -> None:
    """By the one base the engine retries a reversible call, by the other an irreversible one is recorded as unknown."""
    assert issubclass(AnswerLost, TransientError)
    assert issubclass(AnswerLost, TimeoutError)


def test_errors_of_no_protocol_come_as_they_are() -> None:
    """A session may raise what it likes; it is not ours to rename."""
    tool = tools_of(Session([listed("a")], answer=RuntimeError("no schema")))["a"]
    with pytest.raises(RuntimeError, match="no schema"):
        run(invoke(tool, {}, "run:2"))


def test_http_says_more_than_the_protocol_does() -> None:
    """Whoever is told to wait must know how long."""
    error = Refused(-32603, "Server returned an error response")
    assert type(refusal(error, -32603, "a", status=401)) is AuthError
    assert type(refusal(error, -32603, "a", status=403)) is AuthError
    limited = refusal(error, -32603, "a", status=429, retry_after="7")
    assert isinstance(limited, RateLimitError)
    assert limited.retry_after == 7.0


def test_a_toolset_is_a_session_and_its_tools() -> None:
    """Whoever has opened a session may make one directly or by listing."""
    session = Session([listed("a")])
    toolset = run(MCPToolset.from_session(session, timeout=5))
    assert toolset.session is session
    assert [(tool.name, tool.policy.timeout) for tool in toolset.tools] == [("a", 5)]
    assert MCPToolset(session, toolset.tools) == toolset


def test_a_server_is_named_without_its_secrets() -> None:
    """The name stands in log lines and error messages."""
    assert MCPServer.http("https://user:secret@host:8443/mcp?token=secret").name == "host:8443/mcp"
    assert repr(MCPServer.stdio("/usr/local/bin/files", ["--password", "secret"])) == "<MCPServer files>"
    assert MCPServer.stdio("npx", ["server"], name="files").name == "files"


def test_the_sdk_is_imported_on_connecting_and_not_before() -> None:
    """It is an extra, and takes most of a second to load."""
    program = (
        "import sys, drangue_worker.tools.mcp as m; m.MCPServer.stdio('x'); m.MCPServer.http('http://x'); "
        "print(*[name for name in sys.modules if name.split('.')[0] in ('mcp', 'mcp_types', 'anyio')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("server", [MCPServer.stdio("server"), MCPServer.http("http://127.0.0.1:9/mcp")])
def test_a_missing_sdk_is_named_with_what_installs_it(server: MCPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional; the message must say how to get it."""
    for name in ("mcp", "mcp.client.streamable_http"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'drangue-worker\[mcp\]'"):
        server.tools()
