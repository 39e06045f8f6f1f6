"""Which model takes the next step."""

from __future__ import annotations

from typing import Any

from drangue_worker.models.model import Model, name_of
from drangue_worker.models.routing import Router, RuleRouter, SingleModel
from drangue_worker.testing.fake import FakeModel

SMALL, LARGE, CODER = FakeModel(), FakeModel(), FakeModel()
HELLO = [{"role": "user", "content": "hello"}]


def test_one_model_takes_every_step() -> None:
    """The common case."""
    router = SingleModel(LARGE)
    assert [router.choose(messages=HELLO, step_index=index) for index in (0, 7)] == [LARGE, LARGE]


def test_the_first_rule_that_holds_chooses() -> None:
    """Rules are read from the top, like any list of exceptions."""
    router = RuleRouter(LARGE, [(lambda m, i: i == 1, SMALL), (lambda m, i: i <= 1, CODER)])
    assert [router.choose(messages=HELLO, step_index=index) for index in (0, 1, 2)] == [CODER, SMALL, LARGE]


def test_a_rule_sees_the_conversation_and_the_index_by_position() -> None:
    """Users write `lambda messages, step: ...` with names of their own."""
    seen: list[Any] = []
    RuleRouter(LARGE, [(lambda a, b: seen.append((a, b)), SMALL)]).choose(messages=HELLO, step_index=3)
    assert seen == [(HELLO, 3)]


def test_a_rule_may_answer_with_anything_true() -> None:
    """A match object or a count is an answer; nothing and zero are none."""
    router = RuleRouter(LARGE, [(lambda m, i: [], SMALL), (lambda m, i: 0, SMALL), (lambda m, i: "yes", CODER)])
    assert router.choose(messages=HELLO, step_index=0) is CODER


def test_without_rules_the_default_chooses() -> None:
    """Rules may be given away one after the other."""
    assert RuleRouter(LARGE).choose(messages=HELLO, step_index=0) is LARGE


def test_rules_from_a_generator_hold_for_every_step() -> None:
    """Read lazily they would be used up by the first one."""
    router = RuleRouter(LARGE, (pair for pair in [(lambda m, i: True, SMALL)]))  # type: ignore[arg-type]
    assert [router.choose(messages=HELLO, step_index=index) for index in (0, 1)] == [SMALL, SMALL]


def test_routers_tell_every_model_they_can_choose() -> None:
    """All are checked for a key before a run starts, and recorded by name."""
    assert SingleModel(LARGE).models == (LARGE,)
    assert RuleRouter(LARGE, [(lambda m, i: True, SMALL)]).models == (LARGE, SMALL)


def test_a_router_and_a_model_are_told_apart_by_what_they_can_do() -> None:
    """Nobody has to inherit from anything."""
    assert (isinstance(SingleModel(LARGE), Router), isinstance(LARGE, Router)) == (True, False)
    assert (isinstance(LARGE, Model), isinstance(SingleModel(LARGE), Model)) == (True, False)


def test_a_model_is_recorded_by_its_name_if_it_has_one() -> None:
    """Prices hang on the name; a wrong kind of attribute is no name."""
    assert [name_of(one) for one in (FakeModel(), object(), SingleModel(LARGE))] == ["fake", None, None]
