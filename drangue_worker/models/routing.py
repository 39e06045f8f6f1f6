"""Which model takes the next step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from drangue_client.messages import Message


@runtime_checkable
class Router(Protocol):
    """Chooses by the conversation so far; `step_index` counts the model calls before this one, over all turns."""

    def choose(self, *, messages: list[Message], step_index: int) -> Any:
        """A model. Must give the same one for the same input, or a retried step may change models."""


class SingleModel:
    """Always the same model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def choose(self, *, messages: list[Message], step_index: int) -> Any:
        return self.model

    @property
    def models(self) -> tuple[Any, ...]:
        """Every model this router can choose."""
        return (self.model,)


class RuleRouter:
    """The model of the first rule `(predicate, model)` whose `predicate(messages, step_index)` is true, else
    `default`."""

    def __init__(self, default: Any, rules: Sequence[tuple[Callable[[list[Message], int], object], Any]] = ()) -> None:
        self.default = default
        self.rules = tuple(rules)

    def choose(self, *, messages: list[Message], step_index: int) -> Any:
        for predicate, model in self.rules:
            if predicate(messages, step_index):
                return model
        return self.default

    @property
    def models(self) -> tuple[Any, ...]:
        """Every model this router can choose."""
        return (self.default, *(model for _, model in self.rules))
