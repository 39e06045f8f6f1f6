"""The databases that the log's one suite runs on: SQLite in memory, SQLite in a file, Postgres.

A test that asks for `log` runs on all three, and on the plain way, which is the word on what the others do; one that
asks for `logs`, two objects on one database as two processes have them, on the two that can be shared; one that asks
for `postgres` there alone. The objects on Postgres are made once, since making a connection costs more than most tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from drangue_client.store.log import SqlLog


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'log.db'}"


@pytest.fixture(scope="session")
def postgres_pair(addresses: Any) -> Iterator[tuple[SqlLog, SqlLog]]:
    with closing(SqlLog(addresses.database_url)) as one, closing(SqlLog(addresses.database_url)) as other:
        yield one, other


@pytest.fixture
def postgres_logs(postgres_pair: tuple[SqlLog, SqlLog]) -> tuple[SqlLog, SqlLog]:
    """Two logs on an empty Postgres."""
    empty = "delete from runs; delete from events; delete from steps; delete from agents"
    postgres_pair[0].db.run(lambda connection: connection.exec_driver_sql(empty))
    return postgres_pair


@pytest.fixture
def postgres(postgres_logs: tuple[SqlLog, SqlLog]) -> SqlLog:
    """A log on an empty Postgres."""
    return postgres_logs[0]


@pytest.fixture(scope="session")
def plain_log(addresses: Any) -> Iterator[SqlLog]:
    with closing(SqlLog(addresses.database_url, plain=True)) as log:
        yield log


@pytest.fixture
def plain_postgres(postgres: SqlLog, plain_log: SqlLog) -> SqlLog:
    """A log on an empty Postgres that does everything the plain way."""
    return plain_log


@pytest.fixture
def open_log() -> Iterator[Callable[..., SqlLog]]:
    """Open logs that are closed after the test."""
    with ExitStack() as opened:
        yield lambda url, **more: opened.enter_context(closing(SqlLog(url, **more)))


@pytest.fixture(params=["memory", "file", "postgres", "plain memory", "plain postgres"])
def log(request: pytest.FixtureRequest, open_log: Callable[..., SqlLog]) -> SqlLog:
    """An empty log, also as it does everything the plain way."""
    if request.param.endswith("postgres"):
        made: SqlLog = request.getfixturevalue(request.param.replace(" ", "_"))
        return made
    url = request.getfixturevalue("file_url") if request.param == "file" else "sqlite://"
    return open_log(url, plain=request.param.startswith("plain"))


@pytest.fixture(params=["file", "postgres"])
def logs(request: pytest.FixtureRequest, open_log: Callable[[str], SqlLog]) -> tuple[SqlLog, SqlLog]:
    """Two logs on one empty database."""
    if request.param == "postgres":
        made: tuple[SqlLog, SqlLog] = request.getfixturevalue("postgres_logs")
        return made
    url = request.getfixturevalue("file_url")
    return open_log(url), open_log(url)
