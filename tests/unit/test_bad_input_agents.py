"""Wrong arguments for agents, for what they may do, and for their tools."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

import drangue_worker as dw
from drangue_worker.testing import FakeModel
from tests.unit.wrong_arguments import (
    HUGE,
    INF,
    NAN,
    NO_COUNT,
    NO_TEXT,
    Table,
    Unprintable,
    Wrong,
    check_refused,
    nested,
)

TABLE = Table()
NO_FLAG = (None, 1, "no")
NO_FUNCTION: tuple[Any, ...] = (5, "name", [])


def read(city: str) -> str:
    """Read."""
    return city


# Agents

SCHEMA = {
    "output_schema": (
        5,
        "text",
        [],
        True,
        int,
        {"type": "nope"},
        {"properties": {"a": 5}},
        {"pattern": "("},
        {"$ref": "http://127.0.0.1/schema"},
        {"$ref": "#/$defs/missing"},
        {"properties": nested(5_000)},
    )
}
TABLE.add(
    "Agent",
    dw.Agent,
    {"model": FakeModel()},
    model=(None, 5, "", "gpt", True, [], FakeModel),
    tools=(5, "read", dw.tool(read), [5], [None], {"read": read}, [read, read], 0, ""),
    instructions=NO_TEXT,
    name=(*NO_TEXT, "x" * 201, "a\x00b", "\ud800", " "),
    router=(5, 0, False, "", "gpt-4o", FakeModel(), dw.SingleModel),
    max_steps=(*NO_COUNT, 0),
    max_tokens=(-1, "3"),
    cache=(True,),
    store=(5, 0, "runs.db", dw.InMemoryStore),
    tracer=(5, 0, "console", dw.NullTracer),
    budget=(5, {"max_tokens": 5}, dw.Budget),
    guardrails=(5, {"allow": []}, dw.Guardrails),
    autonomy=(5, "assisted", dw.Autonomy),
    memory=(5, [], dw.NullMemory),
    model_retries=NO_COUNT,
    deadline=(0, -1, NAN, INF, True, "60", []),
    **SCHEMA,
)
TABLE.add(
    "Agent",
    dw.Agent,
    {"model": FakeModel(), "tools": [read]},
    guardrails=(dw.Guardrails(deny={"reads"}),),
    autonomy=(dw.Autonomy(modes={"reads": "assisted"}),),
)
for name in ("gpt-4o", "claude-x"):
    TABLE.add("Agent", dw.Agent, {"model": name}, max_tokens=(*NO_COUNT, 0), cache=("no", 1))


def agent() -> dw.Agent:
    """One that answers at once."""
    return dw.Agent(FakeModel(), store=dw.InMemoryStore())


def resumed(**given: Any) -> None:
    one = agent()
    one.run_sync("go", run_id="r")
    asyncio.run(one.resume(**given))


def streamed(**given: Any) -> None:
    async def go() -> None:
        async for _ in agent().stream(**given):
            pass

    asyncio.run(go())


def decided(verdict: str, **given: Any) -> None:
    """A verdict on a call that waits."""
    one = dw.Agent(FakeModel([[("read", {"city": "x"})], "done"]), [read], autonomy=dw.Autonomy("assisted"))
    one.run_sync("go", run_id="r")
    asyncio.run(getattr(one, verdict)(**{"run_id": "r", **given}))


RUN: dict[str, Any] = {
    "input": (5, 0, False, b"x", [], {"question": "x"}),
    "run_id": ("", "a b", "x" * 201, "a\x00", 5, b"x"),
    "trace": ("no",),
    "turn_id": (5, b"x", "", "x" * 201),
    **SCHEMA,
}
TABLE.add("Agent.run_sync", lambda **given: agent().run_sync(**given), {"input": "go"}, **RUN)
TABLE.add("Agent.run", lambda **given: asyncio.run(agent().run(**given)), {"input": "go"}, **RUN)
TABLE.add("Agent.stream", streamed, {"input": "go"}, **RUN, after=("x", 1.5, -2, 2**31))
TABLE.add("Agent.resume", resumed, {"run_id": "r"}, run_id=(None, 5), trace=("no",))
BY: dict[str, Any] = {"by": (None, 5), "reason": (None, 5, Unprintable())}
TABLE.add("Agent.cancel", lambda **given: asyncio.run(agent().cancel(**given)), {"run_id": "r"}, run_id=(None, 5), **BY)
TABLE.add(
    "Agent.approve",
    lambda **given: decided("approve", **given),
    {},
    arguments=(5, "x", [("city", "x")], {"city": 5, "country": 7}, {}),
    arguments_hash=(5, "", " "),
)
for verdict in ("approve", "reject"):
    TABLE.add(
        f"Agent.{verdict}",
        lambda verdict=verdict, **given: decided(verdict, **given),
        {},
        run_id=(None, 5),
        call_id=(5, "", "nonesuch"),
        **BY,
    )
TABLE.add(
    "Agent.pending_approvals", lambda **given: asyncio.run(agent().pending_approvals(**given)), {}, run_id=(None, 5)
)
TABLE.add(
    "Agent.unknown_outcomes", lambda **given: asyncio.run(agent().unknown_outcomes(**given)), {}, run_id=(None, 5)
)
TABLE.add(
    "Agent.give_outcome",
    lambda **given: asyncio.run(agent().give_outcome(**given)),
    {"run_id": "r", "happened": True},
    run_id=(None, 5),
    call_id=(5, ""),
    happened=(None, 1, "yes"),
    note=(5, None),
    **BY,
)
TABLE.add(
    "Agent.remember", lambda **given: asyncio.run(agent().remember(**given)), {}, item=(None, 5, "x", {"key": "k"})
)

# What an agent may do

TABLE.add(
    "Autonomy",
    dw.Autonomy,
    {},
    default=(None, "asisted", 5, [], ""),
    modes=({"read": None}, {"read": "x"}, {5: "assisted"}, None, 5, "assisted", ["read"]),
    approval=(None, 5, {"people": 2}, dw.Approval),
    approvals=(None, 5, ["read"], {"read": 2}, {5: dw.Approval()}, {"read": None}),
)
TABLE.add(
    "Limits",
    dw.Limits,
    {},
    max_steps=(*NO_COUNT[1:], 0),
    budget=(5, {"max_tokens": 5}, dw.Budget),
    autonomy=(5, "assisted", dw.Autonomy),
    deny=(5, "read", [5], [None], None),
)
TABLE.add(
    "Approval",
    dw.Approval,
    {},
    people=(*NO_COUNT, 0, 101),
    group=NO_TEXT,
    escalate_s=(0, -1, NAN, True, "5", 60),  # the last names nobody to escalate to
    escalate_to=(*NO_TEXT, "leads"),  # the last says not when
    expires_s=(0, -1, NAN, True, "5"),
    on_expiry=(None, "ignore", 5),
)
TABLE.add(
    "Budget",
    dw.Budget,
    {"prices": {"m": {"input": 1.0}}, "max_tokens": 5},
    max_tokens=(-1, True, 1.5, NAN, INF, "3"),
    max_usd=(-1, True, NAN, INF, "3", 10**400),
    prices=(
        5,
        "x",
        [],
        {"m": 5},
        {"m": {"inptu": 1}},
        {"m": {"input": -1}},
        {"m": {"input": NAN}},
        {"m": {"input": "1"}},
        {"m": {"input": 10**400}},
        {5: {"input": 1}},
    ),
    hard=NO_FLAG,
)
TABLE.add("Budget", dw.Budget, {"max_usd": 1.0}, prices=(None, {}))
TABLE.add("Budget", dw.Budget, {}, hard=(True,))
TABLE.add(
    "Guardrails",
    dw.Guardrails,
    {},
    allow=("read", 5, [5], True),
    deny=(None, "read", 5, [None]),
    require_approval_for_irreversible=NO_FLAG,
    approver=NO_FUNCTION,
    input_guard=NO_FUNCTION,
    output_guard=NO_FUNCTION,
    result_guard=NO_FUNCTION,
)
TABLE.add(
    "MemoryItem",
    dw.MemoryItem,
    {"key": "k", "value": 1},
    key=NO_TEXT,
    expires_at=("x", True, datetime(2026, 1, 1, tzinfo=UTC), NAN, HUGE),
)

# Tools

WAIT = (-1, NAN, INF, True, None, "5")
POLICY: dict[str, Any] = {
    "timeout": (0, -1, NAN, INF, True, "5", []),
    "retries": NO_COUNT,
    "backoff": WAIT,
    "max_backoff": WAIT,
    "retry_on": (5, "x", ValueError, [ValueError], (5,), (int,), ("ValueError",)),
    "validate": NO_FUNCTION,
}
GATES: dict[str, Any] = {
    "reversible": NO_FLAG,
    "requires_approval": NO_FLAG,
    "queue": (5, b"x", [], "", " ", "x" * 201, "a\x00b"),
    "reconcile": NO_FUNCTION,
    "on_unknown": ("person", None, 5),
    "on_cancel": ("kill", 5, False),
}
TABLE.add("ToolPolicy", dw.ToolPolicy, {}, **POLICY)
TABLE.add("harden", dw.harden, {"item": read}, item=(None, 5, "read"), **POLICY)
TABLE.add(
    "tool",
    lambda **given: dw.tool(**given)(read),
    {},
    name=(5, b"x", "x" * 201, "", 0, "a\x00b", "\ud800"),
    description=(5, b"x", []),
    **POLICY,
    **GATES,
)
TABLE.add("tool", lambda tool: dw.tool(tool), {}, tool=(5, "read", [], max))
TABLE.add(
    "Tool",
    dw.Tool,
    {"name": "read", "description": "", "parameters": {"type": "object"}, "func": read},
    name=(*NO_TEXT, "", "x" * 201, "a\x00b", "\ud800"),
    description=NO_TEXT,
    parameters=(None, 5, "x", [], {"default": object()}, {"default": NAN}),
    func=(None, *NO_FUNCTION),
    wants_idempotency_key=NO_FLAG,
    policy=(None, 5, {"timeout": 5}, dw.ToolPolicy),
    signature=(5, "x", {}),
    **GATES,
)
TABLE.add("Done", dw.Done, {"result": 1})


@pytest.mark.parametrize("row", TABLE)
def test_a_wrong_argument_is_refused_where_it_is_given_and_by_its_name(row: Wrong) -> None:
    """Found while a program is written it costs a minute; found in its first run at night it costs the run."""
    check_refused(row)
