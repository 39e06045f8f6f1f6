"""`Tool` and `@tool`: a function an agent may call, with what the runtime must know to call it safely."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, get_args, overload

from drangue_client import checks
from drangue_client.errors import RateLimitError, TransientError
from drangue_client.terms import OnCancel, OnUnknown, ToolTerms
from drangue_client.wire.queue import ASYNC_TOOL_QUEUE, TOOL_QUEUE
from drangue_worker.rules.retry import MAX_BACKOFF_S
from drangue_worker.tools.schema import Signature, function_behind, signature_of

DEFAULT_RETRY_ON: tuple[type[BaseException], ...] = (TransientError, RateLimitError)


class _Unset:
    """No fallback was given; None is one that can be."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Any = _Unset()


@dataclass(frozen=True, slots=True)
class Done:
    """What `reconcile` returns of a call whose effect did take place: `result` is what the tool would have returned."""

    result: Any


@dataclass(frozen=True, slots=True)
class NotDone:
    """What `reconcile` returns of a call that had no effect, and can have none any more unless it is still running.

    The call is made anew where its process, and all that this had started, is known to be dead. A tool that starts what
    leaves its process group (a daemon), or has others act later on its behalf, must not say so.
    """


@dataclass(frozen=True, slots=True)
class ToolPolicy:
    """How a call is tried.

    `timeout` is seconds per attempt (None: no limit), `retries` extra attempts, the first after `backoff` seconds and
    doubling up to `max_backoff`, for the exceptions in `retry_on`. `validate(result)` refuses a result by raising and
    replaces it by returning something other than None. `fallback` is a value, or a function of no arguments that gives
    one, which the model is shown beside the failure. Both functions may be async.
    """

    timeout: float | None = None
    retries: int = 0
    backoff: float = 0.5
    max_backoff: float = MAX_BACKOFF_S
    retry_on: tuple[type[BaseException], ...] = DEFAULT_RETRY_ON
    validate: Callable[[Any], Any] | None = None
    fallback: Any = UNSET

    def __post_init__(self) -> None:
        checks.seconds("timeout", self.timeout, optional=True)
        checks.count("retries", self.retries)
        kinds = self.retry_on if isinstance(self.retry_on, tuple) else (None,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise TypeError(checks.refusal("retry_on", self.retry_on, "a tuple of exception classes"))
        checks.function("validate", self.validate, "a function of the result", optional=True)
        checks.seconds("backoff", self.backoff, zero=True)
        checks.seconds("max_backoff", self.max_backoff, zero=True)


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `parameters` is a JSON schema; calling a Tool calls its function.

    `reversible=False` says that running it twice would harm: it is run at most once, and an interrupted call is
    reported as unknown instead of repeated. `reconcile(idempotency_key)`, which may be async, is asked about such a
    call: `Done(result)` settles it; after `NotDone()` it is made anew if the process that made it is known to be dead;
    anything else leaves it unknown. An unknown outcome is told to the model, or with `on_unknown="ask"` to a person
    first, who finds out. `requires_approval=True` holds every call until a person grants it, or the approver of the
    agent's Guardrails does. `on_cancel` says what becomes of a call under way whose run is cancelled, or late: "stop"
    or "finish"; by default it is stopped, unless it is irreversible and has begun.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    func: Callable[..., Any]
    wants_idempotency_key: bool = False
    policy: ToolPolicy = field(default_factory=ToolPolicy)
    reversible: bool = True
    requires_approval: bool = False
    queue: str | None = None
    signature: Signature | None = None
    reconcile: Callable[[str], Any] | None = None
    on_unknown: OnUnknown = "model"
    on_cancel: OnCancel | None = None

    def __post_init__(self) -> None:
        checks.name("name", self.name, "the name of a tool")
        mine = f"of tool {self.name!r}"
        checks.text(f"description {mine}", self.description)
        checks.kind(f"parameters {mine}", self.parameters, dict, "a JSON schema")
        try:
            json.dumps(self.parameters, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"parameters {mine} cannot be written as JSON ({error}). Correct them.") from None
        checks.function(f"func {mine}", self.func)
        for name in ("reversible", "requires_approval", "wants_idempotency_key"):
            checks.flag(f"{name} {mine}", getattr(self, name))
        checks.name(f"queue {mine}", self.queue, "the name of a queue", optional=True)
        checks.kind(f"signature {mine}", self.signature, Signature, "left to @tool", optional=True)
        checks.function(f"reconcile {mine}", self.reconcile, "a function of a key", optional=True)
        checks.one_of(f"on_unknown {mine}", self.on_unknown, get_args(OnUnknown))
        checks.one_of(f"on_cancel {mine}", self.on_cancel, get_args(OnCancel), optional=True)
        checks.kind(f"policy {mine}", self.policy, ToolPolicy, "a ToolPolicy")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function (or an object whose `__call__` is)."""
        return inspect.iscoroutinefunction(function_behind(self.func))

    @property
    def served_from(self) -> str:
        """The queue its calls go to: its own, else the one of its kind."""
        return self.queue or (ASYNC_TOOL_QUEUE if self.is_async else TOOL_QUEUE)

    def to_schema(self) -> dict[str, Any]:
        """{name, description, input_schema}."""
        return {"name": self.name, "description": self.description, "input_schema": self.parameters}

    def terms(self) -> ToolTerms:
        """What a run records of this tool."""
        return ToolTerms(
            queue=self.served_from,
            reversible=self.reversible,
            requires_approval=self.requires_approval,
            timeout_s=self.policy.timeout,
            schema=self.parameters,
            description=self.description,
            on_unknown=self.on_unknown,
            on_cancel=self.on_cancel,
        )


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    retries: int = 0,
    backoff: float = 0.5,
    max_backoff: float = MAX_BACKOFF_S,
    retry_on: tuple[type[BaseException], ...] | None = None,
    validate: Callable[[Any], Any] | None = None,
    fallback: Any = UNSET,
    reversible: bool = True,
    requires_approval: bool = False,
    queue: str | None = None,
    reconcile: Callable[[str], Any] | None = None,
    on_unknown: OnUnknown = "model",
    on_cancel: OnCancel | None = None,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    retries: int = 0,
    backoff: float = 0.5,
    max_backoff: float = MAX_BACKOFF_S,
    retry_on: tuple[type[BaseException], ...] | None = None,
    validate: Callable[[Any], Any] | None = None,
    fallback: Any = UNSET,
    reversible: bool = True,
    requires_approval: bool = False,
    queue: str | None = None,
    reconcile: Callable[[str], Any] | None = None,
    on_unknown: OnUnknown = "model",
    on_cancel: OnCancel | None = None,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a function, bare (`@tool`) or with options (`@tool(timeout=5)`).

    The name is the function's, the description its docstring, the parameters its annotated signature; a parameter
    named `idempotency_key` is hidden from the model and receives the step's stable key. `queue` sends the calls to a
    queue of their own, by that very name. Raises TypeError or ValueError, naming the tool, for what cannot work.
    """
    policy = ToolPolicy(
        timeout, retries, backoff, max_backoff, DEFAULT_RETRY_ON if retry_on is None else retry_on, validate, fallback
    )

    def make(function: Callable[..., Any]) -> Tool:
        if not callable(function):
            raise TypeError(
                f"tool is applied to {checks.shown(function)}, which cannot be called. Decorate a function."
            )
        behind = function_behind(function)
        own_name = name
        if own_name is None:
            own_name = type(function).__name__ if behind.__name__ == "__call__" else behind.__name__
        signature = signature_of(function, own_name)
        return Tool(
            name=own_name,
            description=_about(function) if description is None else description,
            parameters=signature.schema,
            func=function,
            wants_idempotency_key=signature.wants_idempotency_key,
            policy=policy,
            reversible=reversible,
            requires_approval=requires_approval,
            queue=queue,
            signature=signature,
            reconcile=reconcile,
            on_unknown=on_unknown,
            on_cancel=on_cancel,
        )

    return make if function is None else make(function)


def _about(function: Callable[..., Any]) -> str:
    return inspect.getdoc(function_behind(function)) or ""


def harden(item: Any, **policy: Any) -> Tool:
    """A copy of a tool (or of a function) under a wholly new policy; options left out go back to their defaults.

    The options are ToolPolicy's. TypeError or ValueError for one that does not exist or cannot work.
    """
    checks.function("item", item, "a tool or a function")
    return replace(as_tool(item), policy=ToolPolicy(**policy))


def as_tool(item: Any) -> Tool:
    """A Tool as it is, a plain function as a tool with default options. TypeError for anything else."""
    if isinstance(item, Tool):
        return item
    if callable(item):
        return tool(item)
    raise TypeError(
        f"tools holds {checks.shown(item)}, which is neither a tool nor a function. Pass functions or @tool objects."
    )
