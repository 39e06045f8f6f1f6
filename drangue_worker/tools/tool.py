"""`Tool` and `@tool`: a function an agent may call, with what the runtime must know to call it safely."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, overload

from drangue_client.errors import RateLimitError, TransientError
from drangue_client.terms import ToolTerms
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
        if self.timeout is not None and not (_is_number(self.timeout) and 0 < self.timeout < math.inf):
            raise ValueError(f"timeout is {self.timeout!r}; it must be a positive number of seconds, or None.")
        if not isinstance(self.retries, int) or isinstance(self.retries, bool) or self.retries < 0:
            raise ValueError(f"retries is {self.retries!r}; it must be a whole number of at least 0.")
        kinds = self.retry_on if isinstance(self.retry_on, tuple) else (None,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise TypeError(f"retry_on is {self.retry_on!r}; it must be a tuple of exception classes.")
        if self.validate is not None and not callable(self.validate):
            raise TypeError(f"validate is {self.validate!r}; it must be a function of the result.")
        for name in ("backoff", "max_backoff"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value < math.inf):
                raise ValueError(f"{name} is {value!r}; it must be a number of seconds, at least 0.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `parameters` is a JSON schema; calling a Tool calls its function.

    `reversible=False` says that running it twice would harm: it is run at most once, and an interrupted call is
    reported as unknown instead of repeated. `reconcile(idempotency_key)`, which may be async, is asked about such a
    call: `Done(result)` settles it, anything else leaves it unknown. `requires_approval=True` holds every call until a
    person grants it, or the approver of the agent's Guardrails does.
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

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 200:
            raise ValueError(f"name is {self.name!r}; a tool needs a name of 1 to 200 characters.")
        for name in ("reversible", "requires_approval", "wants_idempotency_key"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} of tool {self.name!r} is {getattr(self, name)!r}; it must be True or False.")
        if not isinstance(self.description, str):
            raise TypeError(f"description of tool {self.name!r} is {self.description!r}; it must be text.")
        if not isinstance(self.parameters, dict):
            raise TypeError(f"parameters of tool {self.name!r} is {self.parameters!r}; it must be a JSON schema.")
        if self.queue is not None and (not isinstance(self.queue, str) or not self.queue.strip()):
            raise ValueError(f"queue of tool {self.name!r} is {self.queue!r}; it must be the name of a queue.")
        if not callable(self.func):
            raise TypeError(f"func of tool {self.name!r} is {self.func!r}; it must be a function.")
        if self.signature is not None and not isinstance(self.signature, Signature):
            raise TypeError(f"signature of tool {self.name!r} is {self.signature!r}; leave it to @tool.")
        if self.reconcile is not None and not callable(self.reconcile):
            raise TypeError(f"reconcile of tool {self.name!r} is {self.reconcile!r}; it must be a function of a key.")
        if not isinstance(self.policy, ToolPolicy):
            raise TypeError(f"policy of tool {self.name!r} is {self.policy!r}; it must be a ToolPolicy.")

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
            raise TypeError(f"tool is applied to {function!r}, which cannot be called. Decorate a function.")
        behind = function_behind(function)
        own_name = name or (type(function).__name__ if behind.__name__ == "__call__" else behind.__name__)
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
        )

    return make if function is None else make(function)


def _about(function: Callable[..., Any]) -> str:
    return inspect.getdoc(function_behind(function)) or ""


def harden(item: Any, **policy: Any) -> Tool:
    """A copy of a tool (or of a function) under a wholly new policy; options left out go back to their defaults.

    The options are ToolPolicy's. TypeError or ValueError for one that does not exist or cannot work.
    """
    return replace(as_tool(item), policy=ToolPolicy(**policy))


def as_tool(item: Any) -> Tool:
    """A Tool as it is, a plain function as a tool with default options. TypeError for anything else."""
    if isinstance(item, Tool):
        return item
    if callable(item):
        return tool(item)
    raise TypeError(f"tools holds {item!r}, which is neither a tool nor a function. Pass functions or @tool objects.")
