"""The operator's commands: what begins runs and looks at them here, what steers them in `steering`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click

from drangue_client.autonomy import Autonomy
from drangue_client.budget import Budget
from drangue_client.client import Client
from drangue_client.console.filters import SECONDS, pairs, run_filters, say_if_cut
from drangue_client.console.looking import agents, doctor, queues, tail, workers
from drangue_client.console.one_run import answer, dollars, run_view
from drangue_client.console.shell import OK, UNFINISHED, client_here, code_of, json_option, say, say_json, settings_here
from drangue_client.console.steering import approve, cancel, login_name, outcome, prune, reject, retry
from drangue_client.console.views import approvals_list, runs_table, unknown_list
from drangue_client.errors import WaitTimeout
from drangue_client.limits import Limits
from drangue_client.result import Result
from drangue_client.store.values import DEFAULT_PRIORITY, RunRow


@click.command(short_help="Give an agent something to work on.")
@click.argument("agent")
@click.argument("input")
@click.option("--run-id", help="Your own id for the run; submitting it twice gives the same run.")
@click.option("--priority", type=click.IntRange(0, 9), default=DEFAULT_PRIORITY, show_default=True, help="0 is first.")
@click.option(
    "--label", "labels", multiple=True, callback=pairs, metavar="NAME=VALUE", help="To find the run by; repeatable."
)
@click.option("--deadline", type=SECONDS, metavar="SECONDS", help="End each turn that takes longer than this.")
@click.option("--max-steps", type=click.IntRange(1), help="At most so many model calls in a turn.")
@click.option("--max-tokens", type=click.IntRange(0), help="At most so many tokens in the whole run.")
@click.option("--ask", multiple=True, metavar="TOOL", help="A person is asked before this tool runs; repeatable.")
@click.option("--deny", multiple=True, metavar="TOOL", help="This tool may not be called; repeatable.")
@click.option("--wait", type=SECONDS, metavar="SECONDS", help="Wait for the run to stop and print its answer.")
@click.option("--allow-unknown", is_flag=True, help="Submit although no worker has registered the agent yet.")
@json_option
@click.pass_context
def submit(
    context: click.Context,
    agent: str,
    input: str,
    run_id: str | None,
    priority: int,
    labels: dict[str, str],
    deadline: float | None,
    max_steps: int | None,
    max_tokens: int | None,
    ask: tuple[str, ...],
    deny: tuple[str, ...],
    wait: float | None,
    allow_unknown: bool,
    as_json: bool,
) -> int:
    """Give an agent something to work on.

    \b
    drangue submit oncall "Why did checkout fail at 09:40?"
    drangue submit oncall "..." --run-id incident-4711 --wait 60
    drangue submit oncall "..." --max-steps 5 --ask restart

    What limits a run holds beside the agent's own terms: nothing is loosened by it.

    Exit codes with --wait: 0 it has ended, 1 it failed, was cancelled or late, 3 it waits for a person, 4 the wait is
    over and the run goes on.
    """
    budget = Budget(max_tokens) if max_tokens is not None else None
    autonomy = Autonomy(modes=dict.fromkeys(ask, "assisted")) if ask else None
    with client_here(context) as client:
        done = client.submit(
            agent,
            input,
            run_id=run_id,
            priority=priority,
            labels=labels,
            deadline=deadline,
            limits=Limits(max_steps, budget, autonomy, deny),
            allow_unknown=allow_unknown,
        )
        if wait is not None and (sys.stderr.isatty() or not done.sent):
            click.echo(f"{done.run_id}  {_submitted(done.created, done.sent)}", err=True)
        if wait is None:
            if as_json:
                say_json(asdict(done))
            else:
                click.echo(f"{done.run_id}  {_submitted(done.created, done.sent)}")
            return OK
        return _print_result(client, done.run_id, wait, as_json)


def _submitted(created: bool, sent: bool, word: str = "submitted") -> str:
    if not created:
        return f"was {word} before; nothing is done twice"
    return word if sent else "recorded; Redis cannot be reached, so it waits and starts when Redis is back"


def _print_result(client: Client, run_id: str, timeout: float, as_json: bool) -> int:
    try:
        result = client.result(run_id, timeout=timeout)
    except WaitTimeout as error:
        click.echo(f"drangue: {error}", err=True)
        return UNFINISHED
    if as_json:
        say_json(_as_json(client, run_id, result))
    else:
        _say_run(client.get(run_id), result)
    return code_of(result)


def _say_run(row: RunRow, result: Result) -> None:
    say(run_view(row, result))
    click.echo(answer(result))


def _as_json(client: Client, run_id: str, result: Result) -> dict[str, Any]:
    return {
        **asdict(client.get(run_id)),
        "output": result.output,
        "reason": result.reason,
        "usage": result.usage,
        "usd": dollars(result),
        "pending_approvals": result.pending_approvals,
        "unknown_outcomes": result.unknown_outcomes,
        "events": [event.to_json() for event in result.events],
    }


@click.command(short_help="List runs, newest first.")
@run_filters(limit=20)
@click.option("--unknown", is_flag=True, help="Only runs with a call of which nobody knows whether it took effect.")
@json_option
@click.pass_context
def runs(context: click.Context, /, as_json: bool, **filters: Any) -> None:
    """List runs, newest first.

    \b
    drangue runs --status failed --since 12h
    drangue runs --agent oncall --since 2026-07-01 --until 2026-07-02 --label team=search
    drangue runs --unknown
    """
    with client_here(context) as client:
        rows = client.runs(**filters)
        unknown = [item for row in rows for item in client.unknown_outcomes(row.run_id)] if filters["unknown"] else []
    if as_json:
        say_json([asdict(row) for row in rows])
    else:
        say(runs_table(rows))
        if unknown:
            say(unknown_list(unknown))
    say_if_cut("shown", len(rows), filters["limit"])


@click.command("say", short_help="Begin another turn of a run.")
@click.argument("run")
@click.argument("text")
@click.option("--turn-id", help="Your own id for the turn; saying it twice is one turn.")
@click.option("--wait", type=SECONDS, metavar="SECONDS", help="Wait for the run to stop and print its answer.")
@json_option
@click.pass_context
def say_more(
    context: click.Context, run: str, text: str, turn_id: str | None, wait: float | None, as_json: bool
) -> int:
    """Say TEXT to a RUN that has ended its latest turn.

    \b
    drangue say run-17 "Is it still failing?" --wait 60
    """
    with client_here(context) as client:
        done = client.say(run, text, turn_id=turn_id)
        if wait is not None:
            return _print_result(client, run, wait, as_json)
        if as_json:
            say_json(asdict(done))
        else:
            click.echo(f"{run}  {_submitted(done.created, done.sent, 'said')}")
        return OK


@click.command(short_help="Show one run, step by step.")
@click.argument("run")
@json_option
@click.pass_context
def show(context: click.Context, run: str, as_json: bool) -> None:
    """Show one run: its steps as a tree, what it cost, what it waits for."""
    with client_here(context) as client:
        row = client.get(run)
        result = Result.from_events(run, client.events(run))
        if as_json:
            say_json(_as_json(client, run, result))
        else:
            _say_run(row, result)


@click.command(short_help="List what waits for a person.")
@click.option("--watch", is_flag=True, help="Show what waits one by one, and what comes, and decide it.")
@click.option("--by", help="Who decides, with --watch.  [default: your login name]")
@json_option
@click.pass_context
def approvals(context: click.Context, watch: bool, by: str | None, as_json: bool) -> int:
    """List the calls that wait for a person: for leave, with the model's reasons, or for word of what became of one.

    \b
    drangue approvals
    drangue approvals --watch
    drangue approvals --watch --json

    With --watch each call that waits for leave is shown by itself, and one key decides it, or puts it off. With --json
    too, each is a line for another program, and nothing is asked. Ctrl-C ends it.
    """
    if by is not None and (as_json or not watch):
        raise click.UsageError("--by goes with --watch, where you decide.")
    with client_here(context) as client:
        if watch and not as_json:
            from drangue_client.console.inbox import Inbox  # which asks for a terminal's own modules

            return Inbox(client, login_name() if by is None else by).work()
        if watch:
            for request in client.watch_approvals():
                say_json(request, indent=None)
            return OK
        pending = client.pending_approvals()
        asked = [item for item in client.unknown_outcomes() if item["asked"]]
    if as_json:
        say_json([*pending, *asked])
    elif asked:
        say(unknown_list(asked))
    if not as_json and (pending or not asked):
        say(approvals_list(pending))
    return OK


@click.command(short_help="Bring the tables to this version.")
@click.pass_context
def migrate(context: click.Context) -> None:
    """Bring the database's tables to this program's version. Safe to repeat."""
    from drangue_client.store.migrate import migrate as run_migrations

    settings = settings_here(context)
    before, after = run_migrations(settings.require_database())
    click.echo(f"tables are at {after}" + ("" if before == after else f" (before: {before or 'none'})"))


COMMANDS: tuple[click.Command, ...] = (
    submit,
    say_more,
    runs,
    show,
    tail,
    approvals,
    approve,
    reject,
    outcome,
    cancel,
    retry,
    agents,
    queues,
    workers,
    doctor,
    prune,
    migrate,
)
