"""What rides on a transaction of the caller's is there if and only if it is committed, whoever made the connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from drangue_client import Client, Settings
from drangue_client.errors import DatabaseUnavailable, NotPendingError, RunExistsError
from drangue_client.events import Fact
from drangue_client.store.log import SqlLog
from tests.contract.log_scenes import claim, decision, kinds, start, write

ASKED = Fact(
    "approval_requested",
    {"call_id": "call_2", "tool": "pay", "arguments": {}, "arguments_hash": "0", "reasoning": None, "text": ""},
    2,
)
MARK = "create table if not exists orders (id text)"


@dataclass
class Caller:
    """An application's connection: what it gives the client, how it runs a statement of its own, and how it ends."""

    given: Any
    execute: Callable[[str], Any]
    commit: Callable[[], None]
    rollback: Callable[[], None]


def _sqlalchemy(url: str, end: list[Callable[[], None]]) -> Caller:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    connection = engine.connect()
    end += [connection.close, engine.dispose]
    return Caller(connection, lambda sql: connection.execute(text(sql)), connection.commit, connection.rollback)


def _session(url: str, end: list[Callable[[], None]]) -> Caller:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    session = Session(engine)
    end += [session.close, engine.dispose]
    return Caller(session, lambda sql: session.execute(text(sql)), session.commit, session.rollback)


def _scoped(url: str, end: list[Callable[[], None]]) -> Caller:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    session = scoped_session(sessionmaker(engine))
    end += [session.remove, engine.dispose]
    return Caller(session, lambda sql: session.execute(text(sql)), session.commit, session.rollback)


def _psycopg(url: str, end: list[Callable[[], None]]) -> Caller:
    connection = psycopg.connect(url)
    end.append(connection.close)
    return Caller(connection, connection.execute, connection.commit, connection.rollback)


def _odd_psycopg(url: str, end: list[Callable[[], None]]) -> Caller:
    """Rows as dicts, statements put together by the client, as some applications have it."""
    connection = psycopg.connect(url, row_factory=dict_row, cursor_factory=psycopg.ClientCursor)
    end.append(connection.close)
    return Caller(connection, connection.execute, connection.commit, connection.rollback)


