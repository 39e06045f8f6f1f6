"""Guardrails: what an agent's author lets pass, at four points: the input, each call, the action gate, each result.

Names allowed and denied are data and are recorded with a run; the four functions run inside the steps of a worker, and
their verdict is recorded with the step's result. One rule of truth for all of them: a guard that returns something
true has refused, and what it returned is the reason. A guard that raises has not let anything pass.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from drangue_client import checks, terms
from drangue_worker.tools.invoke import either, text_of

REASON_CHARS = 2000  # of a refusal's reason: it stands in the run's control state while the turn ends
_FUNCTIONS = ("approver", "input_guard", "output_guard", "result_guard")


@dataclass(frozen=True, slots=True)
class Guardrails:
    """`allow` names the tools that may be called (None: all of the agent's), `deny` those that may not.

    `input_guard(text)` judges each turn's input, `output_guard(name, arguments)` each call before it is made, and
    `result_guard(name, content)` what the model is shown of it; each returns a reason to refuse, or None. A tool with
    `requires_approval`, and with `require_approval_for_irreversible` every irreversible one, is gated:
    `approver(name, arguments)` decides if there is one, else a person is asked. A person's recorded approval is enough
    either way. The functions may be async. Raises TypeError, naming the argument, for what cannot be used.
    """

    allow: Iterable[str] | None = None
    deny: Iterable[str] = frozenset()
    require_approval_for_irreversible: bool = False
    approver: Callable[[str, dict[str, Any]], Any] | None = None
    input_guard: Callable[[str], Any] | None = None
    output_guard: Callable[[str, dict[str, Any]], Any] | None = None
    result_guard: Callable[[str, str], Any] | None = None

    def __post_init__(self) -> None:
        for name in _FUNCTIONS:
            checks.function(name, getattr(self, name), optional=True)
        checks.flag("require_approval_for_irreversible", self.require_approval_for_irreversible)
        if self.allow is not None:
            object.__setattr__(self, "allow", checks.tool_names("allow", self.allow))
        object.__setattr__(self, "deny", checks.tool_names("deny", self.deny))

    def terms(self) -> terms.Guards:
        """What a run records of these."""
        return terms.Guards(
            allow=None if self.allow is None else frozenset(self.allow),
            deny=frozenset(self.deny),
            gate_irreversible=self.require_approval_for_irreversible,
            input=self.input_guard is not None,
            output=self.output_guard is not None,
            result=self.result_guard is not None,
            approver=self.approver is not None,
        )


async def refusal(guard: Callable[..., Any], *about: Any, of: str, limit_s: float | None = None) -> str | None:
    """Why a guard refuses, or None. Raises what the guard raises, TransientError when `limit_s` seconds are over."""
    verdict = await either(functools.partial(guard, *copy.deepcopy(about)), limit_s)  # it judges, and changes nothing
    if not verdict:
        return None
    reason = "" if verdict is True else text_of(verdict) if isinstance(verdict, Exception) else str(verdict)
    return reason[:REASON_CHARS] or f"refused by {of}"


async def approved(
    approver: Callable[..., Any], name: str, arguments: dict[str, Any], limit_s: float | None = None
) -> bool:
    """Whether the author's approver grants a call. Raises what it raises, TransientError when `limit_s` are over."""
    return bool(await either(functools.partial(approver, name, copy.deepcopy(arguments)), limit_s))
