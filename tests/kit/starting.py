"""Tools that start programs of their own, which leave their effect a while later."""

from __future__ import annotations

import re
import subprocess
import sys

from drangue_worker import Agent, Done, NotDone, OpenAIModel, tool
from tests.kit.agents import effect
from tests.kit.doubtful import count

AFTER_S = 2.5
PROGRAM = f"""
import os, sys, time
from tests.kit.agents import effect
time.sleep({AFTER_S})
effect(sys.argv[1], sys.argv[2])
"""


def _start(key: str, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, key, name])


def _look(name: str, key: str) -> Done | NotDone:
    return Done("found") if count(key, name) else NotDone()


@tool(reversible=False, reconcile=lambda key: _look("applied", key))
def apply(idempotency_key: str) -> str:
    """Run a program, and wait for it."""
    effect(idempotency_key, "apply begun")
    _start(idempotency_key, "applied").wait()
    return "applied"


@tool(reversible=False, timeout=1.0, reconcile=lambda key: _look("limited", key))
def limited(idempotency_key: str) -> str:
    """Run a program, and let nobody else run meanwhile."""
    _start(idempotency_key, "limited")
    re.match(r"(a+)+$", "a" * 64 + "b")
    return "done"


starter = Agent(OpenAIModel("scripted"), [apply, limited], "Do it.", name="starter")
