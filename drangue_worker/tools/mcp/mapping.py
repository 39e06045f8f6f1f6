"""What an MCP server says, as drangue has it: its listing as tools, its results as text, its errors as ours.

Nothing here needs the SDK or knows how a session came to be: a session is any object with async `list_tools` and
`call_tool`. Arguments go out as the model sent them and are judged by the server alone; a result is never interpreted.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from drangue_client import checks
from drangue_client.errors import (
    AuthError,
    PermanentError,
    RateLimitError,
    ToolError,
    TransientError,
    ValidationError,
)
from drangue_client.events import normalise
from drangue_worker.tools.schema import IDEMPOTENCY_KEY
from drangue_worker.tools.tool import Tool, ToolPolicy

DEFAULT_TIMEOUT_S = 30.0
KEY_META = "drangue/idempotency_key"  # where a request's _meta carries the step's key
MAX_PAGES = 100  # of one listing; a server that never ends must not hold up an import

# JSON-RPC codes; the first two are also what the SDK says itself when no answer came.
CONNECTION_CLOSED = -32000
REQUEST_TIMEOUT = -32001
INVALID_PARAMS = -32602


class AnswerLost(TransientError, TimeoutError):
    """A call was sent and its answer will never come: nobody knows whether it took effect.

    Both of its bases are meant: a reversible call is worth another attempt, and of an irreversible one the engine
    records, as after a timeout, that its outcome is unknown.
    """


class Call(Protocol):
    """Call one tool of a server: `key` is the step's idempotency key, empty outside of a run.

    Returns the result as the SDK has it. A call that is not `reversible` is sent at most once.
    """

    def __call__(self, name: str, arguments: dict[str, Any], *, key: str, reversible: bool) -> Awaitable[Any]: ...


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """What drangue must know of a server's tools beyond what the server says; the three sets hold names of tools."""

    policy: ToolPolicy
    reversible: frozenset[str]
    irreversible: frozenset[str]
    requires_approval: frozenset[str]
    queue: str | None

    @classmethod
    def of(
        cls,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        reversible: Collection[str] = (),
        irreversible: Collection[str] = (),
        requires_approval: Collection[str] = (),
        queue: str | None = None,
        **policy: Any,
    ) -> ToolOptions:
        """Check the options of `tools_from_session`. TypeError or ValueError for one that cannot work."""
        repeatable = checks.tool_names("reversible", reversible)
        once = checks.tool_names("irreversible", irreversible)
        both = sorted(repeatable & once)
        if both:
            raise ValueError(f"{both[0]!r} is in reversible and in irreversible. Name it in one of them.")
        return cls(
            ToolPolicy(timeout=timeout, **policy),
            repeatable,
            once,
            checks.tool_names("requires_approval", requires_approval),
            queue,
        )

    def check_names(self, known: Iterable[str]) -> None:
        """ValueError for an option about a tool that is not among `known`."""
        known = sorted(known)
        for option in ("reversible", "irreversible", "requires_approval"):
            unknown = sorted(getattr(self, option) - set(known))
            if unknown:
                raise ValueError(
                    f"{option} names {unknown[0]!r}, which the MCP server does not offer; it offers: "
                    f"{', '.join(known) or 'no tools'}. Correct the name."
                )


async def tools_from_session(session: Any, **options: Any) -> list[Tool]:
    """The tools that an open session offers, all pages of them, in the server's order.

    `session` needs async `list_tools()` and `call_tool(name, arguments=...)`; the SDK's `Client` and `ClientSession`
    have them. The tools work as long as it is open, on the event loop it belongs to.

    Name, description and input schema are the server's. A parameter `idempotency_key` is hidden from the model and
    receives the step's stable key; whatever its schema, every call of a run carries the key in the request's `_meta`
    as `drangue/idempotency_key`, where the session can. A result is its text blocks, joined by newlines.

    What may be run twice is read from the server's annotations: what only reads may; what is marked destructive may
    not; where there are annotations without that mark MCP's default holds, so it may not unless it is marked
    idempotent. A tool without any annotations counts as reversible, as a function without options does. A server's word
    is a hint: `reversible={"name"}`, `irreversible={"name"}` and `requires_approval={"name"}` overrule it per tool.

    `timeout` is seconds per call (30; None: no limit), `queue` as in `@tool`; the other options are ToolPolicy's.
    Raises ValueError for two tools of one name and for an option about a tool there is not, ToolError or one of its
    kinds where the listing fails.
    """
    chosen = ToolOptions.of(**options)
    try:
        listed = await list_tools(session)
    except Exception as error:
        code = code_of(error)
        if code is None:
            raise
        if code in (CONNECTION_CLOSED, REQUEST_TIMEOUT):
            raise TransientError(f"the MCP server did not list its tools: {error}") from error
        raise refusal(error, code, "tools/list") from error
    return make_tools(listed, calls_through(session), chosen)


async def list_tools(session: Any) -> list[Any]:
    """Every tool a session lists, as the SDK has it. PermanentError for a listing that does not end; else what the
    session raises."""
    tools: list[Any] = []
    cursors: list[str] = []
    while len(cursors) < MAX_PAGES:
        page = await (_page(session, cursors[-1]) if cursors else session.list_tools())
        tools += page.tools
        cursor = _field(page, "nextCursor")
        if not cursor:
            return tools
        if cursor in cursors:
            break
        cursors.append(cursor)
    raise PermanentError(
        f"the MCP server's list of tools does not end: {len(tools)} tools so far, on {len(cursors)} pages. Mend the "
        "server."
    )


