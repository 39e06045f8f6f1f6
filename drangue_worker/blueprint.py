"""`Blueprint`: what the engine needs of an agent, checked once when it is made.

It stands below the engine. The `Agent` that people write is above it and hands its blueprint down.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from drangue_client.events import canonical
from drangue_client.store.port import AgentRow
from drangue_client.terms import DEFAULT_MAX_STEPS, Autonomy, Terms
from drangue_worker.models.model import name_of
from drangue_worker.models.named import model_named
from drangue_worker.models.routing import SingleModel
from drangue_worker.models.sdk import MAX_TOKENS
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
    ) -> Blueprint:
        """Check and assemble. Raises TypeError or ValueError naming the argument that cannot be used."""
        if cache and (router is not None or not isinstance(model, str)):
            raise ValueError("cache=True only applies to a model given by name. Pass cache=True to the model object.")
        if isinstance(model, str) and router is None:
            model = model_named(model, max_tokens=max_tokens, cache=cache)
        router = router or model
        if router is None:
            raise ValueError(
                "model is missing. Pass a name, such as 'gpt-4o' or 'claude-sonnet-4-5', or a model object."
            )
        if not hasattr(router, "choose"):
            router = SingleModel(router)
        models = tuple(getattr(router, "models", ()))
        for one in models:
            if not callable(getattr(one, "generate", None)):
                raise TypeError(f"model is {one!r}; it must have an async method `generate`, or `choose` as a router.")
        if not isinstance(instructions, str):
            raise TypeError(f"instructions is {type(instructions).__name__}; it must be text.")
        if not isinstance(max_steps, int) or max_steps < 1:
            raise ValueError(f"max_steps is {max_steps!r}; it must be a whole number of at least 1.")
        if not isinstance(model_retries, int) or model_retries < 0:
            raise ValueError(f"model_retries is {model_retries!r}; it must be a whole number of at least 0.")
        if autonomy is not None and not isinstance(autonomy, Autonomy):
            raise TypeError(f"autonomy is {autonomy!r}; it must be an Autonomy.")
        by_name: dict[str, Tool] = {}
        for one in map(as_tool, tools):
            if one.name in by_name:
                raise ValueError(f"tools holds two tools named {one.name!r}. Rename one with @tool(name=...).")
            by_name[one.name] = one
        terms = Terms(
            models=tuple(name_of(one) for one in models),
            instructions=instructions,
            max_steps=max_steps,
            autonomy=autonomy,
            tools={name: one.terms() for name, one in by_name.items()},
        )
        return cls(name, router, by_name, terms, model_retries)

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
