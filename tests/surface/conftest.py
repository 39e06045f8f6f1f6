"""Four shapes of one runtime: inline over SQLite in memory, a SQLite file and Postgres, and a fleet of real workers.

The fleet is started once for this folder, on a database and a Redis database of its own, so that other tests and it
are not in each other's way; the provider and the event loop of the inline runs are shared as well.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from psycopg import sql

from drangue_client import Client, Settings
from drangue_client.store.migrate import migrate
from drangue_worker import InMemoryStore, PostgresStore, SQLiteStore
from drangue_worker.dev import wait_for_workers
from drangue_worker.supervisor import Supervisor, worker_command
from drangue_worker.testing import Provider
from tests.surface.case import Board, Case
from tests.surface.driver import Driver, FleetDriver, InlineDriver, Loop
from tests.surface.effects import FOLDER

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ("memory", "file", "postgres", "fleet")
REDIS_DATABASE = 9


@pytest.fixture(params=SHAPES)
def driver(request: pytest.FixtureRequest, tmp_path: Path, world: Any) -> Iterator[Driver]:
    """Each shape in turn."""
    if request.param == "fleet":
        yield request.getfixturevalue("fleet")
    elif request.param == "postgres":
        yield InlineDriver(request.getfixturevalue("postgres_store"), request.getfixturevalue("loop"))
    else:
        store = InMemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "runs.db")
        yield InlineDriver(store, request.getfixturevalue("loop"))
        store.close()


@pytest.fixture
def wire() -> str:
    """The wire format of the models; a test parametrises it where the format matters."""
    return "openai"


@pytest.fixture
def case(driver: Driver, board: Board, wire: str) -> Case:
    """A run that nobody has begun yet."""
    return Case(driver, board, wire)


@pytest.fixture(scope="package")
def board() -> Board:
    """What the model answers, by case."""
    return Board()


@pytest.fixture(scope="package")
def world(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that agents find, here and in the workers: the provider's addresses, and where effects go."""
    with Provider(board, keep_calls=0) as provider, pytest.MonkeyPatch.context() as patch:
        environment = {
            FOLDER: str(tmp_path_factory.mktemp("effects")),
            "OPENAI_BASE_URL": provider.base_url,
            "OPENAI_API_KEY": "scripted",
            "ANTHROPIC_BASE_URL": provider.anthropic_base_url,
            "ANTHROPIC_API_KEY": "scripted",
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@pytest.fixture(scope="package")
def loop(world: Any) -> Iterator[Loop]:
    """The event loop of all inline runs."""
    made = Loop()
    yield made
    made.close()


@pytest.fixture(scope="package")
def database(addresses: Any) -> Iterator[str]:
    """A migrated database of this folder's own."""
    name = f"surface_{secrets.token_hex(4)}"
    with psycopg.connect(addresses.database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            url = urlsplit(addresses.database_url)._replace(path=f"/{name}").geturl()
            migrate(url)
            yield url
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="package")
def postgres_store(database: str) -> Iterator[PostgresStore]:
    """The same database as the fleet's: its workers must leave inline runs alone."""
    store = PostgresStore(database)
    yield store
    store.close()


@pytest.fixture(scope="package")
def fleet(
    addresses: Any, database: str, world: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FleetDriver]:
    """Two real worker processes, a model pool and a tool pool, and a client."""
    redis_url = urlsplit(addresses.redis_url)._replace(path=f"/{REDIS_DATABASE}").geturl()
    with redis.Redis.from_url(redis_url) as connection:
        connection.flushdb()
    settings = Settings(
        database_url=database,
        redis_url=redis_url,
        agents=("tests.surface.agents",),
        sweep_s=0.2,  # a retry that waits a moment must not wait for a slow sweep besides
        drain_grace_s=2.0,
        tool_concurrency=3,
        log_format="console",
    )
    folder = tmp_path_factory.mktemp("fleet")
    supervisor = Supervisor(
        env={**settings.to_env(), **world, "PYTHONPATH": str(ROOT)}, log_folder=folder, grace_s=settings.drain_grace_s
    )
    client = Client(settings)
    try:
        for pool in ("model", "tool"):
            supervisor.start(f"{pool}-1", worker_command(pool, "--name", f"{pool}-1@%h"))
        wait_for_workers(settings, ["model-1", "tool-1"], supervisor)
        yield FleetDriver(client, lambda: _tails(folder))
    finally:
        supervisor.stop()
        client.close()


def _tails(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("*.log")))
