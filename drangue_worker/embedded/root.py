"""What is different when root starts the stack: PostgreSQL refuses to run as root.

A checkout in a closed home is out of reach of any other account. So for root the database lies under
`/var/lib/drangue`, owned by an account that the system already has.

The invariant: no account is added, and no permission of a folder that was here before is changed. It neither makes a
database nor changes to the account: `postgres` and `process` do.
"""

from __future__ import annotations

import hashlib
import os
import pwd
from pathlib import Path

from drangue_worker.embedded.errors import OWN_SERVERS, EmbeddedError

ROOT_HOME = Path("/var/lib/drangue")
# Who runs PostgreSQL for root: the first of these that exists. None is ever added.
ACCOUNTS = ("nobody", "postgres", "daemon")


def choose_account() -> pwd.struct_passwd | None:
    """Who runs PostgreSQL: one of ACCOUNTS for root, else None, the account of this process itself.

    Raises EmbeddedError: this is root, and none of them exists.
    """
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


def home_of(folder: Path) -> Path:
    """Where root keeps what belongs to `folder` but must be within another account's reach; nothing is made."""
    return ROOT_HOME / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


def make_open(folder: Path) -> None:
    """Make a folder, and those above it, that all may pass through and only root may list; leave any that is there."""
    if folder.exists():
        return
    make_open(folder.parent)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)


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
