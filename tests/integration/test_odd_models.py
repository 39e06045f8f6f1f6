"""Whatever a model answers, the run ends, it can be read, and nothing is left lying."""

from __future__ import annotations

from typing import Any

import pytest

from drangue_worker import Agent, Autonomy, Budget, Guardrails, ModelResponse
from tests.kit.inline import Scripted, calls, categories, contents
from tests.kit.naming import shown
from tests.kit.odd import DEEP, ended, kind

SCHEMA = {"type": "object"}
USED = {"input_tokens": 1, "output_tokens": 1}


@pytest.mark.parametrize("arguments", [[], [1], [{}], '{"n": 2}', "no json", 5, True, DEEP, {"n": DEEP}], ids=kind)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"autonomy": Autonomy(default="assisted")},
        {"autonomy": Autonomy(default="shadow")},
        {"guardrails": Guardrails(output_guard=lambda name, arguments: None)},
    ],
    ids=["autonomous", "assisted", "shadow", "guarded"],
)
def test_arguments_of_any_shape_are_the_models_to_mend(
    act: Any, ran: list[int], arguments: Any, options: dict[str, Any]
) -> None:
    """They are refused, and nobody is asked about them."""
    agent = Agent(Scripted(calls(("act", arguments)), "done"), [act], **options)
    result = ended(agent)
    assert (result.output, ran, categories(agent.store)) == ("done", [], ["invalid_arguments"])


def test_no_arguments_are_no_arguments(act: Any, ran: list[int]) -> None:
    """A call without any may leave them out."""
    agent = Agent(Scripted(calls(("act", None)), "done"), [act])
    assert (ended(agent).output, ran, contents(agent.store)) == ("done", [1], ["acted"])


@pytest.mark.parametrize("arguments", [None, [1], [{}], "no json", 5, DEEP], ids=kind)
def test_an_answer_of_any_shape_is_judged(arguments: Any) -> None:
    """An answer that is no object does not match one that must be."""
    model = Scripted(calls(("final_answer", arguments)), calls(("final_answer", {"n": 1})))
    result = ended(Agent(model, output_schema=SCHEMA | {"required": ["n"]}))
    assert (result.output_parsed, result.reason) == ({"n": 1}, "answered")


@pytest.mark.parametrize("text", [None, 5, 1.5, True, {"a": 1}, [1], b"bytes", object(), "a\x00b\ud800"], ids=shown)
def test_text_of_any_kind_is_an_answer_or_a_failure(text: Any) -> None:
    """A model of one's own is soon written wrong."""
    assert ended(Agent(Scripted(ModelResponse(text, usage=USED)))).status in ("completed", "failed")


@pytest.mark.parametrize(
    "text",
    [
        None,
        5,
        True,
        {"a": 1},
        [1],
        b"bytes",
    ],
    ids=repr,
)
def test_text_of_any_kind_is_judged(text: Any) -> None:
    """It is no answer of a form, or it is one that was written down wrong; the run ends either way."""
    result = ended(Agent(Scripted(ModelResponse(text, usage=USED)), output_schema=SCHEMA))
    assert result.status in ("completed", "failed")


@pytest.mark.parametrize(
    "usage", ["many", [1], {"input_tokens": 10**400}, {"input_tokens": float("inf")}, {1: 2}, {"x": {"y": 1}}], ids=repr
)
@pytest.mark.parametrize(
    "budget", [None, Budget(max_tokens=100), Budget(max_usd=1, prices={"scripted": {"input": 1}})], ids=repr
)
def test_usage_of_any_kind_can_be_counted(usage: Any, budget: Any) -> None:
    """What was spent is a number, whatever was reported."""
    result = ended(Agent(Scripted(ModelResponse("done", usage=usage)), budget=budget))
    assert result.status == "completed"
    assert all(isinstance(count, int | float) for count in result.usage.values())


@pytest.mark.parametrize(
    "odd",
    [
        {"tool_calls": None},
        {"tool_calls": ()},
        {"stop_reason": ["length"]},
        {"stop_reason": 5},
        {"reasoning": object()},
        {"reasoning": ["step one"]},
        {"thinking_blocks": "text"},
        {"thinking_blocks": [1, None]},
        {"model": ["a", "b"]},
        {"model": 5},
    ],
    ids=shown,
)
def test_an_odd_field_of_an_answer_leaves_the_answer(odd: dict[str, Any]) -> None:
    """What is beside the text is no reason to lose it."""
    given = {"text": "done", "usage": USED, **odd}
    agent = Agent(Scripted(ModelResponse(**given)), budget=Budget(max_usd=1, prices={"scripted": {"input": 1}}))
    assert ended(agent).status == "completed"


@pytest.mark.parametrize(
    "answer", [None, "text", {"text": "x"}, 5, [], ModelResponse(tool_calls=[{"name": "act"}])], ids=repr
)
def test_what_is_no_answer_fails_the_run(answer: Any, act: Any) -> None:
    """And says so in its record."""
    model = Scripted(answer)
    model.responses = [answer]
    result = ended(Agent(model, [act]))
    assert (result.status, result.reason, bool(result.error)) == ("failed", "error", True)
