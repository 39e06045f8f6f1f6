"""The words that choose runs, on every command that goes through them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import click
import pytest

from drangue_client.console.filters import MOMENT, run_filters


@run_filters(limit=7)
def chosen(**filters: Any) -> dict[str, Any]:
    return filters


command = click.command()(chosen)


def parsed(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = command.main(arguments, standalone_mode=False)
    return found


def test_they_are_the_keywords_of_the_log() -> None:
    """A command hands them on as they are."""
    nothing = {"status": None, "agent": None, "since": None, "until": None, "labels": {}, "limit": 7}
    assert parsed() == nothing
    words = ("--status", "failed", "--agent", "oncall", "--limit", "3", "--label", "team=sre", "--label", "q=a=b")
    given = {"status": "failed", "agent": "oncall", "limit": 3, "labels": {"team": "sre", "q": "a=b"}}
    assert parsed(*words) == {**nothing, **given}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-07-01", datetime(2026, 7, 1, tzinfo=UTC)),
        ("2026-07-01T09:40", datetime(2026, 7, 1, 9, 40, tzinfo=UTC)),
        ("2026-07-01 09:40:30.5", datetime(2026, 7, 1, 9, 40, 30, 500_000, tzinfo=UTC)),
        ("2026-07-01T09:40+02:00", datetime(2026, 7, 1, 9, 40, tzinfo=timezone(timedelta(hours=2)))),
        ("2026-07-01T09:40Z", datetime(2026, 7, 1, 9, 40, tzinfo=UTC)),
    ],
)
def test_a_moment_is_a_date_or_a_time(text: str, moment: datetime) -> None:
    """In UTC, as times are shown, unless it says otherwise."""
    assert parsed("--since", text)["since"] == parsed("--until", text)["until"] == moment.timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("90m", 5400), ("1.5h", 5400), ("7d", 604_800), ("2w", 1_209_600)]
)
def test_or_how_long_ago_it_was(text: str, seconds: float) -> None:
    """What people say."""
    before = time.time()
    assert before - seconds <= MOMENT.convert(text, None, None) <= time.time() - seconds


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("9999999999w", 0.0),
        ("0001-01-01", 0.0),
        ("9999-12-31T23:59-23:00", datetime(9999, 1, 1, tzinfo=UTC).timestamp()),
    ],
)
def test_a_moment_is_one_that_a_database_knows(text: str, moment: float) -> None:
    """Before the first run and after the last, which is what is meant."""
    assert MOMENT.convert(text, None, None) == moment


@pytest.mark.parametrize(
    "text", ["soon", "", "7", "7 d", "d", "-7d", "2026-13-01", "2026-02-30", "9:40", "nan", "infd"]
)
def test_anything_else_is_refused_with_what_can_be_written(text: str) -> None:
    """One look at the message is enough."""
    with pytest.raises(click.BadParameter, match=r"is no moment; write 2026-07-01, 2026-07-01T09:40 \(UTC\), or 90m"):
        parsed("--since", text)


@pytest.mark.parametrize("label", ["team", "=sre", ""])
def test_a_label_has_a_name_and_a_value(label: str) -> None:
    """A typo must not list everything."""
    with pytest.raises(click.BadParameter, match="is not NAME=VALUE"):
        parsed("--label", label)
