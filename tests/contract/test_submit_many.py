"""Many runs in one submission: on the real servers, without workers, whose part in it is the same as ever."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
import redis

from drangue_client import Budget, Client, Limits, Settings
from drangue_client.errors import RunExistsError
from drangue_client.store.log import SqlLog
from drangue_client.store.values import AgentRow
from drangue_client.submission import MOST
from drangue_client.wire.envelope import lists_of
from drangue_client.wire.queue import COORDINATE_QUEUE
from tests.contract.log_scenes import alone, sql, start


@pytest.fixture
def server(addresses: Any) -> Iterator[Any]:
    with redis.Redis.from_url(addresses.redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def client(addresses: Any, postgres: SqlLog, server: Any) -> Iterator[Client]:
    with closing(Client(Settings(database_url=addresses.database_url, redis_url=addresses.redis_url))) as made:
        yield made


def told(server: Any) -> list[str]:
    """The runs that workers were told of, in the order in which they will get to them."""
    messages: list[bytes] = [one for name in lists_of(COORDINATE_QUEUE) for one in server.lrange(name, 0, -1)[::-1]]
    return [json.loads(b64decode(json.loads(one)["body"]))[0][0] for one in messages]


def ids(client: Client) -> set[str]:
    return {row.run_id for row in client.runs(limit=1000)}


def test_every_input_is_a_run_with_all_that_was_asked_for(client: Client, server: Any) -> None:
    """They differ by their inputs alone, and are told in the order in which they were given."""
    inputs = [f"input {number}" for number in range(100)]
    limits = Limits(budget=Budget(max_tokens=5))
    done = client.submit_many("oncall", inputs, labels={"a": "b"}, priority=2, deadline=9.0, limits=limits, tokens=True)
    assert [(one.created, one.sent) for one in done] == [(True, True)] * 100
    rows = [client.get(one.run_id) for one in done]
    assert [row.input for row in rows] == inputs
    alone = client.get(
        client.submit(
            "oncall", "x", labels={"a": "b"}, priority=2, deadline=9.0, limits=limits, tokens=True
        ).run_id
    )  # fmt: skip
    same = ("agent", "labels", "priority", "overrides", "status", "executor")
    for row in rows:
        assert [getattr(row, name) for name in same] == [getattr(alone, name) for name in same]
    assert told(server)[:100] == [one.run_id for one in done]


def test_many_cost_what_one_costs(client: Client, server: Any) -> None:
    """A burst is begun by one statement, which is its one commit, and one command to Redis."""
    client.submit_many("oncall", ["first"], allow_unknown=True)
    statements: list[str] = []
    before = server.info("commandstats")["cmdstat_lpush"]["calls"]
    with alone(lambda statement, values: statements.append(statement)):
        client.submit_many("oncall", ["go"] * 500, allow_unknown=True)
    assert len(statements) == 1
    assert server.info("commandstats")["cmdstat_lpush"]["calls"] == before + 1


def test_repeating_with_ids_is_safe(client: Client, server: Any) -> None:
    """Who lost the answer asks again, also with some more: what is there is neither changed nor told of anew."""
    client.submit_many("oncall", {"a": "one", "b": "two"})
    done = client.submit_many("oncall", {"c": "three", "b": "two", "a": "one"})
    assert [(one.run_id, one.created, one.sent) for one in done] == [
        ("c", True, True),
        ("b", False, True),
        ("a", False, True),
    ]
    assert (ids(client), told(server)) == ({"a", "b", "c"}, ["a", "b", "c"])


@pytest.mark.parametrize(("agent", "text"), [("oncall", "else"), ("billing", "two")])
def test_an_id_that_is_taken_keeps_all_from_being_recorded(client: Client, server: Any, agent: str, text: str) -> None:
    """Half a batch would have to be found out by whoever repeats it."""
    client.submit("oncall", "two", run_id="b")
    with pytest.raises(RunExistsError) as caught:
        client.submit_many(agent, {"a": "one", "b": text, "c": "three"})
    assert caught.value.run_id == "b"
    assert (ids(client), told(server)) == ({"b"}, ["b"])


def test_limits_are_looked_at_for_every_run_that_is_new(client: Client, postgres: SqlLog) -> None:
    """What is there may be submitted again after a deploy; what is not would begin with a limit that is none."""
    limits = Limits(deny=["restart"])
    client.submit_many("oncall", {"a": "one", "b": "two"}, limits=limits)  # nobody has said yet what there is
    postgres.register([AgentRow("oncall", "f", {"tools": ["read_logs"]})])
    again = client.submit_many("oncall", {"b": "two", "a": "one"}, limits=limits)
    assert [one.created for one in again] == [False, False]
    for inputs in ({"a": "one", "c": "three"}, {"c": "three", "a": "one"}):
        with pytest.raises(ValueError, match="'restart'"):
            client.submit_many("oncall", inputs, limits=limits)
    assert ids(client) == {"a", "b"}


def test_a_run_that_a_newer_program_writes_is_no_hindrance(client: Client, postgres: SqlLog) -> None:
    """While workers are being replaced: of what is there only the row is compared."""
    start(postgres, "a")
    sql(postgres, "update events set format = 99 where run_id = 'a'")
    done = client.submit_many("oncall", {"a": "disk full", "b": "two"})
    assert [one.created for one in done] == [False, True]


def test_what_somebody_took_meanwhile_is_said_and_the_others_begin(
    client: Client, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the writing another process may use the same id."""
    look = client.log.rows

    def rows(run_ids: Any) -> Any:
        found = look(run_ids)
        client.submit("oncall", "mine", run_id="b")
        return found

    monkeypatch.setattr(client.log, "rows", rows)
    with pytest.raises(RunExistsError, match="'b'"):
        client.submit_many("oncall", {"a": "one", "b": "two"})
    assert (ids(client), told(server)) == ({"a", "b"}, ["b", "a"])


