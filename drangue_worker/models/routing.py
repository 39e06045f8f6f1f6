"""Which model takes the next step, and which one when that one fails for good.

A router chooses before a step and chooses alike for every attempt; what the attempts showed is no business of its. So
the fallback is a model: it asks the next one within the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from drangue_client import checks
from drangue_client.errors import PermanentError, TransientError, may_have_cost
from drangue_client.messages import Message, ModelResponse
from drangue_worker.models.model import OnDelta, name_of, takes_deltas
from drangue_worker.models.named import as_model
from drangue_worker.tools.tool import Tool


@runtime_checkable
class Router(Protocol):
    """Chooses by the conversation so far; `step_index` counts the model calls before this one, over all turns."""

    def choose(self, *, messages: list[Message], step_index: int) -> Any:
        """A model. Must give the same one for the same input, or a retried step may change models."""


class SingleModel:
    """Always the same model."""

    def __init__(self, model: Any) -> None:
        self.model = as_model("model", model)

    def choose(self, *, messages: list[Message], step_index: int) -> Any:
        return self.model

    @property
    def models(self) -> tuple[Any, ...]:
        """Every model this router can choose; of a fallback, those it is made of."""
        return models_of(self.model)

    @property
    def asked_per_step(self) -> int:
        """How many models one step may ask."""
        return len(self.models)


class RuleRouter:
    """The model of the first rule `(predicate, model)` whose `predicate(messages, step_index)` is true, else
    `default`."""

    def __init__(self, default: Any, rules: Iterable[tuple[Callable[[list[Message], int], object], Any]] = ()) -> None:
        self.default = as_model("default", default)
        pairs = checks.many("rules", rules, "a list of pairs (predicate, model)")
        self.rules = tuple(_rule(f"rules[{number}]", rule) for number, rule in enumerate(pairs))

    def choose(self, *, messages: list[Message], step_index: int) -> Any:
        for predicate, model in self.rules:
            if predicate(messages, step_index):
                return model
        return self.default

    @property
    def models(self) -> tuple[Any, ...]:
        """Every model this router can choose; of a fallback, those it is made of."""
        return tuple(one for model in self._choices for one in models_of(model))

    @property
    def asked_per_step(self) -> int:
        """How many models one step may ask, at most."""
        return max(len(models_of(model)) for model in self._choices)

    @property
    def _choices(self) -> tuple[Any, ...]:
        return (self.default, *(model for _, model in self.rules))


class FallbackModel:
    """Asks the first of `models`, and the next one when that fails for good: a refused key, a rejected request.

    What another attempt may mend (TransientError, RateLimitError) goes to the engine, which tries again from the first
    model on. With `on_transient=True` it too leads to the next model, at once: an outage looks like that, and the
    engine's few attempts do not outlast it. When every model failed, the error is transient if any of theirs was.

    Every model but the first is given an idempotency key of its own, as it is asked something else. A stream that fails
    half-way has shown its beginning already; the next model's text comes after it.
    """

    def __init__(self, *models: Any, on_transient: bool = False) -> None:
        if not models:
            raise ValueError("models is empty. Name at least one: FallbackModel(first, second).")
        self._asked = tuple(as_model(f"models[{number}]", one) for number, one in enumerate(models))
        self.on_transient = checks.flag("on_transient", on_transient)

    @property
    def models(self) -> tuple[Any, ...]:
        """Every model that may be asked, in their order; of a fallback among them, those it is made of."""
        return tuple(one for model in self._asked for one in models_of(model))

    @property
    def asked_per_step(self) -> int:
        """How many models one step may ask."""
        return len(self.models)

    def check(self) -> None:
        """Ask every model whether it could be called: a fallback without a key is none. Raises NoCredentials."""
        for model in self.models:
            if hasattr(model, "check"):
                model.check()

    async def generate(
        self,
        *,
        system: str,
        messages: list[Message],
        tools: Sequence[Tool],
        idempotency_key: str | None = None,
        on_delta: OnDelta | None = None,
    ) -> ModelResponse:
        """The first answer there is, under the name of the model that gave it. PermanentError tells all failures."""
        failures: list[Exception] = []
        for number, model in enumerate(self._asked):
            more: dict[str, Any] = {"on_delta": on_delta} if on_delta and takes_deltas(model) else {}
            key = f"{idempotency_key}+{number}" if idempotency_key and number else idempotency_key
            try:
                response: ModelResponse = await model.generate(
                    system=system, messages=messages, tools=tools, idempotency_key=key, **more
                )
            except Exception as error:
                failures.append(error)
                if isinstance(error, TransientError) and not self.on_transient:
                    raise _with_cost(error, failures) from error.__cause__
            else:
                unanswered = response.unanswered + _billed(failures)
                return replace(response, model=response.model or name_of(model), unanswered=unanswered)
        raise _with_cost(self._verdict(failures), failures)

    def _verdict(self, failures: list[Exception]) -> Exception:
        transient = [error for error in failures if isinstance(error, TransientError)]
        if transient or len(failures) == 1:
            return (transient or failures)[-1]
        told = [f"{name_of(model)}: {error}" for model, error in zip(self._asked, failures, strict=True)]
        return PermanentError(f"every model failed: {'; '.join(told)}")

    async def aclose(self) -> None:
        """Close the clients the models made for the running event loop."""
        for model in self.models:
            if hasattr(model, "aclose"):
                await model.aclose()


class FallbackRouter(SingleModel):
    """`FallbackRouter(first, second)`: a FallbackModel of these takes every step."""

    def __init__(self, *models: Any, on_transient: bool = False) -> None:
        super().__init__(FallbackModel(*models, on_transient=on_transient))


def _rule(name: str, rule: Any) -> tuple[Callable[[list[Message], int], object], Any]:
    if not isinstance(rule, tuple) or len(rule) != 2 or not callable(rule[0]):
        raise TypeError(checks.refusal(name, rule, "a pair (predicate, model)"))
    return rule[0], as_model(f"{name}[1]", rule[1])


def _billed(failures: Sequence[Exception]) -> int:
    return sum(may_have_cost(error) for error in failures)


def _with_cost(error: Exception, failures: Sequence[Exception]) -> Exception:
    """The error, knowing of a call before it that may have been billed although this one was not."""
    error.may_have_cost = bool(_billed(failures))  # type: ignore[attr-defined]  # an exception of anybody's
    return error


def models_of(model: Any) -> tuple[Any, ...]:
    """The models that one model may ask: a fallback asks several, in their order."""
    return model.models if isinstance(model, FallbackModel) else (model,)
