"""`drangue`: the console's commands, and those that run something: worker, dev, demo, eval."""

from __future__ import annotations

import os
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drangue_client.console.commands import COMMANDS
from drangue_client.console.filters import SECONDS, run_filters
from drangue_client.console.shell import FAILED, OK, UNUSABLE, json_option, run_main, settings_here
from drangue_client.console.steering import login_name
from drangue_client.errors import DrangueError, QueueUnavailable, SettingsError
from drangue_client.settings import Settings
from drangue_client.wire.queue import COORDINATE_QUEUE, LOOP_QUEUES, QUEUES, TOOL_QUEUE, unreachable

if TYPE_CHECKING:
    from drangue_worker.registry import Registry

POOLS = ("model", "tool")  # what one command starts; a pool of coordinators is for those who want one apart
ALL_POOLS = ("coordinator", *POOLS)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def drangue() -> None:
    """Durable AI agents on Postgres, Redis and Celery.

    \b
    drangue dev                      servers and workers of this folder, in one terminal
    drangue submit AGENT "..."       give an agent something to work on
    drangue runs                     what there is, and how it stands
    drangue approvals                what waits for you
    drangue eval pkg.evals:all       is an agent still as good as it was
    """


@click.command(short_help="Work on runs.")
@click.argument("pool", required=False, type=click.Choice(ALL_POOLS))
@click.option("--concurrency", type=click.IntRange(1), help="Steps in flight (model) or child processes (tool).")
@click.option("--queues", help="Queues to serve, by commas, in place of the pool's own.")
@click.option("--name", help="Name of this worker among the others.  [default: POOL.PID@HOST]")
@click.option("--liveness-file", type=FILE, help="Touched every second while it lives and its event loop answers.")
@click.option("--parent", type=int, hidden=True)
def worker(
    pool: str | None,
    concurrency: int | None,
    queues: str | None,
    name: str | None,
    liveness_file: Path | None,
    parent: int | None,
) -> int:
    """Work on runs: start the POOL `model` (model calls, coordination, async tools) or `tool` (sync tools).

    \b
    drangue worker                                    model and tool, started again when one dies
    drangue worker model --concurrency 200
    drangue worker tool --queues browser
    drangue worker coordinator                        coordination alone, where that must not wait for model calls

    SIGTERM lets running steps finish for DRANGUE_DRAIN_GRACE_S seconds, then gives them back.
    """
    from drangue_worker.fleet.liveness import check_writable
    from drangue_worker.registry import serving
    from drangue_worker.supervisor import Supervisor, follow_parent, worker_command

    if parent is not None:
        follow_parent(parent)
    settings = settings_here()
    if liveness_file is not None:
        settings = replace(settings, liveness_file=str(liveness_file.absolute()))
    if pool is None and (concurrency or queues or name or settings.liveness_file):
        raise click.UsageError(
            "--concurrency, --queues, --name and a liveness file are for one pool; name it: model or tool."
        )
    if settings.liveness_file:
        check_writable(settings.liveness_file)
    served = serving(settings, thinking=pool in (None, "model"))
    wanted = _queues(pool, queues, served) if pool else []
    _check_servers(settings)
    os.environ.update(settings.to_env())  # the addresses may come from a stack; Celery's children read the environment
    if pool is None:
        supervisor = Supervisor(grace_s=settings.drain_grace_s)
        for one in POOLS:
            supervisor.start(one, worker_command(one))
        return supervisor.run()
    return _serve(pool, settings, concurrency, wanted, name)


def _queues(pool: str, given: str | None, registry: Registry) -> list[str]:
    """The queues to serve: the pool's own, or the given ones. SettingsError for one that nobody sends to."""
    custom = registry.queues - set(QUEUES)
    on_loop = custom & registry.async_queues
    own = {
        "coordinator": [COORDINATE_QUEUE],
        "model": [*LOOP_QUEUES, *sorted(on_loop)],
        "tool": [TOOL_QUEUE, *sorted(custom - on_loop)],
    }[pool]
    chosen = [name.strip() for name in given.split(",")] if given else own
    known = sorted({*QUEUES, *custom})
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SettingsError(f"--queues names {unknown[0]!r}, to which nobody sends. The queues are {', '.join(known)}.")
    return chosen


def _check_servers(settings: Settings) -> None:
    """What would keep a worker from working, said before it starts: one line, exit code 2."""
    import redis

    from drangue_client.store.log import SqlLog

    log = SqlLog(settings.require_database(), pool_size=1)
    try:
        log.agents()
    finally:
        log.close()
    try:
        with redis.Redis.from_url(settings.require_redis(), socket_connect_timeout=3, retry=None) as client:
            client.ping()
    except (redis.exceptions.RedisError, OSError) as error:
        raise QueueUnavailable(unreachable(error)) from error


def _serve(pool: str, settings: Settings, concurrency: int | None, queues: list[str], name: str | None) -> int:
    """Become the Celery worker of a pool; returns an exit code when that has ended: OK only if it was told to."""
    from celery.exceptions import SecurityWarning
    from celery.signals import worker_shutting_down

    # Celery warns that a root worker could be made to unpickle; ours accept JSON alone.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    from drangue_worker.celery import app

    if pool == "tool":
        app.conf.worker_pool = "prefork"
    arguments = ["--quiet", "worker", "--without-gossip", "--without-mingle", "--loglevel", settings.log_level.upper()]
    arguments += ["--queues", ",".join(queues), "--hostname", name or f"{pool}.{os.getpid()}@%h"]
    if concurrency:
        arguments += ["--concurrency", str(concurrency)]
    told: list[object] = []
    worker_shutting_down.connect(lambda sig=None, **_: told.append(sig), weak=False)
    app.worker_main(arguments)
    return OK if told else FAILED  # Celery says 0 of a worker that gave up, and nobody would start it again


