"""What the rules can ask for. A command is an order; whoever obeys it appends the fact that it was carried out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Screen:
    """Open the step in which this turn's input is judged."""

    step: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Open the step in which memory is asked, once per run."""

    step: int = 0


@dataclass(frozen=True, slots=True)
class CallModel:
    """Open a model step."""

    step: int


@dataclass(frozen=True, slots=True)
class CallTool:
    """Open a tool step on the queue its tool is served from; `on_cancel` is what to do about it when its turn ends."""

    step: int
    name: str
    queue: str
    on_cancel: str | None = None


@dataclass(frozen=True, slots=True)
class AskApproval:
    """Record that a call waits for a person."""

    step: int
    name: str


@dataclass(frozen=True, slots=True)
class Escalate:
    """Record that others are asked about a waiting call too."""

    step: int
    name: str


@dataclass(frozen=True, slots=True)
class Expire:
    """Record that nobody decided about a waiting call in time."""

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
class Judge:
    """Record whether a delivered answer matches the schema."""

    step: int


@dataclass(frozen=True, slots=True)
class Correct:
    """Tell the model why its text is not the answer asked for, and let it try again."""

    text: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """End the turn with the answer that the call of this step delivered; `matches` the schema, or taken as it is."""

    step: int
    matches: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """End the turn. `reason` is `answered`, `schema` (answered, but not as asked), `max_steps`, `budget`, `blocked` or
    `deadline`; `structured` says that the output is JSON that matches the schema."""

    output: str
    reason: str
    structured: bool = False


Opening = Screen | Recall | CallModel | CallTool
Command = Opening | AskApproval | Escalate | Expire | Propose | Deny | Refuse | Judge | Correct | Deliver | Finish
