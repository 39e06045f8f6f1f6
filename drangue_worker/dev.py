"""`drangue dev`: the servers and the workers of one folder, in one terminal.

Everything it starts, it stops; the data stays in `.drangue/` for the next start. Servers named by the environment are
used as they are and left running.
"""

from __future__ import annotations

import importlib.util
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from drangue_client.errors import DrangueError
from drangue_client.settings import Settings
from drangue_client.stackfile import FOLDER, Addresses, read_stack, remove_stack, write_stack
from drangue_client.store.migrate import migrate
from drangue_client.wire.queue import Sender
from drangue_worker.embedded import EmbeddedError, Servers
from drangue_worker.registry import serving
from drangue_worker.supervisor import Supervisor, following, worker_command

READY_S = 60.0
FLOWER_PORT = 5555


def run_dev(folder: Path, model_workers: int, tool_workers: int) -> int:
    """Start everything, say where it is, and keep it running until SIGTERM or SIGINT. Returns an exit code."""
    settings = Settings.from_env()
    if settings.agents:
        serving(settings)  # what is wrong with the agents is said before anything is started
    supervisor = Supervisor()
    supervisor.heed_signals()
    with ExitStack() as stack:
        settings = start_servers(settings, folder, stack)
        supervisor.check()
        click.echo(f"Postgres  {settings.database_url}\nRedis     {settings.redis_url}")
        # A sign of life is one worker's, and here are several.
        supervisor.env = {"DRANGUE_LOG_FORMAT": "console", **settings.to_env(), "DRANGUE_LIVENESS_FILE": ""}
        supervisor.grace_s = settings.drain_grace_s
        stack.callback(supervisor.stop)
        if settings.agents:
            started = start_workers(supervisor, model_workers, tool_workers)
            flower = start_flower(supervisor, settings)
            wait_for_workers(settings, started, supervisor)
            click.echo(f"workers   {', '.join(started)}\nagents    {', '.join(settings.agents)}")
            click.echo(f"Flower    {flower}" if flower else "Flower    not installed (extra `flower`)")
        else:
            click.echo("no agents: set DRANGUE_AGENTS to the module that holds yours and start again for workers")
        supervisor.check()
        click.echo("Other terminals in this folder find all of it. Ctrl-C stops it; the data stays.")
        return supervisor.run()


def start_servers(settings: Settings, folder: Path, stack: ExitStack) -> Settings:
    """The servers to use, migrated and announced to other terminals of the folder until `stack` unwinds.

    Raises DrangueError saying what is missing.
    """
    if not settings.database_url or not settings.redis_url:
        servers = Servers(folder / FOLDER)
        try:
            addresses = stack.enter_context(servers).start()
        except EmbeddedError as error:
            raise DrangueError(str(error)) from error
        settings = replace(
            settings,
            database_url=settings.database_url or addresses.database_url,
            redis_url=settings.redis_url or addresses.redis_url,
        )
    elif read_stack(folder / FOLDER) is not None:  # embedded servers lock their folder; others do not
        raise DrangueError(f"a stack is already running in {folder}. Use that one, or stop it first.")
    migrate(settings.require_database())
    write_stack(folder / FOLDER, Addresses(settings.database_url, settings.redis_url), {})
    stack.callback(remove_stack, folder / FOLDER)
    return settings


def start_workers(supervisor: Supervisor, model_workers: int, tool_workers: int) -> list[str]:
    """Start worker processes named `model-1`, `tool-1` ...; returns the names."""
    names = []
    for pool, count in (("model", model_workers), ("tool", tool_workers)):
        for number in range(1, count + 1):
            name = f"{pool}-{number}"
            supervisor.start(name, worker_command(pool, "--name", f"{name}@%h"))
            names.append(name)
    return names


def wait_for_workers(settings: Settings, names: list[str], supervisor: Supervisor, timeout_s: float = READY_S) -> None:
    """Return when every named worker answers. DrangueError when one has ended, or after `timeout_s` seconds.

    Raises SystemExit where the supervisor was told to end.
    """
    app = Sender(settings).app
    deadline = time.monotonic() + timeout_s
    while True:
        supervisor.check()
        answered = {next(iter(reply)).partition("@")[0] for reply in app.control.ping(timeout=0.5) or []}
        if answered >= set(names):
            return
        ended = [name for name in names if supervisor.children[name].process.poll() is not None]
        if ended or time.monotonic() > deadline:
            missing = ", ".join(ended or sorted(set(names) - answered))
            raise DrangueError(f"worker {missing} did not start; its lines above, or its log file, say why.")


def start_flower(supervisor: Supervisor, settings: Settings) -> str | None:
    """Start Flower if it is installed, on loopback and read-only; returns its address."""
    if importlib.util.find_spec("flower") is None:
        return None
    port = _free_port(FLOWER_PORT)
    supervisor.start(
        "flower",
        following(
            [
                *(sys.executable, "-m", "celery", "--app", "drangue_worker", "flower"),
                *("--address=127.0.0.1", f"--port={port}", "--read-only", "--purge-offline-workers=60"),
                "--logging=error",
            ]
        ),
    )
    return f"http://127.0.0.1:{port}"


def _free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else one that the system gives."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DrangueError("no free port on 127.0.0.1. Close something that listens there.")
