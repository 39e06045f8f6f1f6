"""What the rules can ask for. A command is an order; whoever obeys it appends the fact that it was carried out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallModel:
    """Open a model step."""

    step: int


@dataclass(frozen=True, slots=True)
class CallTool:
    """Open a tool step on the queue its tool is served from."""

    step: int
    name: str
    queue: str


@dataclass(frozen=True, slots=True)
class AskApproval:
    """Record that a call waits for a person."""

    step: int
    name: str


@dataclass(frozen=True, slots=True)
class Propose:
    """Record a call of a shadow tool as proposed, without running it."""

    step: int
    name: str


@dataclass(frozen=True, slots=True)
class Deny:
    """Record a person's refusal as the call's result."""

    step: int
    name: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Record a failure as the call's result, without running it."""

    step: int
    name: str
    category: str
    message: str


@dataclass(frozen=True, slots=True)
class Finish:
    """End the turn. `reason` is `answered` or `max_steps`."""

    output: str
    reason: str


Command = CallModel | CallTool | AskApproval | Propose | Deny | Refuse | Finish
