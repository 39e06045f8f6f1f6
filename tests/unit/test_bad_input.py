"""The tables of wrong arguments leave nothing out: every public name is in them, and every argument it takes.

What is in no table is listed here, with the reason why nothing can be wrong with it.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import drangue_client
import drangue_worker
from drangue_worker import errors, events, models, observability, testing
from tests.unit import test_bad_input_agents, test_bad_input_parts

TABLE = [param.values[0] for table in (test_bad_input_agents, test_bad_input_parts) for param in table.TABLE]
MODULES = (drangue_worker, drangue_client, models, errors, events, observability, testing)  # memory's are the first's

PROTOCOL = "nobody makes one: it says what an object of one's own must have"
RECORD = "a record that drangue makes and hands out"
MESSAGE = "an exception that takes a message, as Python's own do"
RAISED = "an exception that drangue raises, and that knows its arguments"
NOTHING = "takes no arguments"
CHECK = "a check: what it is given and does not conform fails it, in its own words"
EXEMPT = {
    **dict.fromkeys(("Memory", "Model", "Router", "Store", "Tracer"), PROTOCOL),
    **dict.fromkeys(("Event", "Result", "Run", "Span", "Submission", "EvalReport", "ScenarioResult"), RECORD),
    **dict.fromkeys(("ProviderCall", "CrashReport"), RECORD),
    **dict.fromkeys(
        ("check_memory", "check_model_interface", "check_router", "check_store", "check_store_claims"), CHECK
    ),
    **dict.fromkeys(("check_store_idempotent_append", "check_store_with_agent", "check_tracer"), CHECK),
    "crash_everywhere": CHECK,
    "install": "needs a Celery app: see tests/acceptance/test_own_app.py",
    "AsyncClient": "hands all it is given to a Client, which is in the table",
    **dict.fromkeys(("allow_model_requests", "forbid_model_requests"), NOTHING),
    "ModelRequestForbidden": "an exception that drangue raises",
    **dict.fromkeys(("NotDone", "NullMemory", "NullTracer"), NOTHING),
    **dict.fromkeys(("AuthError", "DrangueError", "PermanentError", "ToolError"), MESSAGE),
    **dict.fromkeys(("TransientError", "ValidationError"), MESSAGE),
    **dict.fromkeys(("ConflictError", "InFlightError", "LeaseHeldError", "NotPendingError", "RunExistsError"), RAISED),
    **dict.fromkeys(("RunFailedError", "TurnExistsError", "UnknownAgentError", "UnknownRunError"), RAISED),
    **dict.fromkeys(("DatabaseUnavailable", "FormatError", "NoCredentials", "QueueUnavailable"), RAISED),
    **dict.fromkeys(("NotUnknownError", "SettingsError", "WaitTimeout"), RAISED),
    **dict.fromkeys(
        ("ModelResponse", "ToolCall"), "made in every call by models of anybody's: odd values are put right"
    ),
    "RateLimitError": "made while another failure is handled, from what a server sent: it must not raise",
    "Reply": "says what a faulty provider says, so nothing in it is wrong",
}
EXEMPT_ARGUMENTS = {
    "Done": {"result": "anything a tool may return"},
    "Tool": {"fallback": "see tool"},
    "ToolPolicy": {"fallback": "any value; one that cannot be written is told beside the failure when it is needed"},
    "tool": {"fallback": "see ToolPolicy", "function": "given as `tool` in the table: it has no name to be given by"},
    "harden": {"policy": "the table names ToolPolicy's arguments instead"},
    "MemoryItem": {"value": "what a memory of one's own recalls: one that cannot be recorded counts as not recalled"},
    "OpenAIModel": {"kwargs": "go into every request as they are; only the provider knows them"},
    "AnthropicModel": {"kwargs": "see OpenAIModel"},
    "GateDecision": dict.fromkeys(("passed", "blocks", "warnings", "overridden"), "made by Gate.evaluate")
    | dict.fromkeys(("override_reason", "overridden_by"), "made by GateDecision.override"),
}


def public() -> dict[str, Any]:
    """Every public class and function, by its name."""
    found = {name: getattr(module, name) for module in MODULES for name in module.__all__}
    return {name: one for name, one in found.items() if inspect.isclass(one) or inspect.isfunction(one)}


def of(name: str) -> Any:
    """What a name of the table stands for: a public name, or a method of one."""
    owner, _, method = name.partition(".")
    return getattr(public()[owner], method) if method else public()[owner]


def test_every_public_name_is_in_a_table_or_has_a_reason_not_to_be() -> None:
    """A constructor that is added without its wrong arguments would be the one that takes anything."""
    tabled = {row.name.partition(".")[0] for row in TABLE}
    assert tabled | set(EXEMPT) == set(public())
    assert tabled & set(EXEMPT) == set()


@pytest.mark.parametrize("name", sorted({row.name for row in TABLE}))
def test_every_argument_is_in_a_table_or_has_a_reason_not_to_be(name: str) -> None:
    """One that is added later must be checked like the others."""
    takes = set(inspect.signature(of(name)).parameters) - {"self"}
    tabled = {row.argument for row in TABLE if row.name == name} - {"nonesuch"}
    exempt = set(EXEMPT_ARGUMENTS.get(name, {}))
    assert takes - exempt <= tabled
    assert tabled & exempt == set()


@pytest.mark.parametrize("owner", ["Agent", "Client"])
def test_every_method_that_takes_an_argument_is_in_a_table(owner: str) -> None:
    """They are given what comes from outside the program: ids, texts, names."""
    methods = inspect.getmembers(public()[owner], inspect.isfunction)
    taking = {name for name, one in methods if name[0] != "_" and len(inspect.signature(one).parameters) > 1}
    assert taking == {row.name.partition(".")[2] for row in TABLE if row.name.startswith(f"{owner}.")}
