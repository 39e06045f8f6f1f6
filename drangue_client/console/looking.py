"""The commands that look at a fleet and change nothing: `tail`, `agents`, `queues`, `workers`, `doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click

from drangue_client.console.filters import SECONDS
from drangue_client.console.shell import FAILED, OK, client_here, code_of, json_option, say, say_json, settings_here
from drangue_client.console.views import agents_table, event_line, finding_line, queues_table, workers_table
from drangue_client.doctor import examine
from drangue_client.events import STREAMED
from drangue_client.result import Result


@click.command(short_help="Watch a run, event by event.")
@click.argument("run")
@click.option("--after", type=click.IntRange(-1), default=-1, show_default=True, help="Begin behind this place.")
@json_option
@click.pass_context
def tail(context: click.Context, run: str, after: int, as_json: bool) -> int:
    """Print each event of RUN as it is written, until the run has ended or waits for a person.

    \b
    drangue tail run-17
    drangue tail run-17 --after 12 --json

    Of a run submitted with tokens its answers are shown while they are written. Exit codes: 0 it has ended, 1 it
    failed, was cancelled or late, 3 it waits for a person.
    """
    with client_here(context) as client:
        writing, last = False, -1
        for event in client.stream(run, after=after):
            last = max(last, event.seq)
            if as_json:
                say_json(event.to_json(), indent=None)
                continue
            if event.type == STREAMED:
                click.echo(event.payload["text"], nl=False)
                writing = True
                continue
            if writing:
                click.echo()
                writing = False
            say(event_line(event))
        known = [event for event in client.events(run) if event.seq <= max(after, last)]
        return code_of(Result.from_events(run, known))


@click.command(short_help="List the agents that workers serve.")
@json_option
@click.pass_context
def agents(context: click.Context, as_json: bool) -> None:
    """List the agents that workers have registered: their models and tools, and when a worker last said so."""
    with client_here(context) as client:
        rows = client.agents()
    if as_json:
        say_json([{"name": row.name, "seen_at": row.seen_at, **row.summary} for row in rows])
    else:
        say(agents_table(rows))


@click.command(short_help="List what waits to be done, by queue.")
@json_option
@click.pass_context
def queues(context: click.Context, as_json: bool) -> None:
    """List the queues: steps that are due, held and waiting for their backoff, and the messages in Redis.

    A step that is due and has no message is sent again by the next sweep. The oldest of them says how far the workers
    are behind.
    """
    with client_here(context) as client:
        rows = client.queues()
    if as_json:
        say_json(rows)
    else:
        say(queues_table(rows))


@click.command(short_help="Examine the fleet.")
@click.option("--rebuild", is_flag=True, help="Also fold every log anew and compare it with its row.")
@click.option(
    "--timeout", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds to wait for workers."
)
@json_option
@click.pass_context
def doctor(context: click.Context, rebuild: bool, timeout: float, as_json: bool) -> int:
    """Look for what loses work or time: tables, clocks, settings of Postgres and Redis, workers, queues, runs.

    Changes nothing. Exit code 1 where something is bad; a warning alone is 0.
    """
    found = []
    for finding in examine(settings_here(context), rebuild=rebuild, timeout_s=timeout):
        found.append(finding)
        if not as_json:
            say(finding_line(finding))
    if as_json:
        say_json([asdict(finding) for finding in found])
    return FAILED if any(finding.level == "bad" for finding in found) else OK


@click.command(short_help="List the workers that answer.")
@click.option("--timeout", type=SECONDS, default=1.0, show_default=True, help="Seconds to wait for them.")
@json_option
@click.pass_context
def workers(context: click.Context, timeout: float, as_json: bool) -> int:
    """Ask every worker process for a sign of life: its name, its pool, its queues, and how many messages it has
    taken since it started.

    Exit code 1 where none answers. A worker that is busy may answer late: give it a longer --timeout.
    """
    with client_here(context) as client:
        rows = client.workers(timeout)
    if as_json:
        say_json(rows)
    else:
        say(workers_table(rows))
    return OK if rows else FAILED
