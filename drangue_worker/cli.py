"""`drangue`: the console's commands, and those that run something: worker, dev, demo."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import click

from drangue_client.console.commands import COMMANDS
from drangue_client.console.shell import run_main, settings_here
from drangue_client.errors import QueueUnavailable, SettingsError
from drangue_client.settings import Settings

POOLS = ("model", "tool")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def drangue() -> None:
    """Durable AI agents on Postgres, Redis and Celery.

    \b
    drangue dev                      servers and workers of this folder, in one terminal
    drangue submit AGENT "..."       give an agent something to work on
    drangue runs                     what there is, and how it stands
    drangue approvals                what waits for you
    """


@click.command()
@click.argument("pool", required=False, type=click.Choice(POOLS))
@click.option("--concurrency", type=click.IntRange(1), help="Steps in flight (model) or child processes (tool).")
@click.option("--queues", help="Queues to serve, by commas, in place of the pool's own.")
@click.option("--name", help="Name of this worker among the others.  [default: POOL.PID@HOST]")
@click.option("--parent", type=int, hidden=True)
def worker(
    pool: str | None, concurrency: int | None, queues: str | None, name: str | None, parent: int | None
) -> int | None:
    """Work on runs: start the POOL `model` (model calls, coordination, async tools) or `tool` (sync tools).

    Without POOL both are started and kept running. SIGTERM lets running steps finish for DRANGUE_DRAIN_GRACE_S seconds,
    then gives them back.
    """
    from drangue_worker.supervisor import Supervisor, follow_parent, worker_command

    if parent is not None:
        follow_parent(parent)
    settings = settings_here()
    _check(settings)
    os.environ.update(settings.to_env())  # the addresses may come from a stack; Celery's children read the environment
    if pool is None:
        if concurrency or queues or name:
            raise click.UsageError("--concurrency, --queues and --name are for one pool; name it: model or tool.")
        supervisor = Supervisor(grace_s=settings.drain_grace_s)
        for one in POOLS:
            supervisor.start(one, worker_command(one))
        return supervisor.run()
    _serve(pool, settings, concurrency, queues, name)
    return None


def _check(settings: Settings) -> None:
    """Everything that would keep a worker from working, said before it starts: one line each, exit code 2."""
    import redis

    from drangue_client.store.log import SqlLog
    from drangue_worker.registry import Registry

    if not settings.agents:
        raise SettingsError(
            "DRANGUE_AGENTS is not set, so there is nothing to serve. Set it to the module that holds your agents, "
            "such as DRANGUE_AGENTS=shop.agents."
        )
    for blueprint in Registry.load(settings.agents):
        blueprint.check()
    log = SqlLog(settings.require_database(), pool_size=1)
    try:
        log.agents()
    finally:
        log.close()
    try:
        with redis.Redis.from_url(settings.require_redis(), socket_connect_timeout=3, retry=None) as client:
            client.ping()
    except (redis.exceptions.RedisError, OSError) as error:
        raise QueueUnavailable(f"Redis cannot be reached: {error}. Start it, or correct DRANGUE_REDIS_URL.") from error


def _serve(pool: str, settings: Settings, concurrency: int | None, queues: str | None, name: str | None) -> None:
    """Become the Celery worker of a pool; returns when it has been stopped."""
    from celery.exceptions import ImproperlyConfigured, SecurityWarning

    from drangue_client.wire.queue import LOOP_QUEUES, TOOL_QUEUE

    # Celery warns that a root worker could be made to unpickle; ours accept JSON alone.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    from drangue_worker.celery import app, registry
    from drangue_worker.fleet.steps import async_queues

    custom = registry.queues - {*LOOP_QUEUES, TOOL_QUEUE}
    on_loop = custom & async_queues(registry)
    if pool == "model":
        own = [*LOOP_QUEUES, *sorted(on_loop)]
    else:
        own = [TOOL_QUEUE, *sorted(custom - on_loop)]
        app.conf.worker_pool = "prefork"
    arguments = ["--quiet", "worker", "--without-gossip", "--without-mingle", "--loglevel", settings.log_level.upper()]
    arguments += ["--queues", queues or ",".join(own), "--hostname", name or f"{pool}.{os.getpid()}@%h"]
    if concurrency:
        arguments += ["--concurrency", str(concurrency)]
    try:
        app.worker_main(arguments)
    except ImproperlyConfigured as error:
        raise SettingsError(str(error)) from error


@click.command()
@click.option("--model-workers", type=click.IntRange(1), default=1, show_default=True, help="Model-pool processes.")
@click.option("--tool-workers", type=click.IntRange(1), default=1, show_default=True, help="Tool-pool processes.")
def dev(model_workers: int, tool_workers: int) -> int:
    """Run Postgres, Redis and workers for this folder in one terminal; Ctrl-C stops all of it.

    The servers are real and embedded (extra `embedded`); their data stays in `.drangue/` and is found again by the next
    start. Other terminals in this folder find the servers by themselves.
    """
    from drangue_worker.dev import run_dev

    return run_dev(Path.cwd(), model_workers, tool_workers)


@click.command()
def demo() -> int:
    """Play a story on a fleet of this folder's own: 20 runs, a killed worker, an approval."""
    from drangue_worker.demo.play import play

    return play()


for command in (*COMMANDS, worker, dev, demo):
    drangue.add_command(command)


def main() -> None:
    """The entry point `drangue`."""
    run_main(drangue)


if __name__ == "__main__":
    main()
