"""`Blueprint`: what the engine needs of an agent, checked once."""

from __future__ import annotations

from typing import Any

import pytest

from drangue_client.autonomy import Autonomy
from drangue_client.budget import Budget
from drangue_client.errors import NoCredentials
from drangue_client.terms import Guards, Terms
from drangue_worker.blueprint import Blueprint
from drangue_worker.memory import MemoryItem, NullMemory
from drangue_worker.models.routing import RuleRouter, SingleModel
from drangue_worker.testing.fake import FakeModel
from drangue_worker.tools.guards import Guardrails
from drangue_worker.tools.tool import tool
from tests.kit.naming import shown


def read(city: str) -> str:
    """Read."""
    return city


async def fetch(url: str) -> str:
    return url


@tool(queue="browser")
def browse(url: str) -> str:
    return url


def blueprint(**given: Any) -> Blueprint:
    return Blueprint.of(**{"name": "oncall", "model": FakeModel(), **given})


def test_a_model_alone_is_an_agent() -> None:
    """Everything else has a default, and the terms say which."""
    model = FakeModel()
    made = Blueprint.of(name="oncall", model=model)
    assert isinstance(made.router, SingleModel)
    assert made.router.model is model
    assert (made.tools, made.model_retries) == ({}, 2)
    assert made.terms == Terms(models=("fake",), instructions="", max_steps=20, autonomy=None, tools={}, window=32)


def test_the_terms_hold_what_a_run_records() -> None:
    """A run goes on under them, whatever becomes of this code."""
    autonomy = Autonomy(modes={"read": "assisted"})
    made = blueprint(tools=[read, browse], instructions="Be brief.", max_steps=3, autonomy=autonomy)
    assert made.terms == Terms(
        models=("fake",),
        instructions="Be brief.",
        max_steps=3,
        autonomy=autonomy,
        tools={"read": tool(read).terms(), "browse": browse.terms()},
    )


def test_a_router_given_as_model_routes() -> None:
    """It is told by its `choose`."""
    router = RuleRouter(FakeModel(), [(lambda m, i: True, FakeModel())])
    made = blueprint(model=router)
    assert made.router is router
    assert made.terms.models == ("fake", "fake")


def test_a_router_wins_over_a_model() -> None:
    """Both may be given; the more particular one counts."""
    router = SingleModel(FakeModel())
    assert blueprint(model=FakeModel(), router=router).router is router
    assert blueprint(model=None, router=router).router is router


@pytest.mark.parametrize("models", [None, (), "gpt-4o", 5, ("gpt-4o",), {"gpt-4o": FakeModel()}], ids=shown)
def test_a_router_that_does_not_tell_its_models_is_taken_as_it_is(models: Any) -> None:
    """`choose` is all the engine asks for; an attribute of a stranger's may mean something else."""

    class Own:
        def choose(self, *, messages: Any, step_index: int) -> Any: ...

    own = Own()
    if models is not None:
        own.models = models  # type: ignore[attr-defined]
    assert blueprint(model=own).terms.models == ()


def test_functions_and_tools_may_be_mixed() -> None:
    """Tools are known by name from here on."""
    made = blueprint(tools=[read, browse])
    assert list(made.tools) == ["read", "browse"]
    assert made.tools["browse"] is browse


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model": None}, ValueError, "model is missing"),
        ({"model": 5}, TypeError, r"model is 5.*generate"),
        ({"model": "gpt"}, ValueError, r"model is 'gpt', which names no provider"),
        ({"cache": True}, ValueError, "cache=True only applies"),
        ({"instructions": None}, TypeError, "instructions is NoneType"),
        ({"max_steps": 0}, ValueError, "max_steps is 0"),
        ({"max_steps": 2.5}, TypeError, "max_steps is 2.5"),
        ({"max_steps": None}, TypeError, "max_steps is None"),
        ({"model_retries": -1}, ValueError, "model_retries is -1"),
        ({"autonomy": {"pay": "assisted"}}, TypeError, "autonomy is .*Autonomy"),
        ({"tools": [5]}, TypeError, "tools holds 5"),
        ({"budget": 100}, TypeError, "budget is 100; it must be a Budget"),
        ({"guardrails": {"deny": ["pay"]}}, TypeError, "guardrails is .*it must be a Guardrails"),
        ({"memory": {}}, TypeError, "memory is .*`recall`"),
        ({"memory": MemoryItem("a", 1)}, TypeError, "memory is .*`recall` and `remember`"),
        ({"output_schema": 5}, TypeError, "output_schema is 5"),
        ({"output_schema": {"type": "integr"}}, ValueError, "output_schema is no JSON schema"),
        ({"tools": [tool(name="final_answer")(read)]}, ValueError, "'final_answer', by which structured answers"),
    ],
    ids=shown,
)
def test_an_argument_that_cannot_be_used_is_named(given: dict[str, Any], error: type[Exception], message: str) -> None:
    """Where the agent is written, not in the first run."""
    with pytest.raises(error, match=message):
        blueprint(**given)


