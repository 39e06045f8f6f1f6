"""Wrong arguments for what an agent is put together from, for clients, and for what judges and tests agents."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest

import drangue_worker as dw
from drangue_client import Client, Settings
from drangue_client.result import Result
from drangue_worker.models import model_named
from drangue_worker.testing import FakeModel, Provider, RecordingTracer, Reply
from tests.unit.test_bad_input_agents import BY, SCHEMA, read
from tests.unit.wrong_arguments import HUGE, INF, NAN, NO_COUNT, NO_TEXT, Table, Wrong, check_refused, nested

TABLE = Table()
NO_FUNCTION: tuple[Any, ...] = (5, "name", [])
NO_FLAG = (None, 1, "no")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is accepted by mistake must not leave files here."""
    monkeypatch.chdir(tmp_path_factory.getbasetemp())


# Models

MODEL = (None, 5, FakeModel)
ADAPTER: dict[str, Any] = {
    "model": (None, 5, "", b"x", True),
    "client": (5, "http://127.0.0.1"),
    "api_key": (5, b"x"),
    "base_url": (5, "127.0.0.1"),
    "max_tokens": (*NO_COUNT, 0),
    "timeout": (None, 0, -1, NAN, INF, "5", [], True),
}
TABLE.add("OpenAIModel", dw.OpenAIModel, {"model": "gpt-4o"}, **ADAPTER, nonesuch=())
TABLE.add("AnthropicModel", dw.AnthropicModel, {"model": "claude-x"}, **ADAPTER, cache=NO_FLAG, nonesuch=())
TABLE.add(
    "model_named",
    model_named,
    {"text": "claude-x"},
    text=(None, 5, "", "gpt", "anthropic:", "mistral:x"),
    max_tokens=(*NO_COUNT, 0),
    cache=NO_FLAG,
)
TABLE.add("model_named", model_named, {"text": "gpt-4o"}, cache=(True,))
TABLE.add("SingleModel", dw.SingleModel, {"model": FakeModel()}, model=MODEL)
TABLE.add(
    "RuleRouter",
    dw.RuleRouter,
    {"default": FakeModel()},
    default=MODEL,
    rules=(None, 5, "x", [5], [(5, FakeModel())], [(len, 5)], [[len, FakeModel()]], [(len, FakeModel)]),
)
FALLBACK: dict[str, Any] = {"models": ((), [None], [5], [FakeModel]), "on_transient": NO_FLAG}
ONE = {"models": [FakeModel()]}
TABLE.add("FallbackModel", lambda models, **given: dw.FallbackModel(*models, **given), ONE, **FALLBACK)
TABLE.add("FallbackRouter", lambda models, **given: dw.FallbackRouter(*models, **given), ONE, **FALLBACK)

# Stores, tracers, registries, settings

TABLE.add("InMemoryStore", dw.InMemoryStore, {})
TABLE.add("SQLiteStore", dw.SQLiteStore, {"path": ":memory:"}, path=(None, 5, b"x", [], ""))
TABLE.add(
    "PostgresStore",
    dw.PostgresStore,
    {"url": "postgresql://"},
    url=("sqlite://", "mysql://x/y", None, 5, "", "nonsense"),
)
TABLE.add("RecordingTracer", RecordingTracer, {})
TABLE.add("ConsoleTracer", dw.ConsoleTracer, {}, stream=(5, "stdout"))
TABLE.add(
    "OTelTracer",
    dw.OTelTracer,
    {},
    otel_tracer=(5, "x", []),
    capture_content=NO_FLAG,
    redact=(*NO_FUNCTION, asyncio.sleep),
)


def agent() -> dw.Agent:
    """One that answers at once."""
    return dw.Agent(FakeModel(), store=dw.InMemoryStore())


TABLE.add("AgentRegistry", dw.AgentRegistry, {}, agents=("shop.agents", [5], [None], None, 5, agent()))
TABLE.add("AgentRegistry.add", lambda **given: dw.AgentRegistry().add(**given), {}, agent=(None, 5, "shop", dw.Agent))

