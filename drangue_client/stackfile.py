"""Where a checkout's running servers can be found: `.drangue/stack.json`.

Whoever starts the local stack writes the file and removes it at the end; every other command run in the checkout looks
for it. The invariant: an address is handed out only while the process that wrote it lives, and only to the account that
wrote it, because whoever names the queue decides what a worker runs. It starts nothing and asks no server.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from drangue_client.settings import Settings

log = logging.getLogger("drangue.stack")

FOLDER = ".drangue"
FILE = "stack.json"


@dataclass(frozen=True, slots=True)
class Addresses:
    """The two addresses of a stack. They hold passwords, so neither is part of the repr."""

    database_url: str = field(repr=False)
    """`postgresql://user:password@host:port/database`."""
    redis_url: str = field(repr=False)
    """`redis://:password@host:port/number`."""


def find_stack(start: Path) -> Addresses | None:
    """The addresses of the nearest running stack in `start` or a folder above it, or None.

    A file is passed over when its writer has ended, when another account owns or may write it, or when it cannot be
    read. Nothing is changed, so asking again is safe. The writer is known by its process id alone: a file left by a
    killed process counts again if the system gives that id to another one.
    """
    here = start.absolute()
    for folder in (here, *here.parents):
        addresses = read_stack(folder / FOLDER)
        if addresses is not None:
            return addresses
    return None


def find_settings(places: Sequence[Path] = (), tell: Callable[[str], None] = log.info) -> Settings:
    """The environment's settings; where it names no server, with the addresses of the stack that runs here.

    The current folder is looked in first, then `places`. `tell` is told when a stack is used. Raises SettingsError.
    """
    settings = Settings.from_env()
    if settings.database_url or settings.redis_url:
        return settings
    stack = next(filter(None, map(find_stack, (Path.cwd(), *places))), None)
    if stack is None:
        return settings
    tell("using the stack that `drangue dev` runs in this folder")
    return replace(settings, database_url=stack.database_url, redis_url=stack.redis_url)


def write_stack(folder: Path, addresses: Addresses, extra: dict[str, str]) -> None:
    """Announce the addresses in `folder`, normally a checkout's `.drangue`, for as long as this process lives.

    The file is one JSON object, `{database_url: str, redis_url: str, pid: int, **extra}`, readable by its owner only.
    It appears whole or not at all, and writing again replaces it. Raises OSError when `folder` cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = {
        **extra,
        "database_url": addresses.database_url,
        "redis_url": addresses.redis_url,
        "pid": os.getpid(),
    }
    write_private(folder / FILE, json.dumps(content, indent=2) + "\n")


def remove_stack(folder: Path) -> None:
    """Take this process's announcement back. Nothing happens when there is none, or another process's."""
    found = _read(folder / FILE)
    if found is not None and found[1] == os.getpid():
        (folder / FILE).unlink(missing_ok=True)


def read_stack(folder: Path) -> Addresses | None:
    """The addresses announced in `folder` by a process that lives, or None."""
    found = _read(folder / FILE)
    return found[0] if found else None


def write_private(path: Path, content: str) -> None:
    """Put `content` at `path` in one move, readable by its owner only. Raises OSError."""
    # mkstemp makes the file with mode 0600, so there is no moment at which another account could open it.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _read(path: Path) -> tuple[Addresses, int] | None:
    try:
        with path.open(encoding="utf-8") as file:
            owner = os.fstat(file.fileno())
            content = json.load(file)
        if owner.st_uid != os.geteuid() or owner.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        pid, database_url, redis_url = content["pid"], content["database_url"], content["redis_url"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not (isinstance(pid, int) and isinstance(database_url, str) and isinstance(redis_url, str) and _alive(pid)):
        return None
    return Addresses(database_url, redis_url), pid


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
