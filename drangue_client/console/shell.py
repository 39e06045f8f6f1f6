"""What every command shares: where the servers are, how an answer is printed, and what an exit code means.

A command is a thin shell over a function that takes a client and values. Errors raised on purpose end as one line on
standard error; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType

from drangue_client.client import Client
from drangue_client.errors import DrangueError
from drangue_client.settings import PREFIX, Settings
from drangue_client.stackfile import find_stack

OK = 0
FAILED = 1  # it was done, and the answer is no: a run failed, a wait was over
UNUSABLE = 2  # it could not be done: bad input, a wrong setting, a server away

ADDRESS_NAMES = (f"{PREFIX}DATABASE_URL", f"{PREFIX}REDIS_URL")


def settings_here(environ: Mapping[str, str] | None = None, places: Sequence[Path] = ()) -> Settings:
    """The environment's settings; without addresses in it, those of the stack that runs in this checkout.

    `places` are looked in after the current folder. Says on standard error that it uses a stack.
    """
    settings = Settings.from_env(environ)
    environ = os.environ if environ is None else environ
    if any(environ.get(name) for name in ADDRESS_NAMES):
        return settings
    for place in (Path.cwd(), *places):
        stack = find_stack(place)
        if stack is not None:
            click.echo("using the stack that `drangue dev` runs in this checkout", err=True)
            return replace(settings, database_url=stack.database_url, redis_url=stack.redis_url)
    return settings


@contextmanager
def client_here(context: click.Context) -> Iterator[Client]:
    """A client on the servers of this place, closed afterwards."""
    client = Client(settings_here(places=context.find_root().obj or ()))
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


def say_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for another program.")


def run_main(command: click.Command, places: Sequence[Path] = (), arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its code; an error raised on purpose is one line and UNUSABLE."""
    sys.exit(_code_of(lambda: command.main(arguments, standalone_mode=False, obj=tuple(places))))


def _code_of(work: Callable[[], Any]) -> int:
    try:
        code = work()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return UNUSABLE
    except click.Abort:
        return 130  # what a shell reports for a Ctrl-C
    except (DrangueError, ValueError) as error:
        if not isinstance(error, DrangueError) and not _is_ours(error):
            raise
        click.echo(f"drangue: {' '.join(str(error).split())}", err=True)
        return UNUSABLE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has enough
        return OK
    return code if isinstance(code, int) else OK


def _is_ours(error: ValueError) -> bool:
    """Whether a plain ValueError names bad input (raised by the client's own checks) rather than a bug."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "drangue_client/client" in trace.tb_frame.f_code.co_filename