def make_tools(listed: Iterable[Any], call: Call, options: ToolOptions) -> list[Tool]:
    """Tools whose calls go through `call`, from what a server lists: {name, description?, inputSchema?, annotations?}.

    ValueError as in `tools_from_session`.
    """
    listed = list(listed)
    names = [one.name for one in listed]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"the MCP server lists two tools named {twice!r}. Mend the server: a name is how one is called."
        )
    options.check_names(names)
    return [_tool(one, call, options) for one in listed]


def is_reversible(annotations: Any) -> bool:
    """Whether a tool with these annotations (None: it has none) may be run twice; the rule of `tools_from_session`."""
    if annotations is None or _field(annotations, "readOnlyHint") is True:
        return True
    destructive = _field(annotations, "destructiveHint")
    return _field(annotations, "idempotentHint") is True if destructive is None else not destructive


def content_of(result: Any) -> str:
    """What a model reads of a result: its text, or the structured content of one without text.

    A block that is not text leaves a note in its place. ToolError with the same text for a result marked as an error.
    """
    blocks = _field(result, "content") or []
    structured = _field(result, "structuredContent")
    parts = [
        block.text if block.type == "text" else json.dumps({"type": block.type, "note": "non-text content omitted"})
        for block in blocks
    ]
    if structured is not None and all(block.type != "text" for block in blocks):
        parts.insert(0, json.dumps(normalise(structured), ensure_ascii=False))
    text = "\n".join(parts)
    if _field(result, "isError"):
        raise ToolError(text or "the tool failed and did not say why")
    return text


def calls_through(session: Any) -> Call:
    """Calls of somebody else's session: sent once, whatever happens."""
    with_meta = "meta" in inspect.signature(session.call_tool).parameters

    async def call(name: str, arguments: dict[str, Any], *, key: str, reversible: bool) -> Any:
        meta = {"meta": {KEY_META: key}} if with_meta and key else {}
        try:
            return await session.call_tool(name, arguments=arguments, **meta)
        except Exception as error:
            code = code_of(error)
            if code is None:
                raise
            if code in (CONNECTION_CLOSED, REQUEST_TIMEOUT):
                raise AnswerLost(f"no answer to {name!r} came ({error}); whether it took effect is unknown") from error
            raise refusal(error, code, name) from error

    return call


def code_of(error: BaseException) -> int | None:
    """The JSON-RPC code of an error that a session raised, None for one of another kind."""
    code = getattr(getattr(error, "error", None), "code", None)
    return code if isinstance(code, int) else None


def refusal(
    error: BaseException, code: int, what: str, *, status: int = 200, retry_after: str | None = None
) -> ToolError:
    """What a JSON-RPC error means, `status` being the HTTP status it came with."""
    text = f"the MCP server refused {what!r}: {str(error) or code}"
    if status in (401, 403):
        return AuthError(f"{text} (HTTP {status})")
    if status == 429:
        return RateLimitError(text, retry_after=retry_after)
    return ValidationError(text) if code == INVALID_PARAMS else ToolError(text)


def _tool(listed: Any, call: Call, options: ToolOptions) -> Tool:
    name = listed.name
    reversible = name in options.reversible or (
        name not in options.irreversible and is_reversible(_field(listed, "annotations"))
    )
    parameters = _field(listed, "inputSchema") or {"type": "object", "properties": {}}
    takes_key = IDEMPOTENCY_KEY in parameters.get("properties", {})
    return Tool(
        name=name,
        description=_field(listed, "description") or "",
        parameters=_without_key(parameters) if takes_key else parameters,
        func=_function(name, call, reversible=reversible, takes_key=takes_key),
        wants_idempotency_key=True,
        policy=options.policy,
        reversible=reversible,
        requires_approval=name in options.requires_approval,
        queue=options.queue,
    )


def _function(name: str, call: Call, *, reversible: bool, takes_key: bool) -> Callable[..., Awaitable[str]]:
    async def function(*, idempotency_key: str = "", **arguments: Any) -> str:
        if takes_key and idempotency_key:
            arguments[IDEMPOTENCY_KEY] = idempotency_key
        return content_of(await call(name, arguments, key=idempotency_key, reversible=reversible))

    function.__name__ = function.__qualname__ = name
    return function


def _without_key(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = {name: about for name, about in schema["properties"].items() if name != IDEMPOTENCY_KEY}
    required = [name for name in schema.get("required", ()) if name != IDEMPOTENCY_KEY]
    rest = {name: value for name, value in schema.items() if name != "required"}
    return {**rest, "properties": properties, **({"required": required} if required else {})}


def _page(session: Any, cursor: str) -> Awaitable[Any]:
    """The page at a cursor, asked for as the session's signature wants it."""
    parameters = inspect.signature(session.list_tools).parameters
    if "params" in parameters and "cursor" not in parameters:
        from mcp_types import PaginatedRequestParams  # who takes params is the SDK's own ClientSession

        asked: Awaitable[Any] = session.list_tools(params=PaginatedRequestParams(cursor=cursor))
    else:
        asked = session.list_tools(cursor=cursor)
    return asked


def _field(value: Any, name: str) -> Any:
    """A field by its name on the wire, None where there is none. The SDK of today spells it in snake case."""
    snake = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)
    return getattr(value, snake, getattr(value, name, None))
