"""Where workers spend their time, as py-spy sees it: samples of whoever holds the interpreter, put into groups."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from drangue_client.errors import DrangueError

RATE = 250  # samples per second
BEGIN_S = 1.0  # py-spy reads a process's libraries first
END_S = 30.0

Rules = tuple[tuple[str, str, tuple[str, ...]], ...]  # a group, a part of a path, and some functions there or all

# What a sample was for, if any of its frames fits: kombu's own are in the stacks of all that uses Redis.
ANYWHERE: Rules = (
    ("unacked copy", "kombu/transport/redis", ("append", "ack", "_remove_from_indices", "restore_by_tag")),
    ("publish", "drangue_client/wire/", ()),
    ("publish", "kombu/messaging", ()),
    ("publish", "celery/app/amqp", ()),
    ("publish", "celery/events/", ()),
)
# Else the first that fits a frame, from the innermost outwards.
INNERMOST: Rules = (
    ("SQL", "drangue_client/store/", ()),
    ("SQL", "sqlalchemy/", ()),
    ("SQL", "psycopg", ()),
    ("hub and BRPOP", "kombu/", ()),
    ("hub and BRPOP", "drangue_worker/fleet/transport", ()),
    ("batching", "drangue_worker/engine/batching", ()),
    ("Celery request", "drangue_worker/fleet/", ()),
    ("Celery request", "celery/", ()),
    ("engine", "drangue_worker/", ()),
    ("engine", "drangue_client/", ()),
    ("threads and loop", "asyncio/", ()),
    ("threads and loop", "concurrent/", ()),
    ("threads and loop", "threading.py", ()),
)


def group_of(stack: Sequence[str]) -> str:
    """What a stack is for, told by its frames from the outermost to the innermost, each `function (path)`."""
    found = [name for frame in stack if (name := _first(ANYWHERE, frame))]
    found += [name for frame in reversed(stack) if (name := _first(INNERMOST, frame))]
    return found[0] if found else "other"


def _first(rules: Rules, frame: str) -> str | None:
    function, _, path = frame.partition(" (")
    return next((name for name, part, some in rules if part in path and (not some or function in some)), None)


def check_profiler() -> None:
    """Raise DrangueError where py-spy is not installed."""
    if not _program().exists():
        raise DrangueError("--profile needs py-spy. Install the extra `bench`: pip install 'drangue-worker[bench]'.")


def let_be_watched() -> None:
    """Allow any process of this account to look at this one, where the system asks for that (Linux with Yama)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY


@contextmanager
def profiling(pids: Iterable[int], folder: Path) -> Iterator[dict[str, float]]:
    """Watch processes while the block runs. Gives seconds by stack, its frames joined by `;`, filled at the end.

    Only time in which the interpreter is held: what a library does without it, and waiting, are not in it. Raises
    DrangueError where the system does not let py-spy look.
    """
    seconds: dict[str, float] = {}
    files = {pid: folder / f"{pid}.stacks" for pid in pids}
    watchers = [
        subprocess.Popen(
            [
                *(str(_program()), "record", "--gil", "--function", "--full-filenames", "--format", "raw"),
                *("--rate", str(RATE), "--pid", str(pid), "--output", str(file)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for pid, file in files.items()
    ]
    time.sleep(BEGIN_S)
    try:
        yield seconds
    finally:
        said = [_end(watcher) for watcher in watchers]
    for file, text in zip(files.values(), said, strict=True):
        if not file.exists():
            raise DrangueError(f"py-spy could not look at a worker: {text.strip()}")
        for line in file.read_text().splitlines():
            stack, _, samples = line.rpartition(" ")
            seconds[stack] = seconds.get(stack, 0.0) + int(samples) / RATE


def _program() -> Path:
    return Path(sysconfig.get_path("scripts")) / "py-spy"


def _end(watcher: subprocess.Popen[str]) -> str:
    """Have it write what it saw; returns what it said."""
    watcher.send_signal(signal.SIGINT)
    try:
        return watcher.communicate(timeout=END_S)[1]
    except subprocess.TimeoutExpired:
        watcher.kill()
        return watcher.communicate()[1]
