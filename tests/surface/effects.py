"""What tools and guards did, counted outside the runtime: a file that every process of a test run appends to.

A line belongs to the case whose token stands anywhere in it. Gates are the other direction: a tool waits at one until
the test opens it, so that a test decides what ends first.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = "SURFACE_FOLDER"  # the environment variable that names the folder, in the test and in every worker
GATE_S = 30.0  # a gate that a failed test left closed opens by itself
_POLL_S = 0.005


def count(what: str, *about: Any) -> None:
    """Append one line: a single write, so that lines of several processes never mix."""
    line = json.dumps([what, *about], default=repr) + "\n"
    file = os.open(_folder() / "effects", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def counted(token: str) -> list[list[Any]]:
    """The lines of one case, in the order they were written, each [what, ...]."""
    path = _folder() / "effects"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if token in line]


def open_gate(name: str) -> None:
    """Let everybody through who waits at a gate, or will."""
    (_folder() / f"gate-{name}").touch()


def pass_gate(name: str) -> None:
    """Wait until a gate is open; no name is no gate."""
    deadline = time.monotonic() + GATE_S
    while name and not (_folder() / f"gate-{name}").exists() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


async def pass_gate_async(name: str) -> None:
    """`pass_gate` for an event loop."""
    await asyncio.to_thread(pass_gate, name)


def _folder() -> Path:
    return Path(os.environ[FOLDER])
