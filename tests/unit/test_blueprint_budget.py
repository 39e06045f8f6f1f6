"""What a `Blueprint` says of the models it may ask, so that a hard budget knows the worst of them beforehand."""

from __future__ import annotations

from typing import Any

import pytest

from drangue_client.budget import Budget
from drangue_worker.blueprint import Blueprint
from drangue_worker.models.routing import FallbackModel, FallbackRouter, RuleRouter, SingleModel
from drangue_worker.testing.fake import FakeModel


def blueprint(**given: Any) -> Blueprint:
    return Blueprint.of(**{"name": "oncall", "model": FakeModel(), **given})


class Bounded(FakeModel):
    """A model that says how much it can answer."""

    def __init__(self, name: str, max_tokens: Any = 100) -> None:
        super().__init__()
        self.model = name
        self.max_tokens = max_tokens


ONE, TWO, THREE = Bounded("one"), Bounded("two", 300), Bounded("three", 200)


@pytest.mark.parametrize(
    ("model", "models", "asked", "ceiling"),
    [
        (ONE, ("one",), 1, 100),
        (SingleModel(TWO), ("two",), 1, 300),
        (RuleRouter(ONE, [(lambda m, i: True, TWO)]), ("one", "two"), 1, 300),
        (FallbackModel(ONE, TWO), ("one", "two"), 2, 300),
        (FallbackRouter(ONE, TWO, THREE), ("one", "two", "three"), 3, 300),
        (FallbackModel(ONE, FallbackModel(TWO, THREE)), ("one", "two", "three"), 3, 300),
        (RuleRouter(THREE, [(lambda m, i: True, FallbackModel(ONE, TWO))]), ("three", "one", "two"), 2, 300),
        (FakeModel(), ("fake",), 1, None),
        (FallbackModel(FakeModel(), ONE), ("fake", "one"), 2, None),
    ],
    ids=["model", "single", "rule", "fallback", "router", "nested", "rule of a fallback", "unbounded", "half bounded"],
)
def test_the_terms_say_how_many_models_a_step_may_ask_and_how_much_each_may_answer(
    model: Any, models: tuple[str, ...], asked: int, ceiling: int | None
) -> None:
    """A hard budget reserves for the worst of it, from these two numbers alone."""
    terms = blueprint(model=model).terms
    assert (terms.models, terms.asked_per_step, terms.output_ceiling) == (models, asked, ceiling)


def test_a_router_of_ones_own_is_taken_to_ask_every_model_it_names() -> None:
    """It has not said otherwise."""

    class Own:
        models = (ONE, TWO)

        def choose(self, *, messages: Any, step_index: int) -> Any: ...

    assert (blueprint(model=Own()).terms.asked_per_step, blueprint(model=ONE).terms.asked_per_step) == (2, 1)


@pytest.mark.parametrize(("said", "ceiling"), [(0, None), (-5, None), (True, None), ("9", None), (None, None), (7, 7)])
def test_a_ceiling_that_is_no_count_is_none(said: Any, ceiling: int | None) -> None:
    """Attributes of strangers mean what they like; reserving nothing for an answer would be no limit."""
    assert blueprint(model=Bounded("one", said)).terms.output_ceiling == ceiling


def test_the_terms_say_how_much_a_models_own_settings_add_to_a_prompt() -> None:
    """The most of them, since a hard budget must hold whichever is asked."""

    class Padded(Bounded):
        prompt_overhead = 70

    assert blueprint(model=ONE).terms.prompt_overhead == 0
    assert blueprint(model=FallbackModel(ONE, Padded("padded"))).terms.prompt_overhead == 70


class Unnamed(Bounded):
    def __init__(self) -> None:
        super().__init__("")
        self.model = None  # type: ignore[assignment]


class Mute:
    def choose(self, *, messages: Any, step_index: int) -> Any: ...


USD = {"max_usd": 1.0, "prices": {"one": {"input": 1.0, "output": 2.0}}}
HALF = {"max_usd": 1.0, "prices": {"one": {"input": 1.0}}}


@pytest.mark.parametrize(
    ("model", "budget", "message"),
    [
        (FakeModel(), {"max_tokens": 9}, "model 'fake' has no output ceiling. Give it `max_tokens`"),
        (FallbackModel(ONE, FakeModel()), {"max_tokens": 9}, "model 'fake' has no output ceiling"),
        (TWO, USD, "prices\\['two'\\] must be there"),
        (RuleRouter(ONE, [(lambda m, i: False, TWO)]), USD, "prices\\['two'\\] must be there"),
        (Mute(), {"max_tokens": 9}, "the router does not name its `models`"),
        (Unnamed(), USD, "prices\\['None'\\] must be there"),
        (ONE, HALF, "prices\\['one'\\] must be there, with `input` and `output`"),
    ],
    ids=["no ceiling", "none of a fallback", "no price", "none of a rule", "no models", "no name", "half a price"],
)
def test_a_hard_budget_that_could_not_know_the_worst_case_is_refused(
    model: Any, budget: dict[str, Any], message: str
) -> None:
    """Where the agent is written: in a run it would hold nothing, or stop everything."""
    with pytest.raises(ValueError, match=f"budget is hard, .*{message}"):
        blueprint(model=model, budget=Budget(**budget, hard=True))
    blueprint(model=model, budget=Budget(**budget))


def test_a_hard_budget_that_knows_the_worst_case_is_accepted() -> None:
    """Tokens need no prices, and dollars only those of the models there are."""
    assert blueprint(model=FallbackModel(ONE, TWO), budget=Budget(max_tokens=9, hard=True)).terms.budget is not None
    assert blueprint(model=ONE, budget=Budget(**USD, hard=True)).terms.budget == Budget(**USD, hard=True)