def test_runs_that_begin_later_are_told_of_later(client: Client, server: Any) -> None:
    """A worker that heard of them now would find nothing to do."""
    later = client.log.look(client.submit("oncall", "x", run_id="x").run_id).now + 60
    done = client.submit_many("oncall", ["go"] * 3, not_before=later)
    assert [(one.created, one.sent) for one in done] == [(True, True)] * 3
    assert told(server) == ["x"]
    assert [client.get(one.run_id).wake_at for one in done] == [pytest.approx(later, abs=0.001)] * 3


def test_with_redis_away_all_are_recorded(addresses: Any, postgres: SqlLog) -> None:
    """A sweep sends them when it is back."""
    settings = Settings(database_url=addresses.database_url, redis_url="redis://127.0.0.1:1")
    with closing(Client(settings)) as client:
        done = client.submit_many("oncall", ["go"] * 3, allow_unknown=True)
        assert [(one.created, one.sent) for one in done] == [(True, False)] * 3
        assert ids(client) == {one.run_id for one in done}


def test_a_rollback_leaves_none(client: Client, addresses: Any) -> None:
    """They are a part of what the caller commits, all of them."""
    with psycopg.connect(addresses.database_url) as connection:
        done = client.submit_many("oncall", ["go"] * 3, connection=connection)
        assert [(one.created, one.sent) for one in done] == [(True, False)] * 3
        connection.rollback()
    assert ids(client) == set()
    with psycopg.connect(addresses.database_url) as connection:
        done = client.submit_many("oncall", ["go"] * 3, connection=connection)
    assert ids(client) == {one.run_id for one in done}


def test_nothing_is_submitted_of_nothing_and_of_too_many(client: Client) -> None:
    """An empty list is no mistake; one without end would be one statement without end."""
    assert client.submit_many("oncall", []) == []
    with pytest.raises(ValueError, match=r"10,001 texts.*in parts"):
        client.submit_many("oncall", ["go"] * (MOST + 1))
    with pytest.raises(TypeError, match=r"inputs\[1\] is int"):
        client.submit_many("oncall", ["go", 5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"inputs\['b'\] is None"):
        client.submit_many("oncall", {"a": "go", "b": None})  # type: ignore[dict-item]
    assert ids(client) == set()
