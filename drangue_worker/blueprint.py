"""`Blueprint`: what the engine needs of an agent, checked once when it is made.

It stands below the engine. The `Agent` that people write is above it and hands its blueprint down.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from drangue_client import checks
from drangue_client.answer import FINAL_ANSWER, schema_of
from drangue_client.autonomy import Autonomy
from drangue_client.budget import Budget
from drangue_client.events import canonical
from drangue_client.store.values import AgentRow
from drangue_client.terms import DEFAULT_MAX_STEPS, Terms
from drangue_worker.models.model import ceiling_of, name_of, overhead_of
from drangue_worker.models.named import model_named
from drangue_worker.models.routing import SingleModel
from drangue_worker.models.sdk import MAX_TOKENS
from drangue_worker.tools.guards import Guardrails
from drangue_worker.tools.tool import Tool, as_tool

DEFAULT_MODEL_RETRIES = 2


@dataclass(frozen=True)
class Blueprint:
    """An agent without its face: who thinks (`router`), what it can do (`tools` by name) and under which `terms`."""

    name: str
    router: Any
    tools: dict[str, Tool]
    terms: Terms
    model_retries: int = DEFAULT_MODEL_RETRIES
    guardrails: Guardrails | None = None
    memory: Any = None

    @classmethod
    def of(
        cls,
        *,
        name: str,
        model: Any,
        router: Any = None,
        tools: Sequence[Any] = (),
        instructions: str = "",
        max_steps: int = DEFAULT_MAX_STEPS,
        autonomy: Autonomy | None = None,
        model_retries: int = DEFAULT_MODEL_RETRIES,
        max_tokens: int = MAX_TOKENS,
        cache: bool = False,
        budget: Budget | None = None,
        guardrails: Guardrails | None = None,
        memory: Any = None,
        output_schema: Any = None,
        deadline: float | None = None,
    ) -> Blueprint:
        """Check and assemble. Raises TypeError or ValueError naming the argument that cannot be used."""
        checks.count("max_tokens", max_tokens, least=1)
        router = _router(model, router, max_tokens, checks.flag("cache", cache))
        models = _models(router)
        checks.name("name", name, empty=True)
        checks.text("instructions", instructions, hidden=True)
        checks.count("max_steps", max_steps, least=1)
        checks.count("model_retries", model_retries)
        checks.seconds("deadline", deadline, optional=True)
        checks.kind("autonomy", autonomy, Autonomy, "an Autonomy", optional=True)
        checks.kind("budget", budget, Budget, "a Budget", optional=True)
        checks.kind("guardrails", guardrails, Guardrails, "a Guardrails", optional=True)
        for method in ("recall", "remember"):
            checks.has("memory", memory, method, "an object with methods `recall` and `remember`", optional=True)
        by_name = _by_name(tools)
        _check_names("autonomy", {*autonomy.modes, *autonomy.approvals} if autonomy else (), by_name)
        _check_names("guardrails", {*(guardrails.allow or ()), *guardrails.deny} if guardrails else (), by_name)
        names = tuple(name_of(one) for one in models)
        ceilings = [ceiling_of(one) for one in models]
        known = [one for one in ceilings if one]
        terms = Terms(
            models=names,
            instructions=instructions,
            max_steps=max_steps,
            autonomy=autonomy,
            tools={name: one.terms() for name, one in by_name.items()},
            asked_per_step=getattr(router, "asked_per_step", len(models) or 1),
            output_ceiling=max(known) if len(known) == len(ceilings) and known else None,
            prompt_overhead=max(map(overhead_of, models), default=0),
            budget=budget,
            guards=guardrails.terms() if guardrails else None,
            memory=memory is not None,
            output_schema=schema_of(output_schema),
            deadline_s=deadline,
        )
        if budget and budget.hard:
            _check_worst_case(budget, names, ceilings)
        return cls(name, router, by_name, terms, model_retries, guardrails, memory)

    def named(self, name: str) -> Blueprint:
        """The same blueprint under the name it is registered by."""
        return replace(self, name=name)

    def check(self) -> None:
        """Ask every model whether it could be called (an API key is there). Raises NoCredentials. Calls nobody."""
        for model in getattr(self.router, "models", ()):
            if hasattr(model, "check"):
                model.check()

    @property
    def queues(self) -> set[str]:
        """The queues its tools are served from."""
        return {tool.served_from for tool in self.tools.values()}

    def row(self) -> AgentRow:
        """What a worker registers."""
        terms = self.terms.to_json()
        summary = {"models": terms["models"], "tools": sorted(self.tools)}
        return AgentRow(self.name, hashlib.sha256(canonical(terms).encode()).hexdigest(), summary)


def _router(model: Any, router: Any, max_tokens: int, cache: bool) -> Any:
    if cache and (router is not None or not isinstance(model, str)):
        raise ValueError("cache=True only applies to a model given by name. Pass cache=True to the model object.")
    if isinstance(model, str) and router is None:
        model = model_named(model, max_tokens=max_tokens, cache=cache)
    chosen = router if router is not None else model
    if chosen is None:
        raise ValueError("model is missing. Pass a name, such as 'gpt-4o' or 'claude-sonnet-5', or a model object.")
    if router is not None:
        return checks.has("router", router, "choose", "an object with a method `choose`")
    if callable(getattr(chosen, "choose", None)):
        return checks.has("model", chosen, "choose", "a router")
    checks.has("model", chosen, "generate", "an object with an async method `generate`, or `choose` as a router")
    return SingleModel(chosen)


def _models(router: Any) -> tuple[Any, ...]:
    """The models a router says it chooses among; none where its `models` is something else."""
    models = getattr(router, "models", ())
    listed = tuple(models) if isinstance(models, Sequence) and not isinstance(models, str) else ()
    return listed if all(callable(getattr(one, "generate", None)) for one in listed) else ()


def _by_name(tools: Any) -> dict[str, Tool]:
    by_name: dict[str, Tool] = {}
    for one in map(as_tool, checks.many("tools", tools, "a list of tools and functions")):
        if one.name == FINAL_ANSWER:
            raise ValueError(f"tools holds {FINAL_ANSWER!r}, by which structured answers are delivered. Rename it.")
        if one.name in by_name:
            raise ValueError(f"tools holds two tools named {one.name!r}. Rename one with @tool(name=...).")
        by_name[one.name] = one
    return by_name


def _check_names(argument: str, names: Iterable[str], tools: Iterable[str]) -> None:
    """A policy may be shared by agents with other tools, but a misspelt name would be a gate that is not there."""
    for name in names:
        close = get_close_matches(name, tools, n=1, cutoff=0.8) if name not in tools else []
        if close:
            raise ValueError(f"{argument} names {name!r}, which is no tool of this agent. Did you mean {close[0]!r}?")


def _check_worst_case(budget: Budget, names: tuple[str | None, ...], ceilings: list[int | None]) -> None:
    """A hard budget must know, before a call, the most that it can cost."""
    if not names:
        raise ValueError("budget is hard, but the router does not name its `models`. Give it that attribute.")
    for name, ceiling in zip(names, ceilings, strict=True):
        if ceiling is None:
            raise ValueError(f"budget is hard, but model {name!r} has no output ceiling. Give it `max_tokens`.")
        if budget.max_usd is not None and not {"input", "output"} <= set((budget.prices or {}).get(str(name), ())):
            raise ValueError(f"budget is hard, so prices[{str(name)!r}] must be there, with `input` and `output`.")
