"""What a server says of the time to come back, in whatever form a tool or an adapter hands it on."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest

from drangue_client.errors import LONGEST_WAIT_S, RateLimitError


def wait(wanted: Any) -> float | None:
    return RateLimitError("slow down", retry_after=wanted).retry_after


@pytest.mark.parametrize(
    ("wanted", "seconds"),
    [
        (None, None),
        (7, 7.0),
        (0.5, 0.5),
        ("7", 7.0),
        (" 1.5 ", 1.5),
        (-3, 0.0),
        ("-3", 0.0),
        (1e300, LONGEST_WAIT_S),
        (float("inf"), None),
        ("nan", None),
        (10**400, None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_number_is_taken_as_seconds(wanted: Any, seconds: float | None) -> None:
    """Never a time that has passed, nor one that no row of a database could hold."""
    assert wait(wanted) == seconds


@pytest.mark.parametrize(
    "wanted", ["", "soon", "7:00", "Wed, 99 Oct 2015 07:28:00 GMT", "x" * 5_000, [], b"x", object()]
)
def test_what_names_no_time_is_no_wish(wanted: Any) -> None:
    """It is read while another failure is handled; an error here would hide that one and fail the run."""
    assert wait(wanted) is None


@pytest.mark.parametrize(
    "form",
    [
        lambda moment: format_datetime(moment, usegmt=True),
        lambda moment: moment.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
        lambda moment: moment.strftime("%a %b %e %H:%M:%S %Y"),
        lambda moment: moment,
        lambda moment: moment.replace(tzinfo=None),
        lambda moment: moment.astimezone(timezone(timedelta(hours=5))),
    ],
    ids=["RFC 9110", "RFC 850", "asctime", "aware", "naive", "elsewhere"],
)
def test_a_date_is_counted_from_now(form: Any) -> None:
    """HTTP knows three forms of it; a tool may have made a datetime of its own."""
    seconds = wait(form(datetime.now(UTC) + timedelta(seconds=60)))
    assert seconds is not None
    assert 55.0 < seconds <= 60.0
    assert wait(form(datetime.now(UTC) - timedelta(days=1))) == 0.0


@pytest.mark.parametrize(
    "edge", [datetime.min, datetime.max, datetime.min.replace(tzinfo=timezone(timedelta(hours=9)))]
)
def test_the_ends_of_time_break_nothing(edge: datetime) -> None:
    """Somebody's sentinel."""
    assert wait(edge) in (0.0, LONGEST_WAIT_S)


def test_the_seconds_survive_the_way_to_another_process() -> None:
    """Counted once: a date read again later would be a shorter wait."""
    error = RateLimitError("slow down", retry_after=datetime.now(UTC) + timedelta(seconds=60))
    assert pickle.loads(pickle.dumps(error)).retry_after == error.retry_after
