"""The metrics of a fleet, read from the log as Prometheus reads them."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from drangue_client import Client, Settings, metrics
from drangue_client.errors import DatabaseUnavailable
from drangue_client.metrics import Exporter
from drangue_worker import Agent, Autonomy, Budget, PostgresStore, TransientError, tool
from drangue_worker.testing import FakeModel
from tests.kit.fleet import wait_until

PRICES = {"fake": {"input": 1000.0, "output": 4000.0}}  # 10 + 5 tokens a call: 0.03 USD

Numbers = dict[tuple[str, ...], float]


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    return Settings(database_url=database_url, redis_url=redis_url)


@pytest.fixture
def exporter(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Exporter]:
    """An exporter that has begun to count; nobody else writes here, so it need not stay behind."""
    monkeypatch.setattr(metrics, "BEHIND_S", 0.0)
    made = Exporter(settings)
    made.text()
    yield made
    made.close()


def numbers(text: str) -> Numbers:
    """Every sample, by its name and its labels' values in the order of their names."""
    return {
        (sample.name.removeprefix("drangue_"), *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def told(exporter: Exporter, *names: str) -> Numbers:
    return {key: value for key, value in numbers(exporter.text()).items() if key[0] in names}


@tool(reversible=False)
def wire() -> str:
    """Wire money."""
    return "wired"


def agent(store: PostgresStore, *responses: Any, tools: Any = (), **options: Any) -> Agent:
    return Agent(FakeModel(list(responses)), tools, store=store, **options)


def test_what_was_done_is_counted_whichever_process_did_it(exporter: Exporter, database_url: str) -> None:
    """Steps, tokens, retries and how turns ended come from the log: a worker that is gone has still been counted."""
    tries: list[int] = []

    @tool(retries=2, backoff=0.001)
    def flaky() -> str:
        """Fails twice."""
        tries.append(1)
        if len(tries) < 3:
            raise TransientError("busy")
        return "done"

    store = PostgresStore(database_url)
    agent(store, [("flaky", {})], "done", tools=[flaky]).run_sync("go")
    agent(store, [("flaky", {})], "done", tools=[flaky], max_steps=1).run_sync("go")
    told_now = told(exporter, "steps_total", "step_retries_total", "tokens_total", "runs_ended_total")
    assert told_now == {
        ("steps_total", "model"): 3.0,
        ("steps_total", "tool"): 2.0,
        ("step_retries_total", "model"): 0.0,
        ("step_retries_total", "tool"): 2.0,
        ("tokens_total", "fake", "input"): 30.0,
        ("tokens_total", "fake", "output"): 15.0,
        ("runs_ended_total", "answered", "completed"): 1.0,
        ("runs_ended_total", "max_steps", "completed"): 1.0,
        ("runs_ended_total", "", "failed"): 0.0,
        ("runs_ended_total", "", "cancelled"): 0.0,
    }
    assert told(exporter, "steps_total", "step_retries_total", "tokens_total", "runs_ended_total") == told_now
    assert numbers(exporter.text())["step_seconds_count", "tool"] == 2.0
    store.close()


def test_a_run_that_failed_is_counted_as_such(exporter: Exporter, database_url: str) -> None:
    """The rate of failures is what wakes somebody."""
    store = PostgresStore(database_url)
    of_one_answer = Agent(FakeModel(["x"], strict=True), store=store)
    of_one_answer.run_sync("go")
    with pytest.raises(AssertionError):
        of_one_answer.run_sync("again")
    ended = told(exporter, "runs_ended_total")
    assert (ended["runs_ended_total", "answered", "completed"], ended["runs_ended_total", "", "failed"]) == (1.0, 1.0)
    store.close()


def test_dollars_are_those_of_each_run_s_prices(settings: Settings, exporter: Exporter, database_url: str) -> None:
    """The budget's own prices come first; the exporter's are for runs that have none."""
    store = PostgresStore(database_url)
    listed = Exporter(settings, {"fake": {"input": 100.0, "output": 100.0}})
    listed.text()
    agent(store, "done", budget=Budget(max_usd=9.0, prices=PRICES)).run_sync("go")
    agent(store, "done").run_sync("go")
    assert told(exporter, "dollars_total") == {("dollars_total", "fake"): pytest.approx(0.03)}
    assert told(listed, "dollars_total") == {("dollars_total", "fake"): pytest.approx(0.03 + 0.0015)}
    listed.close()
    store.close()


def test_what_waits_for_people_is_told_with_its_age(settings: Settings, exporter: Exporter, database_url: str) -> None:
    """Two calls of one run wait; one that was decided waits no more, whether it has been made or not."""
    client, store = Client(settings), PostgresStore(database_url)
    assisted = agent(
        store, [("wire", {}), ("wire", {})], "done", tools=[wire], autonomy=Autonomy(modes={"wire": "assisted"})
    )
    nothing = {("runs", "queued"): 0.0, ("runs", "running"): 0.0, ("runs", "paused"): 0.0, ("approvals_waiting",): 0.0}
    assert told(exporter, "runs", "approvals_waiting") == nothing
    result = assisted.run_sync("go", run_id="r")
    assert result.status == "paused"
    waiting = told(exporter, "runs", "approvals_waiting", "approval_oldest_seconds")
    age_s = waiting.pop(("approval_oldest_seconds",))
    assert waiting == {**nothing, ("runs", "paused"): 1.0, ("approvals_waiting",): 2.0}
    wait_until(lambda: numbers(exporter.text())["approval_oldest_seconds",] > age_s + 0.2)
    client.approve("r", result.pending_approvals[1]["call_id"])  # which waits for the one before it
    assert told(exporter, "approvals_waiting") == {("approvals_waiting",): 1.0}
    client.reject("r", result.pending_approvals[0]["call_id"])
    assert told(exporter, "approvals_waiting", "approval_oldest_seconds") == {
        ("approvals_waiting",): 0.0,
        ("approval_oldest_seconds",): 0.0,
    }
    asyncio.run(assisted.resume("r"))
    client.close()
    store.close()


def test_a_run_that_nobody_looks_after_is_told_of(settings: Settings, exporter: Exporter, database_url: str) -> None:
    """A run without a step or a message is in no queue: with no worker at all this is the only sign of it."""
    client = Client(settings)

    def lag_s() -> float:
        return numbers(exporter.text())["wake_lag_seconds",]

    def due(run_id: str, ago_s: float) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute(
                "update runs set wake_at = now() - make_interval(secs => %s) where run_id = %s", (ago_s, run_id)
            )

    assert lag_s() == 0.0
    client.submit("a", "go", run_id="later", not_before=time.time() + 3600)
    client.submit("a", "go", run_id="fresh")
    due("fresh", -60)
    assert lag_s() == 0.0
    with psycopg.connect(database_url) as connection:  # of which no message goes out
        client.submit("a", "go", run_id="ridden", connection=connection)
    wait_until(lambda: lag_s() > 0.1)
    assert lag_s() < 60
    due("fresh", 90)
    assert 90 <= lag_s() < 150
    client.log.wake(patience_s=60.0)  # a sweep, as any worker does it
    assert lag_s() == 0.0
    due("fresh", 90)
    client.cancel("fresh")
    assert lag_s() == 0.0
    store = PostgresStore(database_url)
    paused = agent(store, [("wire", {})], tools=[wire], autonomy=Autonomy(modes={"wire": "assisted"}))
    assert paused.run_sync("go", run_id="inline").status == "paused"
    due("inline", 90)  # which belongs to one process, and is no worker's
    assert lag_s() == 0.0
    client.close()
    store.close()


def test_runs_of_an_agent_that_nobody_serves_are_told_of(settings: Settings, exporter: Exporter) -> None:
    """Workers look after them and never begin them, so they are late by no other number."""
    client = Client(settings)
    client.submit("served", "go", run_id="a")
    client.submit("renamed", "go", run_id="b")
    client.submit("renamed", "go", run_id="c")
    client.log.register([Agent(FakeModel(), name="served").blueprint.row()])
    assert told(exporter, "runs_unserved") == {("runs_unserved", "renamed"): 2.0}
    client.cancel("b")
    client.cancel("c")
    assert told(exporter, "runs_unserved") == {}
    client.close()


def test_servers_that_are_away_are_told_and_not_raised(settings: Settings, exporter: Exporter) -> None:
    """The dashboard must show the outage, not go blank with it."""
    up = told(exporter, "up", "redis_up")
    assert up == {("up",): 1.0, ("redis_up",): 1.0}
    exporter._sender = Exporter(Settings(database_url=settings.database_url, redis_url="redis://127.0.0.1:1/0"))._sender
    assert told(exporter, "up", "redis_up", "queue_messages") == {("up",): 1.0, ("redis_up",): 0.0}
    with pytest.raises(DatabaseUnavailable):
        Exporter(Settings(database_url="postgresql://127.0.0.1:1/x", redis_url=settings.redis_url))


def test_two_scrapes_at_once_count_nothing_twice(exporter: Exporter, database_url: str) -> None:
    """Two Prometheus servers are the usual way to have one that lives."""
    serving = exporter.serve("127.0.0.1", 0)
    url = f"http://127.0.0.1:{serving.port}/metrics"
    store = PostgresStore(database_url)
    for _ in range(5):
        agent(store, "done").run_sync("go")
    texts: list[str] = []

    def scrape() -> None:
        with urllib.request.urlopen(url, timeout=20) as response:
            texts.append(response.read().decode())

    threads = [threading.Thread(target=scrape) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    serving.stop()
    store.close()
    assert [numbers(text)["steps_total", "model"] for text in texts] == [5.0] * 8


def test_the_latest_events_are_found_without_reading_all(database_url: str) -> None:
    """Every scrape asks for the last seconds of a table that grows for ever."""
    with psycopg.connect(database_url) as connection:
        connection.execute("set local enable_seqscan = off")
        plan = connection.execute(
            "explain select 1 from events where recorded_at > now() - interval '1 minute'"
        ).fetchall()
    assert any("ix_events_recorded_at" in line for (line,) in plan), plan