SECONDS = (None, 0, NAN, "5")
COUNT = (None, 0, True, "3")
TABLE.add(
    "Settings",
    Settings,
    {},
    database_url=(None, 5, "nonsense", "sqlite://"),
    redis_url=(None, 5, "nonsense", "http://127.0.0.1"),
    agents=(None, 5, "shop.agents", (5,)),
    lease_s=(0, -1, NAN, None, "5"),
    sweep_s=(INF, 0, -1, NAN, None, "5"),
    patience_s=SECONDS,
    drain_grace_s=SECONDS,
    model_concurrency=COUNT,
    tool_concurrency=COUNT,
    max_crashes=COUNT,
    call_timeout_s=SECONDS,
    visibility_timeout_s=(0, -1, NAN, None, "5"),
    task_events=NO_FLAG,
    broker_acks=NO_FLAG,
    eager_dispatch=NO_FLAG,
    log_level=(None, 5, "loud"),
    log_format=(None, 5, "xml"),
    tracer=(None, 5, "zipkin"),
    trace_content=NO_FLAG,
    trace_redact=(None, 5),
    liveness_file=(None, 5, "a\0b"),
)

# Clients


class Silent:
    """A queue that nobody serves: a wrong argument must not get as far as Redis."""

    def coordinate(self, runs: Any) -> None: ...

    def steps(self, refs: Any) -> None: ...


SERVERS = Settings(redis_url="redis://127.0.0.1:1")


def client() -> Client:
    """One with a run that waits for workers."""
    made = Client(SERVERS, log=dw.InMemoryStore())
    made._sender = Silent()  # type: ignore[assignment]
    made.submit("oncall", "go", run_id="r")
    return made


def decided(verdict: str, **given: Any) -> None:
    """A verdict on a call that waits."""
    store = dw.InMemoryStore()
    model = FakeModel([[("read", {"city": "x"})], "done"])
    dw.Agent(model, [read], store=store, autonomy=dw.Autonomy("assisted")).run_sync("go", run_id="r")
    getattr(Client(SERVERS, log=store), verdict)(**{"run_id": "r", **given})


NO_CONNECTION = (5, "postgresql://127.0.0.1/x", sqlite3.Connection, object())
TABLE.add("Client", Client, {}, settings=(5, "redis://127.0.0.1", Settings))
TABLE.add("Client", Client, {"settings": SERVERS}, log=(5, "runs.db", dw.InMemoryStore))
TABLE.add(
    "Client.submit",
    lambda **given: client().submit(**given),
    {"agent": "oncall", "input": "go"},
    agent=(*NO_TEXT, "", "x" * 201, "a\x00b", "\ud800"),
    input=NO_TEXT,
    run_id=("", "a b", "x" * 201, "a\x00", 5, b"x"),
    priority=(-1, 10, NAN, True, 1.5, None, "3"),
    labels=(0, [], {"a": 5}, {"a": None}, {5: "x"}, 5, "x", ["x"], {"a": HUGE}, {"a": nested(5_000)}),
    turn_id=(5, b"x", "", "x" * 201),
    tokens=(1, "no"),
    deadline=(0, -1, NAN, INF, True, "60", []),
    not_before=(NAN, INF, True, "today", 1e300),
    limits=(5, {"max_steps": 5}, dw.Limits),
    connection=NO_CONNECTION,
    allow_unknown=NO_FLAG,
    **SCHEMA,
)
TABLE.add(
    "Client.submit_many",
    lambda **given: client().submit_many(**given),
    {"agent": "oncall", "inputs": ["go"]},
    agent=(*NO_TEXT, "", "x" * 201, "a\x00b", "\ud800"),
    inputs=(None, 5, "go", b"go", [5], [None], {"": "go"}, {"a b": "go"}, {5: "go"}, {"a": None}),
    priority=(-1, 10, NAN, True, 1.5, None, "3"),
    labels=(0, [], {"a": 5}, {5: "x"}, "x"),
    turn_id=(5, b"x", "", "x" * 201),
    tokens=(1, "no"),
    deadline=(0, -1, NAN, INF, True, "60", []),
    not_before=(NAN, INF, True, "today", 1e300),
    limits=(5, {"max_steps": 5}, dw.Limits),
    connection=NO_CONNECTION,
    allow_unknown=NO_FLAG,
    **SCHEMA,
)
TABLE.add(
    "Client.say",
    lambda **given: client().say(**given),
    {"run_id": "r", "text": "go"},
    run_id=(None, 5),
    text=NO_TEXT,
    turn_id=(5, b"x", "", "x" * 201),
    connection=NO_CONNECTION,
)
TIMEOUT = (NAN, "5", [])
TABLE.add(
    "Client.result",
    lambda **given: client().result(**given),
    {"run_id": "r", "timeout": 0},
    run_id=(None, 5),
    timeout=TIMEOUT,
)
TABLE.add(
    "Client.stream",
    lambda **given: list(client().stream(**given)),
    {"run_id": "r", "timeout": 0},
    run_id=(None, 5),
    after=("x", 1.5, -2, 2**31),
    timeout=TIMEOUT,
)
TABLE.add(
    "Client.runs",
    lambda **given: client().runs(**given),
    {},
    status=("done", 5),
    agent=(5,),
    since=(NAN, INF, True, "today", 1e300),
    until=(NAN, INF, True, "today", -1e300),
    labels=(5, ["x"], {"a": 5}, {5: "x"}),
    unknown=(1, "no", None),
    after=(5, "", " "),
    limit=(-1, True, "3", 10**30),
)

