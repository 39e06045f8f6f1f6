"""What tests stand on: a real Postgres and a real Redis, started once for the whole run, emptied for each test.

Nothing here imports a server's program until a test asks for one, so `tests/unit` needs neither disk nor network.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what it runs in the background; every command that a test interrupts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def addresses() -> Iterator[Any]:
    """Servers for the whole run: those that DRANGUE_DATABASE_URL and DRANGUE_REDIS_URL name, else embedded ones."""
    from drangue_client.stackfile import Addresses

    given = os.environ.get("DRANGUE_DATABASE_URL"), os.environ.get("DRANGUE_REDIS_URL")
    if given[0] and given[1]:
        _start_afresh(given[0])
        yield Addresses(given[0], given[1])
        return
    servers = _free_servers()
    try:
        started = servers.start()
        _start_afresh(started.database_url)
        yield started
    finally:
        servers.stop()


def _start_afresh(url: str) -> None:
    """Today's tables, whatever an earlier run of the suite left."""
    import psycopg

    from drangue_client.store.migrate import migrate

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop schema public cascade")
        connection.execute("create schema public")
    migrate(url)


def _free_servers() -> Any:
    """Servers that no other run of the suite in this checkout is using."""
    from drangue_worker.embedded import EmbeddedError, Servers

    for number in range(1, 10):
        servers = Servers(ROOT / ".drangue" / f"test-{number}")
        try:
            servers.start()
        except EmbeddedError as error:
            if "already running" not in str(error):
                raise
        else:
            return servers
    raise RuntimeError("nine runs of the suite are under way in this checkout; end one")


@pytest.fixture
def database_url(addresses: Any) -> str:
    """A migrated, empty Postgres."""
    import psycopg

    with psycopg.connect(addresses.database_url, autocommit=True) as connection:
        connection.execute("truncate runs, events, steps, agents")
    return str(addresses.database_url)


@pytest.fixture
def redis_url(addresses: Any) -> str:
    """An empty Redis."""
    import redis

    with redis.Redis.from_url(addresses.redis_url) as client:
        client.flushdb()
    return str(addresses.redis_url)


@pytest.fixture
def make_fleet(database_url: str, redis_url: str, tmp_path: Path, request: Any) -> Iterator[Any]:
    """Fleets of real workers, stopped after the test; a failing test shows what they wrote."""
    from tests.kit.fleet import Fleet

    fleets: list[Fleet] = []

    def make(script: Any, **settings: Any) -> Fleet:
        fleets.append(Fleet(database_url, redis_url, tmp_path / f"fleet-{len(fleets)}", script, **settings))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.__exit__()
        for path in sorted(fleet.folder.glob("*.log")):
            print(f"--- {path.name}\n{path.read_text()[-4000:]}")
