"""`Registry`: which agents this worker serves, by name.

`DRANGUE_AGENTS` lists modules (`shop.agents`: every agent at its top level) and single agents (`shop.agents:oncall`).
An agent is registered under its own name if it was given one, else under the variable it is bound to.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from drangue_client import checks
from drangue_client.errors import SettingsError
from drangue_client.settings import Settings
from drangue_worker.blueprint import Blueprint


class Registry:
    """Agents by name, as the blueprints the engine needs."""

    def __init__(self, agents: Iterable[Any] = ()) -> None:
        self._by_name: dict[str, Blueprint] = {}
        for agent in checks.many("agents", agents, "a list of agents"):
            self.add(agent)

    def add(self, agent: Any) -> None:
        """Serve one more agent (or blueprint), once however often it is added.

        SettingsError if another one has its name, TypeError for what is no agent.
        """
        blueprint = _blueprint(agent, "")
        if blueprint is None:
            raise TypeError(checks.refusal("agent", agent, "an Agent"))
        if self._by_name.get(blueprint.name, blueprint) != blueprint:
            raise SettingsError(
                f"two agents are named {blueprint.name!r}. Give one a name of its own: Agent(..., name='...')."
            )
        self._by_name[blueprint.name] = blueprint

    def get(self, name: str) -> Blueprint | None:
        """The blueprint of this name, if this worker has it."""
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[Blueprint]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def queues(self) -> set[str]:
        """Every queue that some tool of these agents is served from."""
        return set().union(*(blueprint.queues for blueprint in self))

    @property
    def async_queues(self) -> set[str]:
        """Queues that only async tools are served from."""
        tools = [tool for blueprint in self for tool in blueprint.tools.values()]
        return {tool.served_from for tool in tools} - {tool.served_from for tool in tools if not tool.is_async}

    @classmethod
    def load(cls, places: Iterable[str]) -> Registry:
        """Import what `DRANGUE_AGENTS` names. SettingsError says which place is wrong and how."""
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # agents usually live beside the command that serves them
        registry = cls()
        for place in places:
            for blueprint in _found_at(place):
                registry.add(blueprint)
        return registry


def serving(settings: Settings, *, thinking: bool = True) -> Registry:
    """The agents that a worker with these settings serves; SettingsError or NoCredentials if it could not.

    `thinking` is whether it calls models: a worker of tools needs no API key.
    """
    if not settings.agents:
        raise SettingsError(
            "DRANGUE_AGENTS is not set, so there is nothing to serve. Set it to the module that holds your agents, "
            "such as DRANGUE_AGENTS=shop.agents."
        )
    registry = Registry.load(settings.agents)
    if thinking:
        for blueprint in registry:
            blueprint.check()
    return registry


class OneAgent(Registry):
    """A registry that answers to every name with the same agent: the inline shell's, whose agents need no name."""

    def get(self, name: str) -> Blueprint | None:
        return next(iter(self), None)


def _found_at(place: str) -> list[Blueprint]:
    module_name, named, attribute = place.partition(":")
    if not module_name or module_name.startswith(".") or (named and not attribute):
        raise SettingsError(f"DRANGUE_AGENTS names {place!r}, which is no module. Write pkg.module or pkg.module:name.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name and not module_name.startswith(f"{error.name}."):
            raise  # the module is there; something it imports is not, and that traceback is the user's
        raise SettingsError(
            f"DRANGUE_AGENTS names {place!r}, but there is no module {module_name!r}. Correct it, or start "
            "in the folder that holds it."
        ) from None
    if attribute:
        blueprint = _blueprint(getattr(module, attribute, None), attribute)
        if blueprint is None:
            raise SettingsError(f"DRANGUE_AGENTS names {place!r}, but {attribute!r} there is no Agent. Correct it.")
        return [blueprint]
    found = {}
    for name, value in vars(module).items():
        blueprint = _blueprint(value, name)
        if blueprint is not None:
            found[id(value)] = blueprint
    if not found:
        raise SettingsError(f"DRANGUE_AGENTS names {place!r}, but that module holds no Agent. Correct it.")
    return list(found.values())


def _blueprint(value: Any, name: str) -> Blueprint | None:
    blueprint = value if isinstance(value, Blueprint) else getattr(value, "blueprint", None)
    if not isinstance(blueprint, Blueprint):
        return None
    return blueprint if blueprint.name else blueprint.named(name)