TABLE.add("Client.get", lambda **given: client().get(**given), {}, run_id=(None, 5))
TABLE.add(
    "Client.events",
    lambda **given: client().events(**given),
    {"run_id": "r"},
    run_id=(None, 5),
    after=("x", 1.5, -2, 2**31),
)
TABLE.add("Client.pending_approvals", lambda **given: client().pending_approvals(**given), {}, run_id=(5,))
TABLE.add(
    "Client.watch_approvals",
    lambda **given: list(client().watch_approvals(**given)),
    {"timeout": 0},
    timeout=TIMEOUT,
)
TABLE.add(
    "Client.cancel",
    lambda **given: client().cancel(**given),
    {"run_id": "r"},
    run_id=(None, 5),
    connection=NO_CONNECTION,
    **BY,
)
TABLE.add("Client.resume", lambda **given: client().resume(**given), {"run_id": "r"}, run_id=(None, 5), **BY)
TABLE.add(
    "Client.workers", lambda **given: client().workers(**given), {"timeout": 0.1}, timeout=(0, -1, NAN, None, "5")
)
TABLE.add("Client.unknown_outcomes", lambda **given: client().unknown_outcomes(**given), {}, run_id=(5,))
OUTCOME = {"happened": (None, 1, "yes"), "note": (5, None), **BY}
TABLE.add(
    "Client.give_outcome",
    lambda **given: client().give_outcome(**given),
    {"run_id": "r", "happened": True},
    run_id=(None, 5),
    call_id=(5, ""),
    **OUTCOME,
)
TABLE.add(
    "Client.approve",
    lambda **given: decided("approve", **given),
    {},
    arguments=(5, "x", [("city", "x")], {"city": 5, "country": 7}, {}),
    arguments_hash=(5, "", " "),
)
for verdict in ("approve", "reject"):
    TABLE.add(
        f"Client.{verdict}",
        lambda verdict=verdict, **given: decided(verdict, **given),
        {},
        run_id=(None, 5),
        call_id=(5, "", "nonesuch"),
        connection=NO_CONNECTION,
        **BY,
    )

# Evals