@click.command(short_help="Tell Prometheus of the fleet.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to answer at.")
@click.option("--port", type=click.IntRange(0, 65535), default=9464, show_default=True, help="0: a free one.")
@click.option("--prices", type=FILE, help="JSON: {model: {input, output}} in USD per million tokens.")
@click.option("--once", is_flag=True, help="Print the metrics and end.")
def metrics(host: str, port: int, prices: Path | None, once: bool) -> int:
    """Serve the fleet's metrics for Prometheus: what is due, held and waiting, steps, tokens, dollars.

    \b
    drangue metrics --port 9464
    drangue metrics --once | grep due_lag

    One process per fleet is enough: it reads Postgres and Redis, and asks no worker. Counters begin at 0 with it.
    Dollars are by the prices of each run's budget; --prices is for runs that have none. Needs the extra `metrics`.
    """
    from drangue_worker.exporting import export

    return export(settings_here(), host, port, prices, once=once)


@click.command(short_help="Servers and workers of this folder, in one terminal.")
@click.option("--model-workers", type=click.IntRange(1), default=1, show_default=True, help="Model-pool processes.")
@click.option("--tool-workers", type=click.IntRange(1), default=1, show_default=True, help="Tool-pool processes.")
def dev(model_workers: int, tool_workers: int) -> int:
    """Run Postgres, Redis and workers for this folder in one terminal; Ctrl-C stops all of it.

    The servers are real and embedded (extra `embedded`); their data stays in `.drangue/` and is found again by the next
    start. Other terminals in this folder find the servers by themselves.
    """
    from drangue_worker.dev import run_dev

    return run_dev(Path.cwd(), model_workers, tool_workers)


@click.command(short_help="Play a story on a fleet.")
def demo() -> int:
    """Play a story on a fleet of this folder's own: 20 runs, a killed worker, an approval."""
    from drangue_worker.demo.play import play

    return play()


@click.command("eval", short_help="Measure an agent, and stop what has become worse.")
@click.argument("scenarios", required=False, metavar="[pkg.module:scenarios]")
@click.option("--agent", metavar="NAME", help="The agent to evaluate; needed where there are several.")
@click.option("--runs", type=click.IntRange(1), help="Runs of every scenario, in place of its own number.")
@click.option("--concurrency", type=click.IntRange(1), default=4, show_default=True, help="Runs under way at once.")
@click.option("--timeout", type=SECONDS, default=900.0, show_default=True, help="Seconds after which a run has failed.")
@click.option("--fleet", is_flag=True, help="Let the workers run it; runs left paused or late are cancelled.")
@click.option("--prefix", help="What the ids of its runs begin with.  [default: a fresh one]")
@click.option("--baseline", type=FILE, help="The profile to compare with, as --save wrote it.")
@click.option("--save", type=FILE, help="Where to keep the profile, unless it is blocked.")
@click.option("--override", metavar="REASON", help="Let a blocked one pass; needs --record.")
@click.option("--by", default=login_name, help="Who overrides.  [default: your login name]")
@click.option("--record", type=FILE, help="The file to which an override is appended.")
@click.option("--from-runs", is_flag=True, help="Replay recorded runs; the filters say which.")
@run_filters(limit=20, agent=False)
@click.option("--stub", metavar="pkg.module:function", help="Answers the calls that are in no record.")
@click.option("--checks", metavar="pkg.module:checks", help="Correctness of replays, in place of the same calls.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=0.2,
    show_default=True,
    help="How much more a replay may use; 0.2 is a fifth.",
)
@click.option("--prices", type=FILE, help="JSON: {model: {input, output}} in USD per million tokens.")
@json_option
@click.pass_context
def evaluation(context: click.Context, /, **options: Any) -> int:
    """Measure an agent by scenarios, compare it with a baseline, and exit with 1 where it has become worse.

    \b
    drangue eval evals:scenarios --agent oncall --runs 5 --save baseline.json
    drangue eval evals:scenarios --agent oncall --runs 5 --baseline baseline.json
    drangue eval --from-runs --agent oncall --since 7d --label team=search

    Scenarios are a list, or a function that gives one. Agents come from DRANGUE_AGENTS. Their tools are called for
    real, except in replays of recorded runs, where the record answers in their place. --status (default: completed),
    --since, --until, --label and --limit choose the recorded runs.

    Exit codes: 0 passed, 1 blocked, 2 could not be done or measured.
    """
    from drangue_worker.evals.command import Options, run_eval

    filters = {name: options.pop(name) for name in ("status", "since", "until", "labels", "limit")}
    if not options["from_runs"] and any(value for name, value in filters.items() if name != "limit"):
        raise click.UsageError("--status, --since, --until and --label choose recorded runs; add --from-runs.")
    try:
        return run_eval(Options(filters=filters, **options), settings_here(context))
    except (click.ClickException, DrangueError):
        raise
    except Exception:  # a bug, or the author's: with an exit code of 1 it would read as a verdict
        traceback.print_exc()
        return UNUSABLE


for command in (*COMMANDS, worker, metrics, dev, demo, evaluation):
    drangue.add_command(command)


def main() -> None:
    """The entry point `drangue`."""
    run_main(drangue)


if __name__ == "__main__":
    main()
