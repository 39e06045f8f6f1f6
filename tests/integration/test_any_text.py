"""Whatever people, guards, memories and models write, the run ends and its log can be read, on Postgres.

Postgres refuses a NUL, UTF-8 a lone surrogate, JSON a NaN. All of them come in with what people paste, what a scanner
quotes and what a memory has kept for years.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drangue_client import Client, Settings
from drangue_client.events import normalise
from drangue_client.result import Result
from drangue_worker import Agent, Autonomy, Guardrails, MemoryItem, ModelResponse, PostgresStore, Tool
from drangue_worker.testing import FakeModel
from tests.kit.anything import (
    HUGE,
    JSON,
    SAID,
    TEXT,
    Says,
    Unprintable,
    asks,
    deep,
    endless,
    finished,
    read_back,
    some,
)

ECHO = Tool("echo", "Give it back.", {"type": "object"}, lambda **arguments: arguments)
CALL = asks(("c1", "echo", {}))
UNWRITABLE = [Unprintable(), endless(), deep(5_000), HUGE]
ANYTHING = {"title": "anything"}


@pytest.fixture(scope="module")
def log(addresses: Any) -> Iterator[PostgresStore]:
    """One Postgres for all runs of this module; their ids are fresh."""
    store = PostgresStore(addresses.database_url)
    yield store
    store.close()


def agent_of(log: PostgresStore, *answers: Any, **options: Any) -> Agent:
    """An agent whose model gives these answers, and then says that it is done."""
    return Agent(FakeModel([*answers, "done"]), [ECHO], store=log, **options)


def contents(result: Result) -> list[Any]:
    """What the model read of its calls."""
    return [json.loads(message["content"]) for message in result.messages if message["role"] == "tool"]


@some
@given(said=SAID, instructions=TEXT, text=TEXT, reasoning=TEXT, stop_reason=TEXT, signature=TEXT)
@example(
    said="x" + "\x00\ud800" * 100_000, instructions="\x00", text="\x00", reasoning="", stop_reason="", signature=""
)
def test_any_text_that_is_said_is_recorded(
    log: PostgresStore, said: str, instructions: str, text: str, reasoning: str, stop_reason: str, signature: str
) -> None:
    """By the user, by the author, by the model and by its provider."""
    thinking = [{"type": "thinking", "thinking": text, "signature": signature}]
    answer = ModelResponse(
        text=text, reasoning=reasoning, stop_reason=stop_reason, model=text, thinking_blocks=thinking
    )
    result = finished(Agent(Says(answer), instructions=instructions, store=log), said)
    started, decided, ended = (event.payload for event in result.events)
    assert (started["input"], started["config"]["instructions"]) == (normalise(said), normalise(instructions))
    assert (decided["text"], decided["reasoning"], decided["stop_reason"], decided["model"]) == (
        normalise(text),
        normalise(reasoning),
        normalise(stop_reason),
        normalise(text) or "says",
    )
    assert decided["thinking_blocks"] == normalise(thinking)
    assert ended["output"] == result.output == normalise(text)


@pytest.mark.parametrize("said", ["", " \n"])
def test_a_blank_input_is_one_that_every_provider_takes(log: PostgresStore, said: str) -> None:
    """An agent whose instructions say it all is run without input, which is the default."""
    assert finished(agent_of(log), said).output == "done"


@some
@given(error=TEXT)
def test_any_error_of_a_model_is_the_recorded_reason(log: PostgresStore, error: str) -> None:
    """Providers quote the prompt they refuse."""

    class Refusing(Says):
        async def generate(self, **_: Any) -> Any:
            raise ValueError(error)

    result = finished(Agent(Refusing(), store=log))
    assert (result.status, result.error, result.reason) == ("failed", normalise(error) or "ValueError", "error")


@some
@given(reason=TEXT)
def test_any_reason_of_a_guard_is_told(log: PostgresStore, reason: str) -> None:
    """A scanner names what it found, as it found it; an empty reason is none."""
    told = normalise(reason)
    blocked = finished(agent_of(log, guardrails=Guardrails(input_guard=lambda text: reason)))
    assert blocked.output == (f"(blocked: {told})" if reason else "done")
    for guardrails, category in (
        (Guardrails(output_guard=lambda name, arguments: reason), "blocked"),
        (Guardrails(result_guard=lambda name, content: reason), "result_blocked"),
    ):
        (content,) = contents(finished(agent_of(log, CALL, guardrails=guardrails)))
        expected = {"ok": False, "tool": "echo", "error": {"category": category, "message": told}}
        assert content == (expected if reason else {})


@pytest.mark.parametrize("reason", [*UNWRITABLE, object(), True, ["a"]], ids=lambda value: type(value).__name__)
def test_a_reason_that_is_no_text_ends_in_a_finished_run(log: PostgresStore, reason: Any) -> None:
    """Whatever it is, it is no leave: the call is not made."""
    for guardrails in (
        Guardrails(input_guard=lambda text: reason),
        Guardrails(output_guard=lambda name, arguments: reason),
        Guardrails(result_guard=lambda name, content: reason),
    ):
        result = finished(agent_of(log, CALL, guardrails=guardrails))
        assert {} not in contents(result)


class Remembers:
    """A memory that holds this, whatever is asked."""

    def __init__(self, items: Any) -> None:
        self.items = items

    async def recall(self, query: str, *, limit: int = 5) -> Any:
        return self.items

    async def remember(self, item: Any) -> None: ...


@some
@given(
    items=st.lists(
        st.builds(MemoryItem, TEXT, JSON, st.none() | st.floats(allow_nan=False, allow_infinity=False)), max_size=6
    )
)
def test_any_memory_is_recorded_and_shown_in_its_frame(log: PostgresStore, items: list[MemoryItem]) -> None:
    """What was kept under an older program, or by another one, comes back as it was."""
    agent = agent_of(log, memory=Remembers(items))
    recalled = finished(agent).events[1].payload["items"]
    live = [item for item in items if item.expires_at is None or item.expires_at > 2e9]
    assert [[item["key"], item["value"]] for item in recalled] == normalise([[item.key, item.value] for item in live])
    system = agent.router.model.calls[0]["system"]
    marks = [
        system.count("<<<"),
        system.count("<<<BEGIN RECALLED MEMORY>>>"),
        system.count("<<<END RECALLED MEMORY>>>"),
    ]
    assert marks == ([2, 1, 1] if live else [0, 0, 0])


@pytest.mark.parametrize(
    "found",
    [
        None,
        5,
        "text",
        [{"key": "k", "value": 1}],
        [SimpleNamespace(key="k", value=1, expires_at="tomorrow")],
        [SimpleNamespace(key=5, value=1, expires_at=None)],
        [MemoryItem("k", Unprintable())],
        [MemoryItem("k", endless())],
        [MemoryItem("k", deep(5_000))],
        [MemoryItem("k", HUGE)],
    ],
)
def test_a_memory_that_gives_nonsense_does_not_stop_a_run(log: PostgresStore, found: Any) -> None:
    """A run goes on without what it cannot remember."""
    assert finished(agent_of(log, memory=Remembers(found))).output == "done"


@some
@given(value=JSON)
def test_any_answer_that_matches_is_read_back_as_it_was_given(log: PostgresStore, value: Any) -> None:
    """Delivered by the tool made for it, or said as JSON text."""
    expected = normalise(value)
    delivered = asks(("c1", "final_answer", {"value": value}))
    for answer in (delivered, json.dumps(expected)):
        result = finished(agent_of(log, answer, output_schema=ANYTHING))
        assert (result.reason, result.output_parsed) == ("answered", expected)


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("[" * 100_000, ANYTHING),
        ("9" * 5_000, {"type": "integer"}),
        ("1e999", {"type": "string"}),
        ("NaN", ANYTHING),
        ("NaN", {"multipleOf": 0.5}),
        ("[-1e999]", ANYTHING),
        ("1e999", {"multipleOf": 0.5}),
        ("1" + "0" * 400, {"multipleOf": 0.5}),
    ],
    ids=lambda value: str(value)[:24],
)
def test_an_odd_answer_ends_in_a_finished_run(log: PostgresStore, text: str, schema: dict[str, Any]) -> None:
    """A model must not be able to leave a run in a state that nothing can decide about."""
    assert finished(Agent(FakeModel([text]), store=log, output_schema=schema)).status == "completed"


@some
@given(call_id=TEXT, by=TEXT, reason=TEXT, granted=st.booleans())
def test_any_words_of_an_approver_are_recorded(
    log: PostgresStore, call_id: str, by: str, reason: str, granted: bool
) -> None:
    """Who decided and why is what an audit reads; the call decided about is the one the inbox named."""
    agent = agent_of(log, asks((call_id, "echo", {"x": 1})), autonomy=Autonomy("assisted"))
    run_id = uuid.uuid4().hex
    (request,) = agent.run_sync("go", run_id=run_id).pending_approvals
    decide = agent.approve if granted else agent.reject
    asyncio.run(decide(run_id, request["call_id"], by=by, reason=reason))
    agent.run_sync(run_id=run_id)
    result = read_back(log, run_id)
    verdict = next(event.payload for event in result.events if event.type.startswith(("approval_g", "approval_d")))
    assert (verdict["by"], verdict["reason"]) == (normalise(by), normalise(reason))
    refused = {"category": "denied", "message": normalise(reason) or "a person refused this call"}
    assert contents(result) == [{"x": 1} if granted else {"ok": False, "tool": "echo", "error": refused}]


@pytest.mark.parametrize("turn_id", ["t", "ä\U0001f600[/red]\u2028\x1b", "x" * 200, "a\x00", "\ud800"], ids=ascii)
def test_a_turn_is_one_turn_however_its_id_is_written(log: PostgresStore, turn_id: str) -> None:
    """A client that repeats itself after a timeout must not make the agent act twice."""
    agent = agent_of(log)
    run_id = uuid.uuid4().hex
    agent.run_sync("go", run_id=run_id)
    for _ in range(2):
        agent.run_sync("and now?", run_id=run_id, turn_id=turn_id)
    assert read_back(log, run_id).steps == 2


@pytest.fixture(scope="module")
def client(addresses: Any) -> Iterator[Client]:
    """An application."""
    client = Client(Settings(database_url=addresses.database_url, redis_url=addresses.redis_url))
    yield client
    client.close()


@some
@given(labels=st.dictionaries(TEXT, TEXT, max_size=4), said=SAID, turn_id=TEXT.filter(bool))
def test_any_labels_are_read_back(client: Client, labels: dict[str, str], said: str, turn_id: str) -> None:
    """They are searched for, so Postgres keeps them as JSONB, which refuses more than JSON does."""
    submitted = client.submit("nobody", said, labels=labels, turn_id=turn_id, allow_unknown=True)
    row = client.get(submitted.run_id)
    assert [row.labels, row.input, row.overrides] == normalise([labels, said, {"turn_id": turn_id}])