def test_one_step_and_no_retry_are_enough() -> None:
    """The smallest agent that can answer."""
    made = blueprint(max_steps=1, model_retries=0)
    assert (made.terms.max_steps, made.model_retries) == (1, 0)


def test_two_tools_of_one_name_are_refused() -> None:
    """The later one silently replaced the earlier one once."""
    with pytest.raises(ValueError, match="two tools named 'read'"):
        blueprint(tools=[read, tool(name="read")(fetch)])


def test_its_queues_are_those_of_its_tools() -> None:
    """Workers make exactly these."""
    assert blueprint(tools=[read, fetch, browse]).queues == {"drangue.tool", "drangue.async_tool", "browser"}
    assert blueprint().queues == set()


def test_another_name_changes_nothing_else() -> None:
    """The registry names it after the variable it is bound to."""
    made = blueprint(tools=[read])
    assert made.named("night").name == "night"
    assert made.named("night").named("oncall") == made


def test_a_row_says_what_a_worker_serves() -> None:
    """`submit` and the console read it."""
    row = blueprint(tools=[read, browse]).row()
    assert (row.name, row.summary) == ("oncall", {"models": ["fake"], "tools": ["browse", "read"]})


def test_the_fingerprint_changes_with_the_terms_and_with_nothing_else() -> None:
    """Two deploys that differ must be told apart; a reordered list or another name is no difference."""
    made = blueprint(tools=[read, browse])
    same = [blueprint(tools=[browse, read]), made.named("night")]
    others = [
        blueprint(tools=[read]),
        blueprint(tools=[read, browse], instructions="Be brief."),
        blueprint(tools=[read, browse], max_steps=3),
        blueprint(tools=[read, browse], autonomy=Autonomy()),
        blueprint(tools=[read, browse], budget=Budget(max_tokens=5)),
        blueprint(tools=[read, browse], guardrails=Guardrails()),
        blueprint(tools=[read, browse], memory=NullMemory()),
        blueprint(tools=[read, browse], output_schema={"type": "object"}),
    ]
    assert {one.row().fingerprint for one in same} == {made.row().fingerprint}
    assert len({one.row().fingerprint for one in (made, *others)}) == 9


def test_checking_asks_every_model_it_may_choose() -> None:
    """A missing key is found before a run waits for it, also that of a model only a rule chooses."""

    class Keyless(FakeModel):
        def check(self) -> None:
            raise NoCredentials("no key")

    blueprint().check()
    with pytest.raises(NoCredentials):
        blueprint(model=RuleRouter(FakeModel(), [(lambda m, i: False, Keyless())])).check()


def test_a_model_may_be_given_by_name() -> None:
    """The shortest way to an agent; what is recorded is the provider's own name for it."""
    assert Blueprint.of(name="a", model="gpt-4o").terms.models == ("gpt-4o",)
    made = Blueprint.of(name="a", model="anthropic:claude-x", max_tokens=7, cache=True).router.model
    assert (made.model, made.max_tokens) == ("claude-x", 7)


def test_budget_guardrails_memory_and_form_are_terms_and_their_code_is_not() -> None:
    """The rules read what was recorded; the functions stay with the worker."""
    guardrails, memory = Guardrails(deny={"pay"}, input_guard=lambda text: None), NullMemory()
    budget = Budget(max_tokens=5)
    made = blueprint(budget=budget, guardrails=guardrails, memory=memory, output_schema={"type": "object"})
    assert made.terms == Terms(
        models=("fake",),
        budget=budget,
        guards=Guards(deny=frozenset({"pay"}), input=True),
        memory=True,
        output_schema={"type": "object"},
    )
    assert (made.guardrails, made.memory) == (guardrails, memory)


def test_a_memory_need_be_nothing_but_its_two_methods() -> None:
    """A backend of one's own, plain functions included, has no class of ours to inherit from."""

    class Notes:
        def recall(self, query: str) -> list[MemoryItem]: ...

        def remember(self, item: MemoryItem) -> None: ...

    assert blueprint(memory=Notes()).terms.memory
