"""The commands that change where a run goes. Each says what it did and to which run, and may be given twice."""

from __future__ import annotations

import getpass
import json
import os
from pathlib import Path
from typing import Any

import click

from drangue_client.client import Client
from drangue_client.console.filters import AGE, run_filters, say_if_cut
from drangue_client.console.shell import FAILED, OK, client_here
from drangue_client.console.views import arguments_shown, shown, when
from drangue_client.errors import NotPendingError, NotUnknownError
from drangue_client.events import Event
from drangue_client.pruning import prune as forget
from drangue_client.run import ENDED, Ended

_TOOK = {True: "to have taken effect", False: "to have had no effect"}


def login_name() -> str:
    """Who is typing."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in many containers
        return f"uid {os.getuid()}"


def arguments_from(text: str) -> dict[str, Any]:
    """The arguments of a call, from JSON. ValueError says what it is instead."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{text!r} is no JSON ({error})") from None
    if not isinstance(given, dict):
        raise ValueError(f"{text!r} is no object of arguments by their names")
    return given


def _json_object(context: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:
    try:
        return None if value is None else arguments_from(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _verdict_options(command: Any) -> Any:
    command = click.option("--reason", default="", help="Why; recorded, and told to the model on a rejection.")(command)
    command = click.option("--by", default=login_name, help="Who decides.  [default: your login name]")(command)
    command = click.argument("call", required=False)(command)
    return click.argument("run")(command)


@click.command(short_help="Let a waiting call go ahead.")
@_verdict_options
@click.option("--arguments", callback=_json_object, metavar="JSON", help="Make the call with these instead.")
@click.option("--as-shown", metavar="HASH", help="Only with the arguments that `drangue approvals` shows by this.")
@click.pass_context
def approve(
    context: click.Context,
    run: str,
    call: str | None,
    arguments: dict[str, Any] | None,
    as_shown: str | None,
    by: str,
    reason: str,
) -> int:
    """Approve a waiting call of RUN: the one with id CALL, where there are several. The run goes on by itself.

    \b
    drangue approve run-17
    drangue approve run-17 call_1 --arguments '{"amount": 3}' --reason "that is enough"

    --arguments are all that the call is made with: what is left out is not taken from the model's.
    """
    with client_here(context) as client:
        return _decide(client, run, call, by, reason, granted=True, arguments=arguments, as_shown=as_shown)


@click.command(short_help="Refuse a waiting call.")
@_verdict_options
@click.pass_context
def reject(context: click.Context, run: str, call: str | None, by: str, reason: str) -> int:
    """Reject a waiting call of RUN; the model is told why and goes on without it."""
    with client_here(context) as client:
        return _decide(client, run, call, by, reason, granted=False)


def _decide(
    client: Client,
    run: str,
    call: str | None,
    by: str,
    reason: str,
    *,
    granted: bool,
    arguments: dict[str, Any] | None = None,
    as_shown: str | None = None,
) -> int:
    word = "approved" if granted else "rejected"
    waiting = [item["call_id"] for item in client.pending_approvals(run)]
    if call is None and len(waiting) > 1:
        raise click.UsageError(f"{len(waiting)} calls of run {run} wait; name one: {', '.join(waiting)}.")
    try:
        if granted:
            request = client.approve(run, call, arguments=arguments, arguments_hash=as_shown, by=by, reason=reason)
        else:
            request = client.reject(run, call, by=by, reason=reason)
    except NotPendingError:
        verdict = earlier(client, run, call, "approval_granted", "approval_denied")
        if verdict is None:
            raise
        holds = "approved" if verdict.type == "approval_granted" else "rejected"
        click.echo(f"{verdict.payload['call_id']} of run {run} was {holds} {by_whom(verdict)}")
        return OK if holds == word else FAILED
    say_verdict(word, request)
    return OK


def say_verdict(word: str, request: dict[str, Any]) -> None:
    """Say what was decided about which call, and what is missing still."""
    more = f"; it needs {request['missing']} more" if request["missing"] else ""
    shown_call = f"{request['tool']}({arguments_shown(request['arguments'])})"
    click.echo(f"{word} {shown(shown_call)} ({shown(request['call_id'])}) of run {request['run_id']}{more}")
    _say_who_goes_on(request)


def _say_who_goes_on(item: dict[str, Any]) -> None:
    if item["executor"] == "inline":
        click.echo("the run belongs to one process, not to the workers: it goes on when that process resumes it")


def earlier(client: Client, run: str, call: str | None, *types: str) -> Event | None:
    """What was said before about this call (or about the latest one), so that saying it twice is no error."""
    for event in reversed(client.events(run)):
        if event.type in types and call in (None, event.payload["call_id"]):
            return event
    return None


def by_whom(said: Event) -> str:
    """Who said so and when."""
    return f"by {shown(said.payload.get('by') or 'somebody')} at {when(said.ts)} UTC; that holds"


def _who_and_why(command: Any) -> Any:
    command = click.option("--reason", default="", help="Why; recorded with the run.")(command)
    return click.option("--by", default=login_name, help="Who decides.  [default: your login name]")(command)


@click.command(short_help="Say what became of a call.")
@click.argument("run")
@click.argument("call", required=False)
@click.option("--happened", is_flag=True, help="It took effect.")
@click.option("--did-not-happen", is_flag=True, help="It did not.")
@click.option("--note", default="", help="What you found, for the model; of a call that happened, its result.")
@_who_and_why
@click.pass_context
def outcome(
    context: click.Context,
    run: str,
    call: str | None,
    happened: bool,
    did_not_happen: bool,
    note: str,
    by: str,
    reason: str,
) -> int:
    """Say whether a call of RUN took effect of which nobody knows: the one with id CALL, where there are several.

    \b
    drangue outcome run-17 --happened --note "ledger entry 4711"
    drangue outcome run-17 call_1 --did-not-happen --reason "asked the bank"

    A run that waits for it goes on; one that went on without is told with its next model call. Nothing is executed.
    """
    if happened == did_not_happen:
        raise click.UsageError("say --happened or --did-not-happen, and not both: the first word holds.")
    with client_here(context) as client:
        unknown = [item["call_id"] for item in client.unknown_outcomes(run)]
        if call is None and len(unknown) > 1:
            raise click.UsageError(f"{len(unknown)} calls of run {run} are unknown; name one: {', '.join(unknown)}.")
        try:
            item = client.give_outcome(run, call, happened=happened, note=note, by=by, reason=reason)
        except NotUnknownError:
            said = earlier(client, run, call, "outcome_given")
            if said is None:
                raise
            holds = said.payload["happened"]
            click.echo(f"{said.payload['call_id']} of run {run} was said {_TOOK[holds]} {by_whom(said)}")
            return OK if holds == happened else FAILED
    click.echo(f"{item['tool']} ({item['call_id']}) of run {run} is recorded {_TOOK[happened]}")
    _say_who_goes_on(item)
    return OK


@click.command(short_help="End runs where they are.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@_who_and_why
@click.pass_context
def cancel(context: click.Context, runs: tuple[str, ...], by: str, reason: str) -> int:
    """End the turn each RUN is at, now.

    What is queued never starts, a model call is aborted, a reversible tool is stopped. An irreversible tool that has
    begun is let finish. Exit code 1 where a run had ended before.
    """
    code = OK
    with client_here(context) as client:
        for run in runs:
            done = client.cancel(run, by=by, reason=reason)
            status = client.get(run).status
            click.echo(f"cancelled run {run}" if done else f"run {run} is {status}; it was left as it is")
            code = code if done or status == "cancelled" else FAILED
    return code


@click.command(short_help="Forget runs that ended long ago.")
@click.option("--older-than", type=AGE, required=True, metavar="AGE", help="Ended so long ago: 90d, 12h.")
@click.option("--status", "statuses", type=click.Choice(ENDED), multiple=True, help="Only these; repeatable.")
@click.option("--archive", type=click.Path(dir_okay=False, path_type=Path), help="Append them to this file first.")
@click.option("--no-archive", is_flag=True, help="Keep nothing of them.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
@click.pass_context
def prune(
    context: click.Context,
    older_than: float,
    statuses: tuple[Ended, ...],
    archive: Path | None,
    no_archive: bool,
    dry_run: bool,
) -> int:
    """Forget runs that ended long ago, with their logs.

    \b
    drangue prune --older-than 90d --archive runs-2026.jsonl
    drangue prune --older-than 30d --status completed --dry-run

    The archive has a line of JSON per run, with its row and its events, and is on disk before anything is deleted.
    """
    if (archive is None) != (no_archive or dry_run):
        raise click.UsageError("say --archive FILE, or --no-archive, or --dry-run.")
    with client_here(context) as client:
        count = forget(client.log, older_than, statuses=statuses or ENDED, archive=archive, dry=dry_run)
    where = f" to {archive}" if archive else ""
    click.echo(f"{count} runs would be forgotten" if dry_run else f"forgot {count} runs{where and ', archived'}{where}")
    return OK


@click.command(short_help="Take failed runs up again.")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option("--all", "every", is_flag=True, help="All failed runs that the filters let through.")
@run_filters(limit=100, status=False)
@_who_and_why
@click.pass_context
def retry(context: click.Context, /, names: tuple[str, ...], every: bool, by: str, reason: str, **filters: Any) -> int:
    """Take failed runs up again where they failed, their steps with fresh retries.

    \b
    drangue retry run-17 run-18
    drangue retry --all --agent oncall --since 2h --reason "the provider is back"

    What was recorded stays, and nothing of it is done again. Exit code 1 where a named run has not failed.
    """
    if bool(names) == every:
        raise click.UsageError("name runs, or say --all for those that the filters let through.")
    narrowed = [name for name, value in filters.items() if value and name != "limit"]
    if names and narrowed:
        raise click.UsageError("filters go with --all, not with the names of runs.")
    code = OK
    with client_here(context) as client:
        if every:
            names = tuple(row.run_id for row in client.runs(status="failed", **filters))
        for run in names:
            done = client.resume(run, by=by, reason=reason)
            status = client.get(run).status
            click.echo(f"retrying run {run}" if done.created else f"run {run} is {status}; it was left as it is")
            code = code if done.created else FAILED
        if not names:
            click.echo("no failed run matches")
    if every:
        say_if_cut("taken up", len(names), filters["limit"])
    return code
