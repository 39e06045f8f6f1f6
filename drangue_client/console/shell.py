"""What every command shares: where the servers are, how an answer is printed, and what an exit code means.

A command is a thin shell over a function that takes a client and values. Errors raised on purpose end as one line on
standard error; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType

from drangue_client.client import Client
from drangue_client.errors import DrangueError
from drangue_client.result import Result
from drangue_client.run import DEADLINE, MOVING
from drangue_client.settings import Settings
from drangue_client.stackfile import find_settings

OK = 0
FAILED = 1  # it was done, and the answer is no: a run failed, was cancelled or late
UNUSABLE = 2  # it could not be done: bad input, a wrong setting, a server away
WAITING = 3  # the run waits for a person
UNFINISHED = 4  # the wait is over, and the run goes on


def settings_here(context: click.Context | None = None) -> Settings:
    """The settings of this place; where they are a running stack's, that is said on standard error."""
    places = (context.find_root().obj if context else None) or ()
    return find_settings(places, tell=lambda text: click.echo(text, err=True))


@contextmanager
def client_here(context: click.Context) -> Iterator[Client]:
    """A client on the servers of this place, closed afterwards."""
    client = Client(settings_here(context))
    try:
        yield client
    finally:
        client.close()


def wide_console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for a file or a pipe to lose nothing."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def say(value: RenderableType) -> None:
    """Print a view on standard output."""
    wide_console().print(value)


def say_json(value: Any, *, indent: int | None = 2) -> None:
    """Print a value as JSON on standard output; without `indent` as one line."""
    click.echo(json.dumps(value, indent=indent, ensure_ascii=False))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for another program.")


def run_main(command: click.Command, places: Sequence[Path] = (), arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its code; an error raised on purpose is one line and UNUSABLE."""
    sys.exit(_code_of(lambda: command.main(arguments, standalone_mode=False, obj=tuple(places))))


def code_of(result: Result) -> int:
    """The exit code that tells a script how a run stands."""
    if result.status in MOVING:
        return UNFINISHED
    if result.status == "paused":
        return WAITING
    return FAILED if result.status in ("failed", "cancelled") or result.reason == DEADLINE else OK


def _code_of(work: Callable[[], Any]) -> int:
    output = sys.stdout
    try:
        code = work()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _refuse(error.format_message())
    except click.Abort:
        return 130  # what a shell reports for a Ctrl-C
    except (DrangueError, ValueError) as error:
        if not isinstance(error, DrangueError) and not _is_ours(error):
            raise
        return _refuse(str(error))
    except SystemExit:
        if sys.stdout is not output:  # click has put it aside: whoever read us has enough, as after `| head`
            return OK
        raise
    return code if isinstance(code, int) else OK


def _refuse(message: str) -> int:
    click.echo(f"drangue: {' '.join(message.split())}", err=True)
    return UNUSABLE


def _is_ours(error: ValueError) -> bool:
    """Whether a plain ValueError names bad input (raised by our own checks) rather than a bug."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "drangue_client/checks" in trace.tb_frame.f_code.co_filename