def _django(url: str, end: list[Callable[[], None]]) -> Caller:
    """Django reads JSON as text and, without USE_TZ, times without a zone."""
    import django
    from django.conf import settings
    from django.db import connections

    place = make_url(url)
    host = place.host or place.query.get("host", "")
    if not settings.configured:
        settings.configure(USE_TZ=False, DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}})
        django.setup()
    connections.databases["default"] |= {
        "NAME": place.database,
        "USER": place.username or "",
        "PASSWORD": place.password or "",
        "HOST": host,
        "PORT": place.port or "",
    }
    connection = connections["default"]
    connection.close()
    connection.set_autocommit(False)
    end.append(connection.close)

    def execute(sql: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    return Caller(connection, execute, connection.commit, connection.rollback)


KINDS = {
    "a SQLAlchemy connection": _sqlalchemy,
    "a session": _session,
    "a scoped session": _scoped,
    "psycopg": _psycopg,
    "psycopg in its own way": _odd_psycopg,
    "Django": _django,
}


@pytest.fixture(params=KINDS)
def caller(request: pytest.FixtureRequest, addresses: Any, postgres: SqlLog) -> Iterator[Caller]:
    with psycopg.connect(addresses.database_url, autocommit=True) as connection:
        connection.execute(MARK)
        connection.execute("truncate orders")
    end: list[Callable[[], None]] = []
    yield KINDS[request.param](addresses.database_url, end)
    for close in end:
        close()


@pytest.fixture
def client(addresses: Any, postgres: SqlLog) -> Iterator[Client]:
    with closing(Client(Settings(database_url=addresses.database_url, redis_url=addresses.redis_url))) as made:
        yield made


def orders(addresses: Any) -> int:
    with psycopg.connect(addresses.database_url) as connection:
        found = connection.execute("select count(*) from orders").fetchone()
        assert found
        return int(found[0])


def ids(client: Client) -> list[str]:
    return [row.run_id for row in client.runs()]


def test_a_rollback_leaves_no_run(caller: Caller, client: Client, addresses: Any) -> None:
    """Nor anything of the caller's own: the transaction was ended by nobody else before."""
    caller.execute("insert into orders values ('one')")
    submitted = client.submit("shop", "ship it", run_id="r", labels={"team": "a"}, connection=caller.given)
    assert (submitted.created, submitted.sent) == (True, False)
    assert (ids(client), orders(addresses)) == ([], 0)
    caller.rollback()
    assert (ids(client), orders(addresses)) == ([], 0)


def test_a_commit_makes_the_run_and_the_callers_own_row(caller: Caller, client: Client, addresses: Any) -> None:
    """Both or neither, and the run is due at once: no message could be sent before."""
    caller.execute("insert into orders values ('one')")
    client.submit("shop", "ship it", run_id="r", labels={"team": "a"}, connection=caller.given)
    caller.execute("insert into orders values ('two')")  # the connection still works, and is still in its transaction
    assert orders(addresses) == 0
    caller.commit()
    assert (ids(client), orders(addresses)) == (["r"], 2)
    look = client.log.look("r")
    assert (look.row.labels, look.row.input) == ({"team": "a"}, "ship it")
    assert look.row.wake_at == pytest.approx(look.now, abs=1.0)


def test_the_same_submission_in_the_same_transaction_is_the_same_run(caller: Caller, client: Client) -> None:
    """What was read back on the caller's own connection is read as on ours."""
    first = client.submit("shop", "go", run_id="r", labels={"a": "b"}, output_schema={"type": "object"})
    again = client.submit(
        "shop", "go", run_id="r", labels={"a": "b"}, output_schema={"type": "object"}, connection=caller.given
    )
    assert (first.created, again.created) == (True, False)
    with pytest.raises(RunExistsError):
        client.submit("shop", "stop", run_id="r", connection=caller.given)
    caller.commit()


def test_an_approval_counts_when_it_is_committed(caller: Caller, client: Client, postgres: SqlLog) -> None:
    """An application writes down who may approve in the same transaction."""
    start(postgres)
    write(postgres, "r", decision(1, "pay"), ASKED, claim=claim(postgres).ask)
    assert client.get("r").status == "paused"
    granted = client.approve("r", by="ann", reason="seen it", connection=caller.given)
    assert granted["step"] == 2
    assert client.get("r").status == "paused"
    caller.rollback()
    assert "approval_granted" not in kinds(postgres.events("r"))
    client.approve("r", by="ann", connection=caller.given)
    caller.commit()
    assert client.get("r").status == "running"
    look = client.log.look("r")
    assert look.row.wake_at == pytest.approx(look.now, abs=1.0)
    with pytest.raises(NotPendingError):
        client.reject("r", connection=caller.given)


def test_a_turn_and_a_cancel_ride_as_well(caller: Caller, client: Client, postgres: SqlLog) -> None:
    """Whatever an application does about a run can be a part of what it does besides."""
    start(postgres)
    assert client.cancel("r", by="ann", connection=caller.given)
    caller.rollback()
    assert client.get("r").status == "running"
    assert client.cancel("r", by="ann", connection=caller.given)
    caller.commit()
    assert client.get("r").status == "cancelled"
    assert client.say("r", "rather this", turn_id="2", connection=caller.given).created
    assert client.get("r").status == "cancelled"
    caller.commit()
    assert client.get("r").status == "running"


@pytest.mark.parametrize("kind", ["psycopg", "a SQLAlchemy connection"])
def test_a_connection_that_is_in_no_transaction_is_refused(addresses: Any, client: Client, kind: str) -> None:
    """Each statement would be committed alone: a process that died in between would leave a run that cannot go on."""
    if kind == "psycopg":
        with (
            psycopg.connect(addresses.database_url, autocommit=True) as connection,
            pytest.raises(ValueError, match="in a transaction"),
        ):
            client.submit("shop", "go", connection=connection)
        with psycopg.connect(addresses.database_url, autocommit=True) as connection, connection.transaction():
            assert client.submit("shop", "go", run_id="r", connection=connection).created
    else:
        engine = create_engine(make_url(addresses.database_url).set(drivername="postgresql+psycopg"))
        with (
            engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
            pytest.raises(ValueError, match="in a transaction"),
        ):
            client.submit("shop", "go", connection=connection)
        engine.dispose()


def test_a_conflict_of_the_callers_own_transaction_is_the_callers(
    addresses: Any, client: Client, postgres: SqlLog
) -> None:
    """Whoever has chosen REPEATABLE READ knows that it must begin again, and how to tell that from an outage."""
    start(postgres)
    with psycopg.connect(addresses.database_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("select 1 from runs")
        client.cancel("r")
        with pytest.raises(DBAPIError) as caught:
            client.cancel("r", connection=connection)
        assert caught.value.orig.sqlstate == "40001"  # type: ignore[union-attr]
        connection.rollback()


def test_a_database_without_our_tables_is_told_as_such(addresses: Any, client: Client) -> None:
    """The connection is to another database than ours: the message says what is missing there."""
    with psycopg.connect(addresses.database_url) as connection:
        connection.execute("set local search_path to pg_temp")
        with pytest.raises(DatabaseUnavailable, match="holds no drangue tables"):
            client.submit("shop", "go", connection=connection)
