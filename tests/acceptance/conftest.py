"""Servers and fleets that the tests of one file share: a real worker takes seconds to start, a command only one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from psycopg import sql

from tests.acceptance.shell import Console, environment
from tests.kit.fleet import Fleet, Script

MakeFleet = Callable[..., Fleet]


@pytest.fixture(scope="module")
def servers(addresses: Any) -> Any:
    """The suite's Postgres and Redis, emptied once for the file."""
    with psycopg.connect(addresses.database_url, autocommit=True) as connection:
        connection.execute("truncate runs, events, steps, agents")
    with redis.Redis.from_url(addresses.redis_url) as client:
        client.flushdb()
    return addresses


@pytest.fixture(scope="module")
def make_shared_fleet(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeFleet]:
    """A fleet without workers yet, for the whole file."""
    fleets: list[Fleet] = []

    def make(script: Script, **settings: Any) -> Fleet:
        folder = tmp_path_factory.mktemp("fleet")
        agents = ("tests.kit.agents", "tests.acceptance.agents")
        fleets.append(Fleet(servers.database_url, servers.redis_url, folder, script, agents=agents, **settings))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.__exit__()


@pytest.fixture
def make_console(tmp_path: Any) -> Callable[[Fleet], Console]:
    """A terminal in an empty folder, its environment the fleet's."""

    def make(fleet: Fleet) -> Console:
        return Console(environment(**fleet.supervisor.env), tmp_path)

    return make


@pytest.fixture
def empty_database(servers: Any) -> Iterator[str]:
    """A database on the same server that nobody has migrated."""
    with new_database(servers.database_url) as url:
        yield url


@contextmanager
def new_database(url: str) -> Iterator[str]:
    """An empty database beside the one at `url`, dropped afterwards."""
    name = f"acceptance_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield urlsplit(url)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