CHECK = dw.output_contains("x")
TABLE.add(
    "Check",
    dw.Check,
    {"dimension": "safety", "name": "n", "fn": bool},
    dimension=(*NO_TEXT, " ", "noise"),
    name=(*NO_TEXT, ""),
    fn=(None, *NO_FUNCTION),
)
TABLE.add(
    "Scenario",
    dw.Scenario,
    {"name": "n", "input": "go"},
    name=(*NO_TEXT, " "),
    input=NO_TEXT,
    checks=(None, 5, "x", CHECK, [5], [bool]),
    runs=(*NO_COUNT, 0),
)
TABLE.add("output_contains", dw.output_contains, {"text": "x"}, text=(*NO_TEXT, ""), name=(5, b"x"))
TABLE.add("output_satisfies", dw.output_satisfies, {"predicate": bool}, predicate=(None, *NO_FUNCTION), name=(5, b"x"))
TABLE.add(
    "judged",
    dw.judged,
    {"judge": dw.Judge(FakeModel()), "criterion": "c"},
    judge=(None, 5, FakeModel(), dw.Judge),
    criterion=(*NO_TEXT, " "),
    name=(5, b"x"),
)
TABLE.add("forbids_tool", dw.forbids_tool, {"tool_name": "wire"}, tool_name=(*NO_TEXT, ""), name=(5, b"x"))
TABLE.add("within_steps", dw.within_steps, {"n": 1}, n=NO_COUNT, name=(5, b"x"))
TABLE.add("within_tokens", dw.within_tokens, {"n": 1}, n=NO_COUNT, name=(5, b"x"))
TABLE.add("Judge", dw.Judge, {"model": FakeModel()}, model=(None, 5, "", "gpt", FakeModel))
RATES = (-0.1, 1.1, NAN, INF, "0", True, None)
TABLE.add("Gate", dw.Gate, {}, safety_max_drop=RATES, correctness_max_drop=RATES, efficiency_max_drop=RATES)
PROFILES: tuple[Any, ...] = (None, 5, "x", [], {"safety": NAN}, {"safety": "1"}, {"noise": -1})
TABLE.add("Gate.evaluate", dw.Gate().evaluate, {"baseline": {}, "candidate": {}}, baseline=PROFILES, candidate=PROFILES)
TABLE.add(
    "GateDecision.override",
    dw.GateDecision(False).override,
    {"reason": "r"},
    reason=(*NO_TEXT, "", " "),
    by=(None, 5, b"x"),
    record=(5, "x", []),
)
TABLE.add(
    "evaluate",
    lambda **given: asyncio.run(dw.evaluate(**given)),
    {"agent": agent(), "scenarios": [dw.Scenario("n", "go")]},
    agent=(None, 5, "oncall", FakeModel(), dw.Agent),
    scenarios=([], "x", [5], [dw.Scenario("n", "a"), dw.Scenario("n", "b")], None, 5, dw.Scenario("n", "go")),
    run_id_prefix=(None, 5, "a b", "x" * 201),
    concurrency=(*NO_COUNT, 0),
    tell=NO_FUNCTION,
)
TABLE.add(
    "scenario_from_result",
    dw.scenario_from_result,
    {"result": agent().run_sync("go"), "name": "n"},
    result=(Result.from_events("r", []), None, 5, "r"),
    name=(*NO_TEXT, " "),
    checks=(5, "x", [5], CHECK, 0),
)
TABLE.add("tools_called", dw.tools_called, {}, result=(None, 5, "r"))

# For tests of agents

TABLE.add(
    "FakeModel",
    FakeModel,
    {},
    responses=("text", 0, 5, [5], [None], [[5]], [[("read",)]], [[("read", 5)]]),
    final=(None, 5),
    strict=NO_FLAG,
    by_turn=NO_FLAG,
)
TABLE.add(
    "Provider",
    Provider,
    {"script": [Reply("x")]},
    script=([], "x", ["text"], None, 5, Reply("x")),
    port=(None, -1, 65_536, "x"),
    keep_calls=(True, -1, "x"),
)


@pytest.mark.parametrize("row", TABLE)
def test_a_wrong_argument_is_refused_where_it_is_given_and_by_its_name(row: Wrong) -> None:
    """Found while a program is written it costs a minute; found in its first run at night it costs the run."""
    check_refused(row)
