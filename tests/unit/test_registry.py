"""`Registry`: which agents a worker serves, found by the places DRANGUE_AGENTS names."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drangue_client.errors import SettingsError
from drangue_worker.blueprint import Blueprint
from drangue_worker.registry import OneAgent, Registry
from drangue_worker.testing.fake import FakeModel
from drangue_worker.tools.tool import tool

HEAD = "from drangue_worker import Agent\nfrom drangue_worker.testing.fake import FakeModel\n"
numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module of agents into the folder the test stands in; gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def write(text: str) -> str:
        name = f"made_agents_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(HEAD + text)
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("made_agents_"):
            del sys.modules[name]


def named(name: str, **given: object) -> Blueprint:
    return Blueprint.of(name=name, model=FakeModel(), **given)  # type: ignore[arg-type]


def loaded(*places: str) -> list[str]:
    return sorted(blueprint.name for blueprint in Registry.load(places))


def test_blueprints_are_found_by_name() -> None:
    """A worker that lacks an agent must know that it does."""
    oncall = named("oncall")
    registry = Registry([oncall, named("shop")])
    assert (registry.get("oncall"), registry.get("else"), len(registry)) == (oncall, None, 2)


def test_the_queues_of_all_tools_are_served() -> None:
    """A step sent to a queue nobody made would wait for ever."""

    @tool(queue="browser")
    def browse(url: str) -> None: ...

    async def fetch(url: str) -> None: ...

    registry = Registry([named("a", tools=[browse]), named("b", tools=[browse, fetch]), named("c")])
    assert registry.queues == {"browser", "drangue.async_tool"}
    assert Registry().queues == set()


def test_two_agents_of_one_name_are_refused() -> None:
    """Which of them would have answered?"""
    with pytest.raises(SettingsError, match=r"two agents are named 'oncall'.*name="):
        Registry([named("oncall"), named("oncall", instructions="Be brief.")])


def test_a_module_gives_every_agent_at_its_top_level(module: Callable[[str], str]) -> None:
    """Under its own name, or the variable's."""
    name = module("oncall = Agent(FakeModel())\nshop = Agent(FakeModel(), name='store')\nnumber = 5\n")
    assert loaded(name) == ["oncall", "store"]


def test_a_place_may_name_one_agent(module: Callable[[str], str]) -> None:
    """A worker may serve one of many."""
    name = module("oncall = Agent(FakeModel())\nshop = Agent(FakeModel(), name='store')\n")
    assert loaded(f"{name}:shop") == ["store"]
    assert loaded(f"{name}:oncall", f"{name}:shop") == ["oncall", "store"]


def test_an_agent_bound_twice_is_served_once(module: Callable[[str], str]) -> None:
    """`default = oncall` is an alias, not a second agent."""
    assert len(loaded(module("oncall = Agent(FakeModel(), name='oncall')\ndefault = oncall\n"))) == 1


def test_an_agent_reached_by_two_places_is_served_once(module: Callable[[str], str]) -> None:
    """A module and one of its agents, or two modules of which one imports from the other: still the same agent."""
    shop = module("shop = Agent(FakeModel())\n")
    more = module(f"from {shop} import shop\noncall = Agent(FakeModel())\n")
    assert loaded(shop, f"{shop}:shop") == ["shop"]
    assert loaded(shop, more) == ["oncall", "shop"]


def test_a_blueprint_at_the_top_level_is_named_after_its_variable(module: Callable[[str], str]) -> None:
    """As an agent is; an empty name could never be submitted to."""
    text = "from drangue_worker.blueprint import Blueprint\nnight = Blueprint.of(name='', model=FakeModel())\n"
    assert loaded(module(text)) == ["night"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("made_agents_nowhere", "no module 'made_agents_nowhere'"),
        ("made_agents_nowhere.deep:oncall", "no module 'made_agents_nowhere.deep'"),
        ("json.nowhere", "no module 'json.nowhere'"),
        ("json", "holds no Agent"),
        ("json:loads", "'loads' there is no Agent"),
        ("json:nothing", "'nothing' there is no Agent"),
        (":oncall", "DRANGUE_AGENTS names ':oncall'"),
        (".agents", "DRANGUE_AGENTS names '.agents'"),
    ],
)
def test_a_place_that_leads_nowhere_is_named(place: str, message: str, module: Callable[[str], str]) -> None:
    """A worker that started without its agents would look healthy and do nothing."""
    with pytest.raises(SettingsError, match="DRANGUE_AGENTS names") as caught:
        Registry.load([place])
    assert message in str(caught.value)


def test_a_module_that_cannot_import_shows_its_own_error(module: Callable[[str], str]) -> None:
    """`no module` would send its author looking in the wrong place."""
    name = module("import made_agents_missing_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="made_agents_missing_dependency"):
        Registry.load([name])


def test_the_folder_of_the_command_is_searched_once(module: Callable[[str], str]) -> None:
    """Agents usually live beside the command; every load must not lengthen the path."""
    name = module("oncall = Agent(FakeModel())\n")
    before = len(sys.path)
    loaded(name)
    loaded(name)
    assert len(sys.path) == before + 1


def test_no_place_is_no_agent() -> None:
    """Whether that is enough is for the worker to say."""
    assert len(Registry.load([])) == 0


def test_one_agent_answers_to_every_name() -> None:
    """The inline shell's agents need no name, and a run of another name may be resumed by it."""
    oncall = named("")
    assert [OneAgent([oncall]).get(name) for name in ("", "agent", "else")] == [oncall] * 3
    assert OneAgent().get("agent") is None
