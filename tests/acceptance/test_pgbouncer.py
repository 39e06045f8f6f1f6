"""A fleet behind PgBouncer in transaction mode: after each transaction the connection is somebody else's.

The pool is far smaller than the number of clients, so that whatever is left to a session (a prepared statement, a
setting) soon meets another's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from drangue_client.store.log import SqlLog
from drangue_client.store.migrate import migrate, newest
from drangue_worker.embedded.root import choose_account
from drangue_worker.testing.provider import ProviderCall, Reply
from tests.acceptance.shell import Console, environment
from tests.contract.log_scenes import LEASE_S, claim, fan_out, result, write
from tests.kit.fleet import Fleet, wait_until

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
POOL = 2  # connections to Postgres; the fleet's processes alone keep more than that open
WISHES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "survey": (("note", {"text": "a"}), ("note", {"text": "b"}), ("ping", {})),
    "transfer": (("wire", {"amount": 7}),),
    "linger": (("ping", {"seconds": 60.0}),),
    "dawdle": (("note", {"text": "c", "seconds": 1.0}),),
}

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no program named pgbouncer on PATH; Debian's package has it")


class Pooler:
    """PgBouncer in front of a Postgres. `url` is the address that drangue is given, `plain_url` one for psql."""

    def __init__(self, database_url: str, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.plain_url = f"postgresql://drangue@127.0.0.1:{self.port}/drangue"
        self.url = f"{self.plain_url}?pooler=transaction"
        account = choose_account()
        config = folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\ndrangue = {_server(database_url)}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = any\nadmin_users = drangue\npool_mode = transaction\ndefault_pool_size = {POOL}\n"
            "max_client_conn = 500\nserver_tls_sslmode = disable\n"
        )
        config.chmod(0o600)  # read before the account changes
        as_account = [] if account is None else ["-u", account.pw_name]
        with (folder / "pgbouncer.log").open("wb") as log:
            self._process = subprocess.Popen([str(PROGRAM), *as_account, str(config)], stdout=log, stderr=log)
        wait_until(self._answers, what="PgBouncer answers")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def clients_and_servers(self) -> tuple[int, int]:
        """How many connections it has, from drangue and to Postgres."""
        with psycopg.connect(
            self.plain_url.removesuffix("/drangue") + "/pgbouncer", autocommit=True, cursor_factory=psycopg.ClientCursor
        ) as connection:
            clients = connection.execute("show clients").fetchall()
            servers = connection.execute("show servers").fetchall()
        ours = [row for row in clients if "drangue" in row[2:3]]
        return len(ours), len(servers)

    def _answers(self) -> bool:
        assert self._process.poll() is None, "PgBouncer has ended"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def _server(url: str) -> str:
    parts = urlsplit(url)
    name = parts.path.strip("/")
    return f"host={parts.hostname} port={parts.port} user={parts.username} password={parts.password} dbname={name}"


class PooledFleet(Fleet):
    """Workers that know the pooler's address alone; what looks past them goes to Postgres."""

    def __init__(self, direct_url: str, pooler: Pooler, redis_url: str, folder: Path) -> None:
        self.direct_url = direct_url
        agents = ("tests.acceptance.pooled_agents",)
        super().__init__(pooler.url, redis_url, folder, think, agents=agents)

    def execute(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.direct_url, autocommit=True) as connection:
            cursor = connection.execute(query, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []


def think(call: ProviderCall) -> Reply:
    """A model that asks for what the input names, all at once, and then answers."""
    wish = next(one for one in WISHES if one in str(call.messages))
    return Reply(tool_calls=WISHES[wish]) if call.turn == 0 else Reply(text="all is done")


@pytest.fixture(scope="module")
def pooler(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooler]:
    with closing(Pooler(servers.database_url, tmp_path_factory.mktemp("pgbouncer"))) as pooler:
        yield pooler


@pytest.fixture(scope="module")
def fleet(servers: Any, pooler: Pooler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PooledFleet]:
    with PooledFleet(servers.database_url, pooler, servers.redis_url, tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.start("model-1", "tool-1")
        yield fleet


def submit(fleet: Fleet, wish: str, **options: Any) -> str:
    return fleet.client.submit("pooled", wish, allow_unknown=True, **options).run_id


def test_many_runs_with_tools_end(fleet: PooledFleet, pooler: Pooler) -> None:
    """Statements of the hot path are said often enough to be prepared, and there are fewer connections than askers."""
    results = fleet.finish([submit(fleet, "survey") for _ in range(30)])
    assert [(one.status, one.output, one.steps) for one in results] == [("completed", "all is done", 2)] * 30
    clients, servers = pooler.clients_and_servers()
    assert clients > POOL >= servers


def test_an_approval_is_given_through_it(fleet: PooledFleet, pooler: Pooler, tmp_path: Path) -> None:
    """As an operator does it, with the same address."""
    run_id = submit(fleet, "transfer")
    assert fleet.client.result(run_id, timeout=60).status == "paused"
    console = Console(environment(**fleet.supervisor.env), tmp_path)
    done = console("approve", run_id, "--by", "ann")
    assert done.code == 0, done
    assert fleet.finish([run_id])[0].output == "all is done"


def test_a_run_is_cancelled_through_it(fleet: PooledFleet) -> None:
    """Who holds a step is told by what renewing its lease answers."""
    run_id = submit(fleet, "linger")
    wait_until(
        lambda: fleet.execute("select 1 from steps where run_id = %s and name = 'ping' and claim is not null", run_id)
    )
    fleet.client.cancel(run_id)
    assert fleet.finish([run_id])[0].status == "cancelled"
    wait_until(lambda: not fleet.execute("select 1 from steps where run_id = %s", run_id))


def test_an_answer_is_streamed(fleet: PooledFleet) -> None:
    """Its pieces come through Redis, the events between them through the pooler."""
    run_id = submit(fleet, "survey", tokens=True)
    events = list(fleet.client.stream(run_id, timeout=60))
    assert "".join(one.payload["text"] for one in events if one.type == "model_delta") == "all is done"
    assert events[-1].type == "run_finished"


def test_a_worker_is_drained(fleet: PooledFleet) -> None:
    """It lets its step end or gives it back; either is written through the pooler."""
    run_ids = [submit(fleet, "dawdle") for _ in range(4)]
    wait_until(lambda: fleet.execute("select 1 from steps where name = 'note' and claim is not null"))
    (other,) = fleet.start("tool-2")
    fleet.supervisor.children["tool-1"].process.terminate()
    assert {one.status for one in fleet.finish(run_ids)} == {"completed"}
    assert other.process.poll() is None


def test_the_log_at_once(pooler: Pooler, servers: Any) -> None:
    """Two processes' worth of threads on one connection's turns, more often than a driver waits before it prepares."""
    with closing(SqlLog(pooler.url)) as one, closing(SqlLog(pooler.url)) as other:

        def go(number: int) -> str:
            log, run_id = (one, other)[number % 2], f"pooled-{number}"
            fan_out(log, run_id, executor="inline")  # no worker's
            held = claim(log, run_id, 2, executor="inline").ask
            assert log.renew([held], LEASE_S) == {held.token}
            write(log, run_id, result(2), claim=held)
            return log.look(run_id).row.status

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(go, range(64))) == {"running"}


def test_what_need_not_wait_for_the_disk_leaves_no_trace(pooler: Pooler) -> None:
    """The next transaction on the same connection is somebody else's, and may have to."""
    with closing(SqlLog(pooler.url)) as log:
        log.wake(5.0)
        asked = [log.db.run(lambda c: c.exec_driver_sql("show synchronous_commit").scalar()) for _ in range(2 * POOL)]
    assert set(asked) == {"on"}


def test_migrating_through_it(pooler: Pooler) -> None:
    """Its lock lasts as long as its transaction, not as its connection."""
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda _: migrate(pooler.url), range(3))) == {(newest(), newest())}


def test_no_worker_met_an_error(fleet: PooledFleet) -> None:
    """What a sweep mends is still a fault: nothing may depend on it that the pooler does."""
    for name in ("model-1", "tool-1", "tool-2"):
        told = fleet.log_of(name)
        assert not [line for line in told.splitlines() if "Traceback" in line or "failed" in line], told[-3000:]
