"""Which runs a command is about: the same options for every command that goes through recorded runs."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, get_args

import click

from drangue_client.run import Status

MOST = 10_000  # runs in one list
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_LATEST_S = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class _Moment(click.ParamType[float]):
    """A moment: a date or a time as ISO 8601 has it, in UTC unless it says otherwise, or how long ago. Epoch seconds.

    How long ago is reckoned by this machine's clock; the times it is compared with are the database's.
    """

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        ago = _AGO.fullmatch(value)
        if ago:
            return _storable(time.time() - float(ago[1]) * _UNIT_S[ago[2]])
        try:
            moment = datetime.fromisoformat(value)
            epoch_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no moment; write 2026-07-01, 2026-07-01T09:40 (UTC), or 90m, 12h, 7d ago", param, ctx
            )
        return _storable(epoch_s)


class _Age(click.ParamType[float]):
    """How long ago, in seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        ago = _AGO.fullmatch(str(value))
        if ago is None:
            self.fail(f"{value!r} is no age; write 90m, 12h, 7d, 4w", param, ctx)
        return float(ago[1]) * _UNIT_S[ago[2]]


AGE = _Age()


class _Seconds(click.ParamType[float]):
    """A number of seconds, at least 0."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < math.inf:
            self.fail(f"{value!r} is not a number of seconds, 0 or more", param, ctx)
        return seconds


SECONDS = _Seconds()


def _storable(epoch_s: float) -> float:
    """The nearest moment that every database knows."""
    return min(max(0.0, epoch_s), _LATEST_S)


MOMENT = _Moment()


def pairs(context: click.Context, parameter: click.Parameter, labels: Sequence[str]) -> dict[str, str]:
    """The labels given as NAME=VALUE; a value may hold further equals signs."""
    found = {}
    for label in labels:
        name, separator, value = label.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{label!r} is not NAME=VALUE", context, parameter, param_hint="--label")
        found[name] = value
    return found


def say_if_cut(done: str, count: int, limit: int) -> None:
    """Say on standard error that the limit may have cut a list of `count` runs: "20 shown; there may be more: ..."."""
    if count >= limit:
        click.echo(f"{count} {done}; there may be more: {'--limit' if limit < MOST else '--until'}", err=True)


def run_filters(limit: int, *, agent: bool = True, status: bool = True) -> Callable[[Any], Any]:
    """Add the options `status` and `agent` (each unless left out), `since`, `until`, `labels` and `limit`, keywords of
    `Log.runs` all of them."""
    of_status = click.option("--status", type=click.Choice(get_args(Status)), help="Only runs of this status.")
    of_agent = click.option("--agent", metavar="NAME", help="Only runs of this agent.")
    options = (
        *([of_status] if status else []),
        *([of_agent] if agent else []),
        click.option("--since", type=MOMENT, help="Only runs submitted from then on: 2026-07-01, or 12h ago."),
        click.option("--until", type=MOMENT, help="Only runs submitted before then."),
        click.option(
            "--label", "labels", multiple=True, callback=pairs, metavar="NAME=VALUE", help="Only with it; repeatable."
        ),
        click.option(
            "--limit",
            type=click.IntRange(1, MOST),
            default=limit,
            show_default=True,
            help="At most so many, the newest.",
        ),
    )

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add
