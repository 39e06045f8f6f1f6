"""The public names: what an agent's author may import, from where, and what it means."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import subprocess
import sys

import pytest

import drangue_worker
from drangue_client import errors
from drangue_client.store.log import SqlLog
from drangue_client.store.port import Log
from drangue_worker import Agent, AgentRegistry, InMemoryStore, Store
from drangue_worker.errors import __all__ as ERRORS
from drangue_worker.registry import Registry
from drangue_worker.testing import FakeModel

NAMES = {
    "facade": ["Agent", "tool", "Tool", "harden"],
    "policy": ["ToolPolicy", "Budget", "Guardrails", "Autonomy"],
    "errors": ["ToolError", "TransientError", "PermanentError", "AuthError", "RateLimitError", "ValidationError"],
    "run errors": ["UnknownRunError", "ConflictError", "LeaseHeldError"],
    "data": ["Event", "Result", "Span", "ModelResponse", "ToolCall"],
    "models": ["Model", "AnthropicModel", "OpenAIModel"],
    "routing": ["Router", "SingleModel", "RuleRouter"],
    "stores": ["Store", "InMemoryStore", "SQLiteStore"],
    "registry": ["AgentRegistry"],
    "tracing": ["Tracer", "NullTracer", "ConsoleTracer", "OTelTracer"],
    "memory": ["Memory", "MemoryItem", "NullMemory"],
    "evals": ["Scenario", "ScenarioResult", "Check", "EvalReport", "evaluate", "Judge", "Gate", "GateDecision"],
    "checks": ["output_contains", "output_satisfies", "forbids_tool", "within_steps", "within_tokens", "judged"],
    "results": ["scenario_from_result", "tools_called"],
    "ours": [
        "Approval",
        "Client",
        "Done",
        "NotDone",
        "DrangueError",
        "FallbackModel",
        "FallbackRouter",
        "Limits",
        "install",
        "PostgresStore",
        "Settings",
    ],
    "constants": ["DEFAULT_RETRY_ON"],
}
HOMES = {
    "drangue_worker.models": [*NAMES["models"], *NAMES["routing"], "ModelResponse", "ToolCall", "FallbackModel"],
    "drangue_worker.memory": ["Memory", "MemoryItem", "NullMemory"],
    "drangue_worker.errors": [*NAMES["errors"], *NAMES["run errors"], "DrangueError"],
    "drangue_worker.events": ["Event", "Result", "Span"],
    "drangue_worker.observability": ["Tracer", "NullTracer", "ConsoleTracer", "OTelTracer"],
    "drangue_worker.observability.otel": ["OTelTracer"],
    "drangue_client": ["Client", "Settings", "Budget", "Autonomy", "Event", "Result", "DrangueError"],
}


@pytest.mark.parametrize("group", NAMES)
def test_a_public_name_is_importable_from_the_top(group: str) -> None:
    """One import serves a whole program; a name that is gone breaks it on the day it is deployed."""
    assert set(NAMES[group]) <= set(drangue_worker.__all__)
    for name in NAMES[group]:
        assert getattr(drangue_worker, name).__doc__


def test_no_name_is_public_by_accident() -> None:
    """What is listed is kept; whoever adds a name to it decides so, here too."""
    assert set(drangue_worker.__all__) == {name for names in NAMES.values() for name in names}


@pytest.mark.parametrize("home", HOMES)
def test_a_public_name_is_the_same_thing_at_its_home(home: str) -> None:
    """Of two classes of one name, `isinstance` and `except` would each know one."""
    module = importlib.import_module(home)
    for name in HOMES[home]:
        assert getattr(module, name) is getattr(drangue_worker, name)


def test_what_tests_of_agents_need_is_importable_from_one_place() -> None:
    """Nobody imports it into a program by accident."""
    from drangue_worker.testing import FakeModel, Provider, RecordingTracer

    assert all(inspect.isclass(one) for one in (FakeModel, Provider, RecordingTracer))
    assert not {"FakeModel", "Provider", "RecordingTracer"} & set(drangue_worker.__all__)


@pytest.mark.parametrize("name", ["Engine", "EventSourcedEngine", "RunContext", "RunSpec", "context_from_spec"])
def test_a_name_that_nothing_would_stand_behind_is_absent(name: str) -> None:
    """A fleet has no engine object to hand in; a name that did nothing would hide that."""
    for module in (drangue_worker, *map(importlib.import_module, HOMES)):
        assert not hasattr(module, name)


def test_a_store_is_a_log_that_lists_what_happened() -> None:
    """The one thing users do with a store of their own accord: read a run."""
    assert Store is Log
    assert issubclass(InMemoryStore, SqlLog)
    store = InMemoryStore()
    result = Agent(FakeModel(), store=store).run_sync("hello", run_id="r")
    assert asyncio.run(store.load("r")) == result.events
    assert asyncio.run(store.load("nobody")) == []
    assert [event.type for event in result.events] == ["run_started", "model_decision", "run_finished"]


@pytest.mark.parametrize("method", ["append", "acquire_lease", "release_lease"])
def test_a_store_is_not_written_to_by_hand(method: str) -> None:
    """Claims and settlements are transactions; a lease beside them would be a second truth."""
    assert not hasattr(InMemoryStore, method)


def test_a_store_has_every_method_that_the_port_asks_for() -> None:
    """`Store` is what an annotation says, so it must be true of every store there is."""
    asked = {name for name, one in inspect.getmembers(Store, inspect.isfunction) if name[0] != "_"}
    assert {name for name in asked if not callable(getattr(InMemoryStore, name, None))} == set()


def test_the_registry_is_the_one_that_workers_serve_from() -> None:
    """An agent that is added to it can be found by its name."""
    assert AgentRegistry is Registry
    agent = Agent(FakeModel(), name="oncall")
    registry = AgentRegistry([agent])
    assert registry.get("oncall") is agent.blueprint
    assert registry.get("nobody") is None


PARENTS = {
    "DrangueError": Exception,
    "ToolError": errors.DrangueError,
    "TransientError": errors.ToolError,
    "RateLimitError": errors.TransientError,
    "PermanentError": errors.ToolError,
    "AuthError": errors.ToolError,
    "ValidationError": errors.ToolError,
    "UnknownRunError": KeyError,
    "UnknownAgentError": LookupError,
    "LeaseHeldError": errors.DrangueError,
    "ConflictError": errors.DrangueError,
    "InFlightError": ValueError,
    "NotPendingError": ValueError,
    "NotUnknownError": ValueError,
    "RunExistsError": ValueError,
    "TurnExistsError": ValueError,
    "WaitTimeout": TimeoutError,
}


@pytest.mark.parametrize("name", PARENTS)
def test_an_error_is_caught_by_what_one_would_catch(name: str) -> None:
    """Code written for KeyError, ValueError or TimeoutError goes on working, and so does code for all of ours."""
    error = getattr(errors, name)
    assert issubclass(error, PARENTS[name])
    assert issubclass(error, errors.DrangueError)


def test_no_error_is_caught_by_what_one_would_not_catch() -> None:
    """`except ToolError` must not swallow what is wrong with the run, nor a retry repeat what would fail alike."""
    of_tools = {name for name in ERRORS if issubclass(getattr(errors, name), errors.ToolError)}
    assert of_tools == set(NAMES["errors"])
    retried = {name for name in of_tools if issubclass(getattr(errors, name), drangue_worker.DEFAULT_RETRY_ON)}
    assert retried == {"TransientError", "RateLimitError"}


def test_errors_of_a_run_know_what_they_are_about() -> None:
    """Nobody parses a message."""
    assert errors.UnknownRunError("r").run_id == "r"
    assert errors.LeaseHeldError("r").run_id == "r"
    conflict = errors.ConflictError("r", 3, "taken")
    assert (conflict.run_id, conflict.seq, str(conflict)) == ("r", 3, "taken")
    assert "'r'" in str(errors.ConflictError("r", 3))
    limited = errors.RateLimitError()
    assert (str(limited), limited.retry_after) == ("rate limited", None)
    assert errors.RateLimitError("slow down", retry_after="2.5").retry_after == 2.5


def test_an_unknown_run_reads_as_a_sentence() -> None:
    """KeyError alone would show the message in quotes."""
    assert str(errors.UnknownRunError("r")).startswith("there is no run 'r'.")


def test_modules_of_the_package_are_found_as_attributes() -> None:
    """`import drangue_worker` alone, as a notebook has it; nothing else must have been loaded before."""
    program = (
        "import drangue_worker, sys; assert 'drangue_worker.public' not in sys.modules; "
        "print(*(one.__name__ for one in (drangue_worker.evals.Gate, drangue_worker.testing.FakeModel)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "Gate FakeModel\n"
    with pytest.raises(AttributeError, match="module 'drangue_worker' has no attribute 'nonesuch'"):
        _ = drangue_worker.nonesuch
    assert {"Agent", "tool"} <= set(dir(drangue_worker))
